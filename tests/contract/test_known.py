"""Rules that are kept between transactions are used only while they are still so, on both databases."""

from __future__ import annotations

import tracemalloc
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from iotjobs import clock
from iotjobs.domain.entities import Entity, OwnerType
from iotjobs.domain.errors import NotFound
from iotjobs.domain.triggers import MAX_DEPTH
from iotjobs.engine.happenings import Happening, Reported
from iotjobs.store import definitions, known, rules
from iotjobs.store.definitions import Kind
from iotjobs.store.known import Known, KnownRules
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from tests.services.rows import Engine


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    made = Engine(store)
    yield made
    await made.stop()


def asked(kept: KnownRules, entity: Entity) -> Callable[[Transaction], tuple[Known, list[str]]]:
    def item(tx: Transaction) -> tuple[Known, list[str]]:
        found = kept.at(tx.conn)
        return found, [one.state for one in found.conditions_of(tx.conn, entity)]

    return item


async def test_what_was_read_is_kept_until_somebody_changes_a_rule(engine: Engine) -> None:
    owner_id = await engine.thing()
    await engine.conditions(owner_id, {"state": "alarm", "when": "a == 1"})
    kept, entity = KnownRules(), Entity(owner_id, OwnerType.OBJECT, "x")

    first, states = await engine.store.write(asked(kept, entity))
    again, _ = await engine.store.write(asked(kept, entity))
    assert (states, again is first) == (["alarm"], True)

    await engine.report(owner_id, a=1)  # a report is no change of rules
    assert (await engine.store.write(asked(kept, entity)))[0] is first
    await engine.conditions(owner_id, {"state": "overloaded", "when": "a == 1"})
    assert (await engine.store.write(asked(kept, entity)))[1] == ["overloaded"]


async def test_the_rules_of_a_class_are_kept_once_for_all_its_members_and_a_change_reaches_them_all(
    engine: Engine,
) -> None:
    class_id, kept, count = await engine.class_(), KnownRules(), 500
    operation_id = await engine.operation(class_id, owner_kind="class", parameters={"text": "true"})
    given = {"states": ["alarm"], "operation_id": operation_id}
    when = " || ".join(f"a{number} > {number}" for number in range(20))
    members = [Entity(clock.new_id(), OwnerType.OBJECT, "x", class_id) for _ in range(count)]

    def look(tx: Transaction) -> tuple[set[int], set[int], int]:
        known = kept.at(tx.conn)
        tracemalloc.start()
        conditions = {id(known.conditions_of(tx.conn, one)[0]) for one in members}
        triggers = {id(known.triggers_of(tx.conn, one)[0]) for one in members}
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return conditions, triggers, taken

    for states in (["alarm"], ["overloaded", "alarm"]):
        await engine.conditions(class_id, {"state": states[0], "when": when}, owner_kind="class")
        await engine.triggers(class_id, {**given, "states": states}, owner_kind="class")
        conditions, triggers, taken = await engine.store.write(look)
        assert (len(conditions), len(triggers)) == (1, 1)
        assert taken / count < 500

    found, seen = await engine.store.write(asked(kept, members[-1]))
    assert seen == ["overloaded"]
    own = await engine.thing(class_id=class_id)
    await engine.conditions(own, {"state": "stopped", "when": "a == 1"})
    for entity_id, expected in ((own, ["stopped"]), (members[0].id, ["overloaded"])):
        entity = Entity(entity_id, OwnerType.OBJECT, "x", class_id)
        assert (await engine.store.write(asked(kept, entity)))[1] == expected
    assert found is not (await engine.store.write(asked(kept, members[0])))[0]


@pytest.mark.parametrize(
    "what", ["triggers", "breaker", "object", "link", "class", "gone", "operation", "script"]
)
async def test_everything_that_decides_counts_as_a_rule(engine: Engine, what: str) -> None:
    owner_id, operation_id = await engine.script("true")
    other, spare = await engine.thing(), await engine.thing()
    [trigger_id] = await engine.triggers(owner_id, {"states": ["alarm"], "operation_id": operation_id})
    before = await engine.store.read(rules.version)
    match what:
        case "triggers":
            await engine.triggers(owner_id)
        case "breaker":
            await engine.store.write(lambda tx: rules.set_breaker(tx, trigger_id, 1))
        case "object":
            values: dict[str, Any] = {"properties": {"a": 1}}
            await engine.store.write(
                lambda tx: definitions.change(tx, Kind.OBJECT, owner_id, lambda _: values)
            )
        case "link":
            await engine.link(owner_id, other)
        case "class":
            await engine.class_()
        case "operation":
            await engine.operation(owner_id, parameters={"text": "false"})
        case "script":
            script = {"name": "s", "interpreter": "sh", "text": "true"}
            await engine.store.write(lambda tx: definitions.create(tx, Kind.SCRIPT, script, clock.now_ms()))
        case "gone":
            await engine.store.write(lambda tx: definitions.remove(tx, Kind.OBJECT, spare))
    assert await engine.store.read(rules.version) != before


async def test_an_operation_is_kept_until_somebody_changes_it(engine: Engine) -> None:
    owner_id, operation_id = await engine.script("true")
    stranger = Entity(await engine.thing(), OwnerType.OBJECT, "y")
    kept, entity = KnownRules(), Entity(owner_id, OwnerType.OBJECT, "x")

    async def version() -> int:
        return await engine.store.write(
            lambda tx: kept.at(tx.conn).operation_for(tx.conn, entity, operation_id).version
        )

    async def change(name: str) -> None:
        await engine.store.write(
            lambda tx: definitions.change(tx, Kind.OPERATION, operation_id, lambda _: {"name": name})
        )

    assert await version() == 1
    await change("other")
    assert (await version(), await version()) == (2, 2)
    with pytest.raises(NotFound):
        await engine.store.write(lambda tx: kept.at(tx.conn).operation_for(tx.conn, stranger, operation_id))
    await engine.store.write(lambda tx: definitions.remove(tx, Kind.OPERATION, operation_id))
    with pytest.raises(NotFound):
        await version()


async def test_a_change_that_failed_leaves_nothing_behind(engine: Engine) -> None:
    owner_id = await engine.thing()
    await engine.conditions(owner_id, {"state": "alarm", "when": "a == 1"})
    kept, entity = KnownRules(), Entity(owner_id, OwnerType.OBJECT, "x")

    def fails(tx: Transaction) -> None:
        rules.put_conditions(tx, "object", owner_id, None)
        assert asked(kept, entity)(tx)[1] == []
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await engine.store.write(fails)
    assert (await engine.store.write(asked(kept, entity)))[1] == ["alarm"]


async def test_it_does_not_grow_without_end(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_MOST", 2)
    kept = KnownRules()
    for number in range(3):
        entity = Entity(f"{number}", OwnerType.OBJECT, "x")
        first, _ = await engine.store.write(asked(kept, entity))
    assert len(first._conditions) == 1


async def test_a_breaker_whose_transaction_failed_is_known_to_nobody(engine: Engine) -> None:
    class_id = await engine.class_()
    operation_id = await engine.operation(class_id, owner_kind="class", parameters={"text": "true"})
    given = {"states": ["working"], "operation_id": operation_id}
    await engine.triggers(class_id, given, owner_kind="class")
    first, second = await engine.thing(class_id=class_id), await engine.thing(class_id=class_id)

    def fails(tx: Transaction) -> None:
        turn = engine.reactions.turn(tx)
        turn._firing.depth_behind = lambda _: MAX_DEPTH  # type: ignore[method-assign]
        turn.take(Happening(OwnerType.OBJECT, first, Reported({"a": 1})))
        turn.take(Happening(OwnerType.OBJECT, second, Reported({"a": 1})))
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await engine.store.write(fails)

    await engine.report(second, a=1)
    [trace] = await engine.store.read(lambda conn: rules.trace_rows(conn, limit=9))
    assert trace.decision == "fired"
