"""A replay tells what was decided, from whatever moment on it is asked for, on both databases."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest

from iotjobs.domain.entities import OwnerType
from iotjobs.domain.states import Forced
from iotjobs.engine.happenings import Connection as Broker
from iotjobs.engine.happenings import Happening, Reported, Said, Written
from iotjobs.engine.replays import Span
from iotjobs.store import standings
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from tests.services.days import Day, agrees
from tests.services.rows import ADMIN, Engine

SEEDS = (*range(6), 296, 732)  # the last two had retained reports that others came with
HOLDS_S = (0, 1, 2.5, 7, 20)


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    made = Engine(store)
    yield made
    await made.stop()


async def _rules(engine: Engine, chance: random.Random, owner_id: str, kind: str, name: str) -> None:
    """Conditions with holds of their own, and triggers of each kind."""
    operation_id = await engine.operation(owner_id, owner_kind=kind, parameters={"text": "true"})
    texts = [f"{name} > 80", f"{name} > 60", f'{name} < 55 || has(properties.door) && door == "open"']
    pairs = zip(("alarm", "overloaded", "stopped"), texts, strict=True)
    items = [{"state": state, "when": when, "hold_s": chance.choice(HOLDS_S)} for state, when in pairs]
    chance.shuffle(items)
    await engine.conditions(owner_id, *items, owner_kind=kind)
    triggers: list[dict[str, Any]] = [
        {"states": ["alarm", "stopped"], "hold_s": chance.choice(HOLDS_S)},
        {"states": ["alarm", "overloaded", "no_data"], "repeat_s": chance.choice([1, 4, 13])},
        {"states": ["working", "overloaded", "down"], "cooldown_s": chance.choice([3, 60])},
        {"states": ["disabled", "alarm"], "hold_s": chance.choice(HOLDS_S), "repeat_s": 6, "cooldown_s": 9},
        {"states": ["stopped", "alarm"], "max_per_hour": chance.choice([2, 20]), "repeat_s": 5},
    ]
    given = ({**one, "operation_id": operation_id} for one in triggers)
    await engine.triggers(owner_id, *given, owner_kind=kind)


class _Happenings:
    """Makes up what happens to an object, its link and the link's other end."""

    def __init__(self, chance: random.Random, day: Day, source: str, target: str, link: str) -> None:
        self._chance, self._day = chance, day
        self._whom = [(OwnerType.OBJECT, source)] * 5 + [(OwnerType.OBJECT, target), (OwnerType.LINK, link)]

    def __call__(self) -> Happening:
        chance, now = self._chance, self._day.now
        on, entity_id = chance.choice(self._whom)
        values: dict[str, Any] = {"t": chance.choice([50, 58, 70, 75, 85, 90])}
        if chance.random() < 0.2:
            values["door"] = chance.choice(["open", "shut"])
        state, until = (
            chance.choice(["disabled", "alarm", "working"]),
            now + chance.choice([500, 4000, 30_000]),
        )
        forced = Forced(state, ADMIN.user_id, "x", now, chance.choice([None, until]))
        what: list[Any] = [Reported(values)] * 8 + [Written(values, ADMIN), Said(forced), Said(None)]
        if on is OwnerType.OBJECT:
            what += [
                Broker(online=False),
                Broker(online=True),
                Broker(online=chance.random() < 0.5, retained=True),
            ]
            what += [Reported(values, retained=True)]
        return Happening(on, entity_id, chance.choice(what))


def _moments(chance: random.Random, day: Day, changes: Sequence[Any]) -> list[int]:
    """Moments to begin at: any, and those around changes."""
    anywhere = [chance.randrange(day.began - 1, day.now + 1) for _ in range(8)]
    near = [one.at + chance.choice([0, 1, -1, 400, 1000, 2500, 7000]) for one in changes]
    return [day.began - 1, *anywhere, *chance.sample(near, min(8, len(near)))]


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_span_that_begins_at_any_moment_is_replayed_as_it_was(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    print("seed", seed)  # noqa: T201
    chance, day = random.Random(seed), Day(engine, monkeypatch)
    source = await engine.thing(no_data_after_s=chance.choice([None, 15, 60]))
    target = await engine.thing()
    link = await engine.link(source, target)
    await _rules(engine, chance, source, "object", "t")
    await _rules(
        engine, chance, link, "link", chance.choice(["source.t", "target.t", "(source.t + target.t) / 2"])
    )
    happening = _Happenings(chance, day, source, target, link)

    def together(tx: Transaction) -> None:
        turn = engine.reactions.turn(tx)
        for _ in range(chance.choice([1, 1, 1, 2, 4])):
            turn.take(happening())
        turn.finish()

    for _ in range(40):
        # Some moments are those at which time alone does something.
        await day.pass_until(
            day.now + chance.choice([0, 1, 500, 1000, 1500, 2500, 4500, 7000, 22_000, 70_000])
        )
        await engine.store.write(together)
    await day.pass_until(day.now + chance.choice([1, 30_000]))

    for kind, entity_id in ((OwnerType.OBJECT, source), (OwnerType.LINK, link)):
        changes = await engine.store.read(
            lambda conn, entity_id=entity_id: standings.changes(conn, limit=1000, entity_id=entity_id)
        )
        for since in _moments(chance, day, changes):
            await agrees(engine, kind, entity_id, Span(since, day.now))


@pytest.mark.parametrize("hold_s", [0, 3])
async def test_a_period_that_begins_and_ends_while_nothing_happens_is_replayed(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, hold_s: float
) -> None:
    day = Day(engine, monkeypatch)
    edges = [datetime.fromtimestamp(day.began / 1000 + after_s, UTC) for after_s in (600, 1200)]
    begins, ends = (f"{edge:%H:%M:%S}" for edge in edges)
    days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    period = {"days": days, "from": begins, "to": ends, "zone": "UTC"}
    owner_id, operation_id = await engine.script("true")
    await engine.conditions(
        owner_id, {"state": "alarm", "when": "t > 60", "period": period, "hold_s": hold_s}
    )
    await engine.triggers(owner_id, {"states": ["alarm"], "operation_id": operation_id})
    await engine.report(owner_id, t=65)
    await day.pass_until(day.began + 300_000)
    since = day.now
    await day.pass_until(day.began + 3_600_000)
    changes = await engine.store.read(lambda conn: standings.changes(conn, limit=9, entity_id=owner_id))
    assert [one.to_state for one in changes] == ["working", "alarm", "working"]
    await agrees(engine, OwnerType.OBJECT, owner_id, Span(since, day.now))


@pytest.mark.parametrize("later", [{"t": 21}, None])
async def test_what_the_broker_had_kept_is_no_sign_of_life_in_a_replay_either(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, later: dict[str, Any] | None
) -> None:
    day = Day(engine, monkeypatch)
    owner_id, operation_id = await engine.script("true")
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 80"})
    await engine.triggers(owner_id, {"states": ["working"], "operation_id": operation_id})
    for what in (Reported({"t": 20}, retained=True), *([] if later is None else [Reported(later)])):
        await day.pass_until(day.now + 1000)
        await engine.happens(owner_id, what)
    await day.pass_until(day.now + 1000)
    await agrees(engine, OwnerType.OBJECT, owner_id, Span(day.began - 1, day.now))
