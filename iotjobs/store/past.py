"""What was recorded of an entity, for a replay: its reports and writes, and states that conditions did not decide.

It may be much, so it is read in pages (`values`, `changes`), each a short read of its own.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby
from math import inf
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, func, or_, select

from iotjobs import clock
from iotjobs.domain.entities import Entity, OwnerType
from iotjobs.domain.expressions import Facts
from iotjobs.domain.replay import Event, Past
from iotjobs.domain.states import CREATED, Standing, overruled
from iotjobs.domain.triggers import HOUR_MS, Decision, Trigger
from iotjobs.store import tables
from iotjobs.store.standings import Snapshot
from iotjobs.store.state_tables import firings, property_history, state_changes, traces

V, H, X, F = property_history.c, state_changes.c, traces.c, firings.c
PAGE = 2000  # rows: a hundredth of a second


@dataclass(frozen=True, slots=True)
class Beginning:
    """What an entity was like before a replay.

    Attributes:
        since: when what is replayed begins; not before the entity was made.
        warm_ms, made_at: see `Past`; what follows is of the moment so long before.
        facts: what conditions could read.
        last: the change of state before it, or None; `reason` likewise, or a later row that has the reason only.
        fired: see `Past`; of the moment when what is replayed begins.
        now: the entity now.
        complete: False when values of then are not kept any more.
    """

    since: int
    warm_ms: int
    made_at: int
    facts: Facts
    last: Any
    reason: Any
    fired: Mapping[str, Sequence[int]]
    now: Snapshot
    complete: bool

    @property
    def events_since(self) -> int:
        """The moment when events begin."""
        return self.since - self.warm_ms


def beginning(
    conn: Connection, snapshot: Snapshot, rules: Sequence[Trigger], since: int, warm_ms: int
) -> Beginning:
    """What is known of an entity at a moment.

    Values before the first recorded change are taken to be those of now, where nothing was recorded since,
    and not to be there, where something was and nothing before.
    """
    entity = snapshot.entity
    made_at = _made_at(conn, entity)
    since = max(since, made_at)
    warm_ms = min(warm_ms, since - made_at)
    moment = since - warm_ms
    properties, complete = _before(conn, entity, moment)
    facts = replace(snapshot.facts, properties=properties)
    if entity.source is not None and entity.target is not None:
        source, source_complete = _before(conn, entity.source, moment)
        target, target_complete = _before(conn, entity.target, moment)
        facts = replace(facts, source=source, target=target)
        complete = complete and source_complete and target_complete
    earlier = select(state_changes).where(H.entity_id == entity.id, H.at < moment)
    earlier = earlier.order_by(H.id.desc()).limit(1)
    reason = conn.execute(earlier).first()
    last = conn.execute(earlier.where(H.from_state != H.to_state)).first()
    fired = _fired(conn, rules, entity.id, since)
    return Beginning(since, warm_ms, made_at, facts, last, reason, fired, snapshot, complete)


def past_of(
    begin: Beginning, values: Mapping[str, Sequence[Any]], changes: Sequence[Any], until: int
) -> Past:
    """All that is known of an entity for a replay; its events are made as they are asked for.

    Args:
        begin: where it begins.
        values: rows of `values`: of the `entity`, or of a link's `source` and `target` too.
        changes: rows of `changes`.
        until: the last moment.
    """
    written = heapq.merge(*(_written(rows, of) for of, rows in values.items()), key=itemgetter(0))
    pins = _pins(begin, changes)
    heard_from = _heard_from(begin, changes, chain.from_iterable(values.values()))
    steps = heapq.merge(_reports(written, heard_from), pins, key=itemgetter(0))
    events = (event for _, event in steps if event.at <= until)
    standing = _standing(begin, changes)
    its = (begin.fired, begin.since, begin.warm_ms, begin.made_at, begin.complete)
    return Past(begin.facts, standing, events, until, *its)


def _made_at(conn: Connection, entity: Entity) -> int:
    E = (tables.objects if entity.owner_type is OwnerType.OBJECT else tables.links).c
    return int(conn.execute(select(E.created_at).where(E.id == entity.id)).scalar_one())


def _before(conn: Connection, entity: Entity, since: int) -> tuple[dict[str, Any], bool]:
    """Properties as they were at a moment, and whether all of them are known."""
    its = V.entity_id == entity.id
    changed = set(conn.execute(select(V.name).where(its, V.at >= since).group_by(V.name)).scalars())
    found = {name: value for name, value in entity.properties.items() if name not in changed}
    if not changed:
        return found, True
    newest = select(func.max(V.id)).where(its, V.at < since, V.name.in_(sorted(changed))).group_by(V.name)
    rows = conn.execute(select(V.name, V.value, V.gone).where(V.id.in_(newest))).all()
    found.update({row.name: row.value for row in rows if not row.gone})
    # One that has none was not there, unless it was set so long ago that this is deleted.
    return found, len(rows) == len(changed) or reaches_back(conn, _made_at(conn, entity))


def values(conn: Connection, entity_id: str, since: int, until: int, after: Any) -> Sequence[Any]:
    """A page of the values that an entity's properties got, by their moments, behind a row or from the first one."""
    query = select(V.id, V.name, V.value, V.gone, V.at, V.by, V.step)
    query = query.where(V.entity_id == entity_id, V.at >= since, V.at <= until)
    if after is not None:
        query = query.where(V.at >= after.at, or_(V.at > after.at, V.id > after.id))
    return conn.execute(query.order_by(V.at, V.id).limit(PAGE)).all()


def changes(conn: Connection, entity_id: str, since: int, until: int, after: Any) -> Sequence[Any]:
    """A page of an entity's changes of state, likewise."""
    query = select(state_changes).where(H.entity_id == entity_id, H.at >= since, H.at <= until)
    if after is not None:
        query = query.where(H.id > after.id)
    return conn.execute(query.order_by(H.id).limit(PAGE)).all()


def _written(rows: Iterable[Any], of: str) -> Iterator[tuple[int, str, Any]]:
    """Values in the order of their ids: they were given while the entity was locked, whatever clocks say."""
    return ((row.id, of, row) for row in sorted(rows, key=itemgetter(0)))


def _heard_from(begin: Beginning, changes: Sequence[Any], values: Iterable[Any]) -> float:
    """The step from which on it was heard of an entity: what was set while it stayed `created` was no sign of life."""
    left = next((change for change in changes if change.from_state == CREATED != change.to_state), None)
    if left is None:
        return inf if _standing(begin, changes).state == CREATED else 0
    step = clock.step_of(left.id)
    if overruled(left.why) is not None:
        return step
    return max((row.step for row in values if row.at == left.at and row.step < step), default=step)


def _reports(rows: Iterable[tuple[int, str, Any]], heard_from: float) -> Iterator[tuple[int, Event]]:
    """What was set at once, with its step."""
    for (step, of, at, by), its in groupby(rows, lambda row: (row[2].step, row[1], row[2].at, row[2].by)):
        values, gone = {}, set()
        for _, _, row in its:
            if row.gone:
                gone.add(row.name)
            else:
                values[row.name] = row.value
        silent = step < heard_from or (of == "entity" and by is not None)
        yield step, Event(at, values, of, silent=silent, gone=frozenset(gone))


def _standing(begin: Beginning, changes: Sequence[Any]) -> Standing:
    """The state that an entity really was in right before what is replayed."""
    real = [change for change in changes if change.from_state != change.to_state]
    last = next((change for change in reversed(real) if change.at < begin.since), begin.last)
    if last is not None:
        return Standing(last.to_state, last.at, heard_at=last.at)
    if real:
        state = real[0].from_state
        return Standing(state, 0, heard_at=None if state == CREATED else 0)
    # What was before may be deleted, for nothing has changed for long.
    return begin.now.standing if begin.now.standing.since < begin.since else Standing()


def _pins(begin: Beginning, changes: Sequence[Any]) -> Iterator[tuple[int, Event]]:
    """The states that were not decided by conditions, and a first sign of life, each with its step."""
    before, state = _reason(begin, changes)
    if overruled(before) is not None:
        yield 0, Event(begin.events_since - 1, pinned=state)
    for change in changes:
        step, pinned = clock.step_of(change.id), overruled(change.why) is not None
        by_time = _by_time(before, change)
        if overruled(before) is not None and not pinned:
            yield step, Event(change.at, released=True, by_time=by_time)
        if pinned:
            yield step, Event(change.at, pinned=change.to_state, by_time=by_time)
        if change.from_state == CREATED and change.why["by"] == "default":
            yield step, Event(change.at, heard=True)
        before = change.why


def _reason(begin: Beginning, changes: Sequence[Any]) -> tuple[Mapping[str, Any], str]:
    """Why an entity was in its state when events begin, and in which."""
    if begin.reason is not None:
        return begin.reason.why, begin.reason.to_state
    if changes:
        return {"by": None}, changes[0].from_state
    return begin.now.overruled or {"by": None}, begin.now.standing.state  # see `_standing`


def _by_time(before: Mapping[str, Any], change: Any) -> bool:
    """Whether a change to or from a recorded state came by time alone."""
    if before["by"] == "forced":
        return bool(before["until"] == change.at)
    return bool(before["by"] != "offline" and change.why["by"] == "no_data")


def _fired(conn: Connection, rules: Sequence[Trigger], entity_id: str, since: int) -> dict[str, list[int]]:
    """When triggers had fired before a moment, as far as that bears on what comes after it."""
    back = {rule.id: since - max(HOUR_MS, round(rule.cooldown_s * 1000)) for rule in rules}
    found: dict[str, list[int]] = {rule.id: [] for rule in rules}
    if not rules:
        return found
    # By the entity alone: the other columns have indexes too, which lead to more than one entity's.
    query = select(X.trigger_id, X.decision, X.at).where(
        X.owner_id == entity_id, X.at < since, X.at >= min(back.values())
    )
    for row in conn.execute(query.order_by(X.id)):
        if row.decision == Decision.FIRED and row.at >= back.get(row.trigger_id, since):
            found[row.trigger_id].append(row.at)
    for rule in rules:
        found[rule.id].sort()
        if rule.cooldown_s and not found[rule.id]:  # what is kept longer than traces are
            last = select(func.max(F.at)).where(
                F.trigger_id == rule.id, F.entity_id == entity_id, F.at < since
            )
            found[rule.id] = [at for at in conn.execute(last).scalars() if at is not None]
    return found


def reaches_back(conn: Connection, moment: int) -> bool:
    """Whether nothing that was recorded since a moment has been deleted: the oldest goes first."""
    oldest = conn.execute(select(V.id, V.at).order_by(V.id).limit(1)).first()
    return oldest is None or oldest.id == 1 or oldest.at <= moment


def members_of(conn: Connection, class_id: str, limit: int) -> list[tuple[OwnerType, str]]:
    """Entities of a class."""
    found: list[tuple[OwnerType, str]] = []
    for owner_type, table in ((OwnerType.OBJECT, tables.objects), (OwnerType.LINK, tables.links)):
        query = select(table.c.id).where(table.c.class_id == class_id).order_by(table.c.id)
        rows = conn.execute(query.limit(limit - len(found))).scalars()
        found += [(owner_type, entity_id) for entity_id in rows]
    return found
