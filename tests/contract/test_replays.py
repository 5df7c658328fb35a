"""A replay of a recorded day says what that day did, on both databases."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import Connection, delete, select

from iotjobs import clock
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.errors import NotFound
from iotjobs.domain.replay import Replay
from iotjobs.domain.states import Condition, Forced
from iotjobs.engine import replays
from iotjobs.engine.happenings import Connection as Broker
from iotjobs.engine.happenings import Happening, Looked, Redefined, Reported, Said, Written
from iotjobs.engine.replays import Span
from iotjobs.store import definitions, past, retention, rules, standings
from iotjobs.store.definitions import Kind
from iotjobs.store.session import Store
from iotjobs.store.state_tables import standings as standing_table
from iotjobs.store.state_tables import state_changes, traces
from iotjobs.store.writer import Transaction
from tests.services.days import Day, agrees, decided_of
from tests.services.rows import ADMIN, Engine

DAY_MS = 86_400_000


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    made = Engine(store)
    yield made
    await made.stop()


@pytest.mark.parametrize("seed", [*range(4), 5, 7, 27, 35])
async def test_a_replayed_day_decides_what_that_day_decided(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    print("seed", seed)  # noqa: T201
    chance, day = random.Random(seed), Day(engine, monkeypatch)
    owner_id = await engine.thing(no_data_after_s=120)
    operation_id = await engine.operation(owner_id, parameters={"text": "true"})
    await engine.conditions(
        owner_id,
        {"state": "alarm", "when": "temperature > 80", "hold_s": chance.choice([0, 2, 10])},
        {"state": "overloaded", "when": 'temperature > 60 && door != "open"'},
    )
    triggers = [
        {"states": ["alarm"], "hold_s": chance.choice([0, 5]), "repeat_s": chance.choice([None, 20])},
        {"states": ["alarm", "overloaded"], "cooldown_s": chance.choice([0, 30]), "max_per_hour": 12},
        {"states": ["no_data", "down", "disabled"]},
    ]
    await engine.triggers(owner_id, *({**one, "operation_id": operation_id} for one in triggers))
    middle = day.now
    for number in range(80):
        await day.pass_until(day.now + chance.choice([1, 400, 2000, 7000, 30_000]))
        if number == 20:
            middle = day.now
        match chance.randrange(20):
            case 0:
                await engine.happens(owner_id, Broker(online=False))
            case 1:
                until = day.now + chance.choice([5000, 60_000])
                await engine.happens(owner_id, Said(Forced("disabled", ADMIN.user_id, "x", day.now, until)))
            case 2:
                await day.pass_until(day.now + 200_000)
            case _:
                values = {"temperature": chance.randrange(50, 100)}
                if chance.random() < 0.3:
                    values["door"] = chance.choice(["open", "shut"])
                await engine.report(owner_id, **values)
    await day.pass_until(day.now + 1000)

    for since in (day.began, middle):
        span = Span(since, day.now)

        conditions = await engine.store.read(
            lambda conn: rules.conditions_of(conn, standings.load_object(conn, owner_id).entity)  # type: ignore[union-attr]
        )
        [found] = await replays.of_conditions(engine.store, "object", owner_id, conditions, span)
        replayed = sorted(
            (firing.at, firing.trigger_id, firing.state, firing.ruling.decision.value)
            for firing in found.replayed.firings
            if firing.ruling.decision.value not in ("held", "hold_canceled")
        )
        really = await engine.store.read(lambda conn, since=since: decided_of(conn, owner_id, since))
        assert found.replayed.complete
        assert replayed == really
        changes = await engine.store.read(
            lambda conn: standings.changes(conn, limit=1000, entity_id=owner_id)
        )
        recorded = [(c.at, c.from_state, c.to_state) for c in reversed(changes) if c.at >= since]
        assert [(c.at, c.before, c.after) for c in found.replayed.changes] == recorded


@pytest.mark.parametrize(
    ("trigger", "fired"),
    [({"repeat_s": 1}, 61), ({"repeat_s": 1, "cooldown_s": 1}, 61), ({"hold_s": 5, "repeat_s": 2}, 28)],
)
async def test_looks_that_are_a_little_late_do_not_make_repeats_rarer(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, trigger: dict[str, Any], fired: int
) -> None:
    day = Day(engine, monkeypatch, late_ms=50)
    owner_id, operation_id = await engine.script("true")
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 80"})
    await engine.triggers(owner_id, {"states": ["alarm"], "operation_id": operation_id, **trigger})
    await engine.report(owner_id, t=90)
    await day.pass_until(day.began + 60_500)
    await agrees(engine, OwnerType.OBJECT, owner_id, Span(day.began - 1, day.now))
    decided = await engine.store.read(lambda conn: decided_of(conn, owner_id, day.began))
    assert len(decided) == fired
    assert {row[-1] for row in decided} == {"fired"}


async def test_repeats_that_were_missed_while_nothing_ran_are_not_made_up_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = Day(engine, monkeypatch, late_ms=600_000)
    owner_id, operation_id = await engine.script("true")
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 80"})
    await engine.triggers(owner_id, {"states": ["alarm"], "operation_id": operation_id, "repeat_s": 1})
    await engine.report(owner_id, t=90)
    await day.pass_until(day.began + 601_000)
    day.late_ms = 0
    await day.pass_until(day.began + 603_500)
    decided = await engine.store.read(lambda conn: decided_of(conn, owner_id, day.began))
    assert [row[0] - day.began for row in decided] == [0, 601_000, 602_000, 603_000]


@pytest.mark.parametrize("seed", range(4))
async def test_a_day_on_which_much_has_one_moment_is_replayed_in_the_order_it_was_seen_in(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    print("seed", seed)  # noqa: T201
    chance, day = random.Random(seed), Day(engine, monkeypatch)
    source, target = await engine.thing(no_data_after_s=60), await engine.thing()
    link_id = await engine.link(source, target)
    for kind, owner_id, name in (("object", source, "t"), ("link", link_id, "source.t")):
        operation_id = await engine.operation(owner_id, owner_kind=kind, parameters={"text": "true"})
        await engine.conditions(
            owner_id,
            {"state": "alarm", "when": f"{name} > 80", "hold_s": chance.choice([0, 2])},
            {"state": "overloaded", "when": f"{name} > 60"},
            owner_kind=kind,
        )
        triggers = [
            {"states": ["alarm", "down", "no_data"], "hold_s": chance.choice([0, 4])},
            {"states": ["overloaded", "disabled"], "repeat_s": 10},
        ]
        given = ({**one, "operation_id": operation_id} for one in triggers)
        await engine.triggers(owner_id, *given, owner_kind=kind)

    def happening() -> Happening:
        on, entity_id = chance.choice([(OwnerType.OBJECT, source)] * 3 + [(OwnerType.LINK, link_id)])
        values = {"t": chance.randrange(50, 100)}
        forced = Forced("disabled", ADMIN.user_id, "x", day.now, chance.choice([None, day.now + 4000]))
        what: list[Any] = [
            Reported(values),
            Reported(values),
            Written(values, ADMIN),
            Said(forced),
            Said(None),
        ]
        if on is OwnerType.OBJECT:
            what += [Broker(online=False), Broker(online=True)]
        return Happening(on, entity_id, chance.choice(what))

    def together(tx: Transaction) -> None:
        turn = engine.reactions.turn(tx)
        for _ in range(chance.randrange(1, 6)):
            turn.take(happening())
        turn.finish()

    middle = day.now
    for number in range(60):
        middle = day.now if number == 20 else middle
        # Some moments are those at which time alone does something.
        await day.pass_until(day.now + chance.choice([0, 0, 1, 500, 2000, 4000, 60_000]))
        await engine.store.write(together)
    await day.pass_until(day.now + 100_000)

    for kind, entity_id in ((OwnerType.OBJECT, source), (OwnerType.LINK, link_id)):
        for since in (day.began, middle):
            await agrees(engine, kind, entity_id, Span(since, day.now))


@pytest.mark.parametrize(("hold_s", "repeat_s"), [(0, 7), (5, None)])
async def test_a_state_that_was_forced_while_it_was_already_so_is_replayed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, hold_s: float, repeat_s: float | None
) -> None:
    day = Day(engine, monkeypatch)
    owner_id, operation_id = await engine.script("true")
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 80", "hold_s": hold_s})
    given = {"states": ["alarm"], "operation_id": operation_id, "repeat_s": repeat_s}
    await engine.triggers(owner_id, given)
    began = []
    for what in (
        Reported({"t": 90}),
        Said(Forced("alarm", ADMIN.user_id, "is being mended", day.now, None)),
        Reported({"t": 91}),
        Said(Forced("alarm", ADMIN.user_id, "is being mended", day.now, day.now + 60_000)),
        Reported({"t": 20}),
        Reported({"t": 92}),
        Said(None),
        Reported({"t": 20}),
        Said(Forced("working", ADMIN.user_id, "is being mended", day.now, day.now + 75_000)),
        Reported({"t": 93}),
    ):
        await day.pass_until(day.now + 7300)
        began.append(day.now)
        await engine.happens(owner_id, what)
    await day.pass_until(day.now + 10_000)
    for since in (day.began - 1, *(at + 1 for at in began)):
        await agrees(engine, OwnerType.OBJECT, owner_id, Span(since, day.now))
    changes = await engine.store.read(lambda conn: standings.changes(conn, limit=99, entity_id=owner_id))
    assert all(one.from_state != one.to_state for one in changes)


async def test_a_connection_that_ends_where_a_condition_says_so_too_is_replayed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = Day(engine, monkeypatch)
    owner_id = await engine.thing()
    await engine.conditions(owner_id, {"state": "down", "when": "t > 80"})
    for what in (
        Reported({"t": 90}),
        Broker(online=False),
        Written({"t": 20}, ADMIN),
        Written({"t": 91}, ADMIN),
        Broker(online=True),
        Written({"t": 20}, ADMIN),
    ):
        await day.pass_until(day.now + 1000)
        await engine.happens(owner_id, what)
    await agrees(engine, OwnerType.OBJECT, owner_id, Span(day.began - 1, day.now))


async def test_a_first_report_that_changes_nothing_is_replayed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = Day(engine, monkeypatch)
    owner_id = await engine.thing(properties={"t": 20})
    operation_id = await engine.operation(owner_id, parameters={"text": "true"})
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 80"})
    await engine.triggers(owner_id, {"states": ["working"], "operation_id": operation_id})
    for value in (20, 90, 20):
        await day.pass_until(day.now + 1000)
        await engine.report(owner_id, t=value)
    await agrees(engine, OwnerType.OBJECT, owner_id, Span(day.began - 1, day.now + 10))


async def test_a_property_that_was_taken_away_is_replayed_as_not_there(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = Day(engine, monkeypatch)
    owner_id, target = await engine.thing(), await engine.thing()
    link_id = await engine.link(owner_id, target)
    await engine.conditions(owner_id, {"state": "alarm", "when": "!has(properties.door)"})
    await engine.conditions(link_id, {"state": "alarm", "when": "!has(source.door)"}, owner_kind="link")
    await engine.happens(owner_id, Looked())
    await engine.happens(link_id, Looked(), OwnerType.LINK)

    def take_away(tx: Transaction) -> None:
        definitions.change(tx, Kind.OBJECT, owner_id, lambda _: {"properties": {"lid": "shut"}})
        gone = Redefined({"door": None, "lid": "shut"}, ADMIN)
        engine.reactions.react(tx, Happening(OwnerType.OBJECT, owner_id, gone))

    moments = []
    for door in ("open", None):
        await day.pass_until(day.now + 1000)
        moments.append(day.now)
        await engine.report(owner_id, door=door, lid="shut")
    for _ in range(2):
        await day.pass_until(day.now + 1000)
        moments.append(day.now)
        await engine.store.write(take_away)
        await engine.report(owner_id, lid="open")
        await engine.report(owner_id, door=None)
        await engine.store.write(take_away)
    await day.pass_until(day.now + 1000)
    for since in (moments[0], *(moment + 1 for moment in moments)):
        await agrees(engine, OwnerType.OBJECT, owner_id, Span(since, day.now))
        await agrees(engine, OwnerType.LINK, link_id, Span(since, day.now))


async def test_values_are_replayed_as_they_were_written_whatever_their_moments_say(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = Day(engine, monkeypatch)
    owner_id = await engine.thing()
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 80"})
    for value, later_ms in ((20, 0), (90, 50), (70, -30), (95, -10)):  # nodes whose clocks differ
        day.now += later_ms
        await engine.report(owner_id, t=value)
    await agrees(engine, OwnerType.OBJECT, owner_id, Span(day.began - 1, day.now + 100))


async def test_what_held_already_when_a_replay_begins_counts_as_entered_then(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = Day(engine, monkeypatch)
    owner_id = await engine.thing()
    operation_id = await engine.operation(owner_id, parameters={"text": "true"})
    await engine.triggers(owner_id, {"states": ["alarm"], "operation_id": operation_id})
    await engine.report(owner_id, t=90)
    await day.pass_until(day.now + 100_000)
    begins = day.now
    for value in (91, 20):
        await day.pass_until(day.now + 1000)
        await engine.report(owner_id, t=value)
    proposed = rules.condition_of(
        {"id": "c", "state": "alarm", "when": "t > 80", "hold_s": 10, "description": "", "period": None}
    )
    span = Span(begins, day.now)
    [found] = await replays.of_conditions(engine.store, "object", owner_id, [proposed], span)
    assert [(one.at - begins, one.before, one.after) for one in found.replayed.changes] == [
        (0, "working", "alarm"),
        (2000, "alarm", "working"),
    ]
    decided = [(one.at - begins, one.ruling.decision.value) for one in found.replayed.firings]
    assert decided == [(0, "fired"), (2000, "not_in_states")]


async def test_what_is_deleted_from_a_class_while_it_is_replayed_is_left_out(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_id = await engine.class_()
    first, gone, last = [await engine.thing(class_id=class_id) for _ in range(3)]
    in_slices = replays._in_slices

    async def meanwhile(run: Replay) -> None:
        if await engine.store.read(lambda conn: standings.load_object(conn, gone)) is not None:
            await engine.store.write(lambda tx: definitions.remove(tx, Kind.OBJECT, gone))
        await in_slices(run)

    monkeypatch.setattr(replays, "_in_slices", meanwhile)
    span = Span(0, clock.now_ms())
    found = await replays.of_conditions(engine.store, "class", class_id, [], span)
    assert [one.snapshot.entity.id for one in found] == [first, last]
    with pytest.raises(NotFound):
        await replays.of_conditions(engine.store, "object", gone, [], span)


async def test_a_list_for_a_class_is_not_replayed_for_members_that_have_their_own(engine: Engine) -> None:
    class_id = await engine.class_()
    inherits, has_one, has_none = [await engine.thing(class_id=class_id) for _ in range(3)]
    await engine.conditions(has_one, {"state": "stopped", "when": "t > 50"})
    await engine.conditions(has_none)
    began = clock.now_ms() - 1
    for owner_id in (inherits, has_one, has_none):
        await engine.report(owner_id, t=65)
    span = Span(began, clock.now_ms())

    async def entered(kind: str, owner_id: str) -> dict[str, list[str]]:
        found = await replays.of_conditions(engine.store, kind, owner_id, [_condition("t > 60")], span)
        return {one.snapshot.entity.id: [change.after for change in one.replayed.changes] for one in found}

    assert await entered("class", class_id) == {
        inherits: ["alarm"],
        has_one: ["stopped"],
        has_none: ["working"],
    }
    assert await entered("object", has_one) == {has_one: ["alarm"]}  # asked for itself, it takes the place


async def test_a_replay_of_a_trigger_covers_its_class_and_writes_nothing(engine: Engine) -> None:
    class_id = await engine.class_()
    operation_id = await engine.operation(class_id, owner_kind="class", parameters={"text": "true"})
    await engine.conditions(class_id, {"state": "alarm", "when": "t > 1"}, owner_kind="class")
    [trigger_id] = await engine.triggers(
        class_id, {"states": ["alarm"], "operation_id": operation_id, "enabled": False}, owner_kind="class"
    )
    began = clock.now_ms() - 1
    owners = [await engine.thing(class_id=class_id) for _ in range(3)]
    for owner_id in owners:
        await engine.report(owner_id, t=5)

    def everything(conn: Connection) -> list[Any]:
        return [conn.execute(select(traces)).all(), conn.execute(select(standing_table)).all()]

    before = await engine.store.read(everything)
    span = Span(began, clock.now_ms())
    found = await replays.of_trigger(engine.store, trigger_id, span)
    assert [one.snapshot.entity.id for one in found] == owners
    assert [[f.ruling.decision.value for f in one.replayed.firings] for one in found] == [["fired"]] * 3
    assert await engine.store.read(everything) == before
    with pytest.raises(NotFound):
        await replays.of_trigger(engine.store, "f" * 32, span)


async def test_a_link_is_replayed_from_what_its_ends_reported(engine: Engine) -> None:
    source, target = await engine.thing(), await engine.thing()
    link_id = await engine.link(source, target)
    began = clock.now_ms() - 1
    await engine.report(source, flow=20)
    await engine.report(target, flow=10)
    proposed = [
        rules.condition_of(
            {
                "id": "c",
                "state": "alarm",
                "when": "source.flow > target.flow + 5",
                "hold_s": 0,
                "description": "",
                "period": None,
            }
        )
    ]
    span = Span(began, clock.now_ms())
    [found] = await replays.of_conditions(engine.store, "link", link_id, proposed, span)
    assert [change.after for change in found.replayed.changes] == ["working", "alarm"]
    assert found.snapshot.entity.owner_type is OwnerType.LINK


async def test_a_replay_says_when_what_it_needs_was_deleted(engine: Engine) -> None:
    owner_id = await engine.thing()
    for n in range(3):
        await engine.report(owner_id, a=n)
    span = Span(0, clock.now_ms())

    async def complete() -> bool:
        [found] = await replays.of_conditions(engine.store, "object", owner_id, [], span)
        return found.replayed.complete

    assert await complete()
    await engine.store.write(lambda tx: retention.drop_values_over(tx, limit=9, most=2))
    assert not await complete()


async def test_what_a_person_set_is_no_report_in_a_replay_either(engine: Engine) -> None:
    owner_id = await engine.thing()
    began = clock.now_ms() - 1
    await engine.happens(owner_id, Written({"a": 1}, ADMIN))
    await engine.happens(owner_id, Redefined({"a": 1, "b": 1}, ADMIN))
    span = Span(began, clock.now_ms())
    [found] = await replays.of_conditions(engine.store, "object", owner_id, [], span)
    assert found.replayed.changes == []  # it is `created` still
    assert await engine.store.read(lambda conn: standings.changes(conn, limit=9, entity_id=owner_id)) == []


async def test_a_replay_knows_of_a_cooldown_that_began_before_the_oldest_trace(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = Day(engine, monkeypatch)
    owner_id, operation_id = await engine.script("true")
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 5"})
    given = {"states": ["alarm"], "operation_id": operation_id, "cooldown_s": 86_400}
    [trigger_id] = await engine.triggers(owner_id, given)
    await engine.report(owner_id, t=9)
    await engine.report(owner_id, t=1)
    later = day.now + 1000
    await engine.store.write(lambda tx: retention.drop_traces(tx, behind=(0, 0), limit=500, before=later))
    await day.pass_until(later)
    await engine.report(owner_id, t=9)

    span = Span(later, clock.now_ms())
    [found] = await replays.of_trigger(engine.store, trigger_id, span)
    decided = [firing.ruling.decision.value for firing in found.replayed.firings]
    really = await engine.store.read(lambda conn: decided_of(conn, owner_id, later))
    assert decided == [row[-1] for row in really] == ["cooling_down"]


async def test_pages_and_slices_change_nothing_of_a_replay(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = Day(engine, monkeypatch)
    owner_id = await engine.thing()
    for number in range(25):
        day.now += number % 3  # so that several have one moment
        await engine.report(owner_id, t=number % 2, other=number)
    span = Span(day.began, day.now)
    proposed = [_condition("t > 0")]
    [whole] = await replays.of_conditions(engine.store, "object", owner_id, proposed, span)
    monkeypatch.setattr(past, "PAGE", 3)
    monkeypatch.setattr(replays, "SLICE_S", 0)
    [paged] = await replays.of_conditions(engine.store, "object", owner_id, proposed, span)
    assert len(whole.replayed.changes) == 25
    assert paged.replayed == whole.replayed


async def test_a_replay_of_too_much_goes_as_far_as_it_may_and_says_so(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = Day(engine, monkeypatch)
    class_id = await engine.class_()
    owners = [await engine.thing(class_id=class_id) for _ in range(3)]
    for owner_id in owners:
        for number in range(10):
            day.now += 1
            await engine.report(owner_id, t=number % 2)
    span, proposed = Span(day.began, day.now), [_condition("t > 0")]
    monkeypatch.setattr(past, "PAGE", 4)

    async def found() -> list[tuple[int, bool]]:
        each = await replays.of_conditions(engine.store, "class", class_id, proposed, span)
        return [(len(one.replayed.changes), one.replayed.complete) for one in each]

    assert await found() == [(10, True)] * 3
    monkeypatch.setattr(replays, "MOST_ROWS", 20)  # each has ten values and a change
    assert await found() == [(10, True), (7, False)]
    monkeypatch.setattr(replays, "MOST_ROWS", 1000)
    monkeypatch.setattr(replays, "MOST_STEPS", 15)
    assert await found() == [(10, True), (5, False)]


async def test_a_long_replay_lets_others_have_their_turn(engine: Engine) -> None:
    owner_id = await engine.thing()
    operation_id = await engine.operation(owner_id, parameters={"text": "true"})
    [trigger_id] = await engine.triggers(
        owner_id, {"states": ["working"], "operation_id": operation_id, "repeat_s": 1}
    )
    began = clock.now_ms() - 1
    await engine.report(owner_id, t=1)
    span = Span(began, clock.now_ms() + DAY_MS)
    turns = 0
    replaying = asyncio.create_task(replays.of_trigger(engine.store, trigger_id, span))
    while not replaying.done():
        await asyncio.sleep(0)
        turns += 1
    [found] = await replaying
    assert len(found.replayed.firings) > 50_000
    assert turns > 50


def _condition(when: str) -> Condition:
    given = {"id": "c", "state": "alarm", "when": when, "hold_s": 0, "description": "", "period": None}
    return rules.condition_of(given)


@pytest.mark.parametrize(("hold_s", "entered_s"), [(0, 0), (10, 10)])
async def test_what_an_entity_was_made_with_has_not_held_before_it_was_made(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, hold_s: float, entered_s: int
) -> None:
    day = Day(engine, monkeypatch)
    await day.pass_until(day.now + 100_000)
    owner_id = await engine.thing(properties={"t": 90})
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 80", "hold_s": hold_s})
    made_at = day.now
    await engine.happens(owner_id, Looked())
    await day.pass_until(day.now + 50_000)
    for since in (day.began, made_at, made_at + 1, made_at + 9999, made_at + 10_001):
        await agrees(engine, OwnerType.OBJECT, owner_id, Span(since, day.now))
    [change] = await engine.store.read(lambda conn: standings.changes(conn, limit=9, entity_id=owner_id))
    assert change.at == made_at + entered_s * 1000


@pytest.mark.parametrize("is_forced", [False, True])
async def test_a_state_whose_change_is_not_kept_any_more_is_replayed_as_it_was(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, is_forced: bool
) -> None:
    day = Day(engine, monkeypatch)
    owner_id = await engine.thing()
    await engine.report(owner_id, t=20)
    if is_forced:
        await engine.happens(owner_id, Said(Forced("disabled", ADMIN.user_id, "x", day.now, None)))
    later = day.now + 1000
    await engine.store.write(lambda tx: tx.conn.execute(delete(state_changes)))  # as it once was done
    await day.pass_until(later)
    await engine.report(owner_id, t=21)
    assert await engine.store.read(lambda conn: standings.changes(conn, limit=9, entity_id=owner_id)) == []
    await agrees(engine, OwnerType.OBJECT, owner_id, Span(later, day.now))


@pytest.mark.parametrize(("given", "said"), [(90, (90, 20)), (20, (20, 90)), (90, (20, 90))])
async def test_what_an_entity_was_made_with_is_replayed_and_is_no_sign_of_life(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, given: int, said: tuple[int, ...]
) -> None:
    day = Day(engine, monkeypatch)
    target = await engine.thing()
    owner_id = await engine.thing(properties={"t": given})
    link_id = await engine.link(owner_id, target, properties={"t": given})
    owners = (("object", OwnerType.OBJECT, owner_id), ("link", OwnerType.LINK, link_id))
    for kind, on, entity_id in owners:
        operation_id = await engine.operation(entity_id, owner_kind=kind, parameters={"text": "true"})
        await engine.conditions(entity_id, {"state": "alarm", "when": "t > 80"}, owner_kind=kind)
        trigger = {"states": ["alarm", "working"], "operation_id": operation_id}
        await engine.triggers(entity_id, trigger, owner_kind=kind)
        await engine.store.write(
            lambda tx, entity_id=entity_id: standings.add_history(  # type: ignore[misc]
                tx, entity_id, {"t": given}, ADMIN.user_id, day.now
            )
        )
        await engine.happens(entity_id, Looked(), on)
    moments = [day.now]
    for value in said:
        await day.pass_until(day.now + 1000)
        moments.append(day.now)
        for _, on, entity_id in owners:
            await engine.happens(entity_id, Reported({"t": value}), on)
    await day.pass_until(day.now + 1000)
    for _, on, entity_id in owners:
        for since in (day.began - 1, *moments, *(moment + 1 for moment in moments)):
            await agrees(engine, on, entity_id, Span(since, day.now))
    span = Span(day.began - 1, day.now)
    [found] = await replays.of_conditions(engine.store, "object", owner_id, [_condition("t > 95")], span)
    assert [(one.before, one.after) for one in found.replayed.changes] == [("created", "working")]
    assert found.replayed.changes[0].at in moments[1:]


async def test_a_replay_says_when_a_value_was_set_longer_ago_than_values_are_kept(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    day = Day(engine, monkeypatch)
    old, other = await engine.thing(), await engine.thing()
    await engine.report(old, t=20)
    await day.pass_until(day.now + 10 * DAY_MS)
    await engine.report(other, t=20)
    await engine.store.write(lambda tx: retention.drop_history(tx, limit=9, before=day.now))
    await day.pass_until(day.now + 1000)
    since = day.now
    new = await engine.thing()
    for owner_id in (old, other, new):
        await engine.report(owner_id, t=90)
    for owner_id, is_complete in ((old, False), (other, True), (new, True)):
        proposed, span = [_condition("t < 50")], Span(since, day.now)
        [found] = await replays.of_conditions(engine.store, "object", owner_id, proposed, span)
        assert found.replayed.complete is is_complete
