"""Replays: what a trigger, or proposed conditions, would have done with what was reported. Writes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from iotjobs.domain.entities import OwnerType
from iotjobs.domain.errors import NotFound
from iotjobs.domain.replay import Replayed, replay
from iotjobs.domain.states import Condition
from iotjobs.domain.triggers import Trigger
from iotjobs.store import past, rules, standings
from iotjobs.store.standings import Snapshot

ENTITIES = 500  # of one class


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


def of_trigger(conn: Connection, trigger_id: str, span: Span) -> list[EntityReplay]:
    """What a trigger would have decided, for its entity, or those of its class; also one that is off.

    Raises:
        NotFound: there is none.
    """
    row = rules.trigger_row(conn, trigger_id)
    if row is None:
        raise NotFound(f"there is no trigger {trigger_id}")
    trigger = replace(rules.trigger_of(row), enabled=True, dry=False)
    return [
        _one(conn, which, (trigger,), None, span) for which in _entities(conn, row.owner_kind, row.owner_id)
    ]


def of_conditions(
    conn: Connection, kind: str, owner_id: str, conditions: Sequence[Condition], span: Span
) -> list[EntityReplay]:
    """What these conditions would have led to, and the triggers that are there.

    Raises:
        NotFound: there is no such entity.
    """
    return [_one(conn, which, None, conditions, span) for which in _entities(conn, kind, owner_id)]


def _entities(conn: Connection, kind: str, owner_id: str) -> list[tuple[OwnerType, str]]:
    if kind == "class":
        return past.members_of(conn, owner_id, ENTITIES)
    return [(OwnerType[kind.upper()], owner_id)]


def _one(
    conn: Connection,
    which: tuple[OwnerType, str],
    triggers: Sequence[Trigger] | None,
    conditions: Sequence[Condition] | None,
    span: Span,
) -> EntityReplay:
    load: Any = standings.load_object if which[0] is OwnerType.OBJECT else standings.load_link
    snapshot: Snapshot | None = load(conn, which[1])
    if snapshot is None:
        raise NotFound(f"there is no {which[0].name.lower()} {which[1]}")
    entity = snapshot.entity
    if conditions is None:
        conditions = rules.conditions_of(conn, entity)
    if triggers is None:
        triggers = [trigger for trigger, _ in rules.triggers_of(conn, entity)]
    # What had to hold when the span begins may have held before it.
    warm_ms = round(1000 * max((condition.hold_s for condition in conditions), default=0))
    recorded = past.past_of(conn, snapshot, triggers, span.since - warm_ms, span.until)
    found = replay(conditions, triggers, recorded)
    found.complete = found.complete and past.reaches_back(conn, span.since)
    found.changes = [change for change in found.changes if change.at >= span.since]
    found.firings = [firing for firing in found.firings if firing.at >= span.since]
    return EntityReplay(snapshot, found)
