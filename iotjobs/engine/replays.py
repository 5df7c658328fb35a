"""Replays: what a trigger, or proposed conditions, would have done with what was reported. Writes nothing.

What was recorded is read in pages, and decided on in slices, so that neither a snapshot of the database nor
the loop is held for long; what all of it may cost is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.errors import NotFound
from iotjobs.domain.replay import MOST_STEPS, Replay, Replayed
from iotjobs.domain.states import Condition
from iotjobs.domain.triggers import Trigger
from iotjobs.store import past, rules, standings
from iotjobs.store.session import Store
from iotjobs.store.standings import Snapshot

ENTITIES = 500  # of one class
MOST_ROWS = 100_000  # of values and changes: a day of a device that reports each second
SLICE_S = 0.003  # then the loop's other tasks have their turn


@dataclass(frozen=True, slots=True)
class Span:
    """From when to when, milliseconds."""

    since: int
    until: int


@dataclass(frozen=True, slots=True)
class EntityReplay:
    """What would have been of one entity."""

    snapshot: Snapshot
    replayed: Replayed


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be replayed.

    Attributes:
        of_class: of whatever entities a class has.
        triggers: None: those that each entity has; `conditions` likewise, and for a member of the class
            that has a list of its own.
    """

    span: Span
    of_class: bool
    triggers: Sequence[Trigger] | None = None
    conditions: Sequence[Condition] | None = None


@dataclass(slots=True)
class _Budget:
    """What is left of what one replay may cost."""

    rows: int = field(default_factory=lambda: MOST_ROWS)
    steps: int = field(default_factory=lambda: MOST_STEPS)

    @property
    def spent(self) -> bool:
        return self.rows <= 0 or self.steps <= 0


async def of_trigger(store: Store, trigger_id: str, span: Span) -> list[EntityReplay]:
    """What a trigger would have decided, for its entity, or those of its class; also one that is off.

    The last one may not be `complete`, and more of them left out, when it was too much. Entities of a class that
    are deleted meanwhile are left out.

    Raises:
        NotFound: there is none.
    """

    def begin(conn: Connection) -> tuple[Trigger, str, list[_Which]]:
        row = rules.trigger_row(conn, trigger_id)
        if row is None:
            raise NotFound(f"there is no trigger {trigger_id}")
        return rules.trigger_of(row), row.owner_kind, _entities(conn, row.owner_kind, row.owner_id)

    trigger, kind, entities = await store.read(begin)
    tried = replace(trigger, enabled=True, dry=False)
    return await _all(store, entities, Question(span, kind == "class", [tried]))


async def of_conditions(
    store: Store, kind: str, owner_id: str, conditions: Sequence[Condition], span: Span
) -> list[EntityReplay]:
    """What these conditions would have led to, and the triggers that are there; see `of_trigger`.

    Raises:
        NotFound: there is no such entity.
    """
    entities = await store.read(lambda conn: _entities(conn, kind, owner_id))
    return await _all(store, entities, Question(span, kind == "class", conditions=conditions))


_Which = tuple[OwnerType, str]


def _entities(conn: Connection, kind: str, owner_id: str) -> list[_Which]:
    if kind == "class":
        return past.members_of(conn, owner_id, ENTITIES)
    return [(OwnerType[kind.upper()], owner_id)]


async def _all(store: Store, entities: Iterable[_Which], question: Question) -> list[EntityReplay]:
    budget, found = _Budget(), list[EntityReplay]()
    for which in entities:
        if budget.spent:
            found[-1].replayed.complete = False
            break
        try:
            found.append(await _one(store, which, question, budget))
        except NotFound:
            if not question.of_class:
                raise
    return found


@dataclass(frozen=True, slots=True)
class _Start:
    snapshot: Snapshot
    conditions: Sequence[Condition]
    triggers: Sequence[Trigger]
    begin: past.Beginning


def _start(conn: Connection, which: _Which, question: Question) -> _Start:
    snapshot = standings.load(conn, *which)
    if snapshot is None:
        raise NotFound(f"there is no {which[0].name.lower()} {which[1]}")
    entity, conditions, triggers = snapshot.entity, question.conditions, question.triggers
    own = rules.own_conditions(conn, entity.id) if question.of_class else None
    if own is not None:  # it stands in the place of whatever list its class has
        conditions = own
    elif conditions is None:
        conditions = rules.conditions_of(conn, entity)
    if triggers is None:
        triggers = [trigger for trigger, _ in rules.triggers_of(conn, entity)]
    warm_ms = round(1000 * max((condition.hold_s for condition in conditions), default=0))
    begin = past.beginning(conn, snapshot, triggers, question.span.since, warm_ms)
    return _Start(snapshot, conditions, triggers, begin)


async def _one(store: Store, which: _Which, question: Question, budget: _Budget) -> EntityReplay:
    span = question.span
    start = await store.read(lambda conn: _start(conn, which, question))
    entity, until, values = start.snapshot.entity, span.until, {}
    since = start.begin.events_since
    changes, until = await _pages(store, past.changes, entity.id, Span(since, until), budget)
    ends = {"source": entity.source, "target": entity.target}
    owners = {"entity": entity.id} | {of: end.id for of, end in ends.items() if end is not None}
    for of, owner_id in owners.items():
        values[of], until = await _pages(store, past.values, owner_id, Span(since, until), budget)
    recorded = past.past_of(start.begin, values, changes, until)
    run = Replay(start.conditions, start.triggers, recorded, budget.steps)
    await _in_slices(run)
    budget.steps = run.steps_left
    found = run.result
    reaches = await store.read(lambda conn: past.reaches_back(conn, since))
    found.complete = found.complete and start.begin.complete and until == span.until and reaches
    return EntityReplay(start.snapshot, found)


_Page = Callable[[Connection, str, int, int, Any], Sequence[Any]]


async def _pages(
    store: Store, page: _Page, entity_id: str, span: Span, budget: _Budget
) -> tuple[list[Any], int]:
    """The rows of all pages, as far as the budget reaches; and the last moment of which all are there."""
    rows: list[Any] = []
    since, until = span.since, span.until
    while True:
        after = rows[-1] if rows else None
        more = await store.read(lambda conn, after=after: page(conn, entity_id, since, until, after))  # type: ignore[misc]
        rows += more
        budget.rows -= len(more)
        if len(more) < past.PAGE:
            return rows, until
        if budget.rows <= 0:
            return rows, min(until, rows[-1].at - 1)


async def _in_slices(run: Replay) -> None:
    since = clock.monotonic()
    for _ in run.work():
        if clock.monotonic() - since > SLICE_S:
            await asyncio.sleep(0)
            since = clock.monotonic()
