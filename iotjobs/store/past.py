"""What was recorded of an entity, for a replay: its reports and writes, and states that conditions did not decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, func, select

from iotjobs.domain.entities import OwnerType
from iotjobs.domain.replay import Event, Past
from iotjobs.domain.states import CREATED, Standing
from iotjobs.domain.triggers import HOUR_MS, Decision, Trigger
from iotjobs.store import tables
from iotjobs.store.standings import Snapshot
from iotjobs.store.state_tables import firings, property_history, state_changes, traces

V, H, X, F = property_history.c, state_changes.c, traces.c, firings.c
# Who decides these is not in the conditions.
_RECORDED = frozenset({"forced", "offline", "no_data"})


def past_of(conn: Connection, snapshot: Snapshot, rules: Sequence[Trigger], since: int, until: int) -> Past:
    """All that is known of an entity from a moment on.

    Values before the first recorded change are taken to be those of now, where nothing was recorded since,
    and not to be there, where something was and nothing before.
    """
    entity = snapshot.entity
    facts = replace(snapshot.facts, properties=_before(conn, entity.id, entity.properties, since))
    events = list(_values(conn, entity.id, "entity", since, until))
    if entity.source is not None and entity.target is not None:
        source, target = entity.source, entity.target
        facts = replace(
            facts,
            source=_before(conn, source.id, source.properties, since),
            target=_before(conn, target.id, target.properties, since),
        )
        events += _values(conn, source.id, "source", since, until)
        events += _values(conn, target.id, "target", since, until)
    standing, pins = _states(conn, entity.id, since, until)
    events += pins
    # At the same moment: what was reported, then what it ended, then what began.
    events.sort(key=lambda event: (event.at, event.released, event.pinned is not None))
    return Past(facts, standing, events, until, _fired(conn, rules, entity.id, since))


def _before(conn: Connection, entity_id: str, now: Any, since: int) -> dict[str, Any]:
    """Properties as they were at a moment."""
    changed = set(
        conn.execute(select(V.name).where(V.entity_id == entity_id, V.at >= since).group_by(V.name)).scalars()
    )
    found = {name: value for name, value in now.items() if name not in changed}
    if changed:
        newest = (
            select(func.max(V.id))
            .where(V.entity_id == entity_id, V.at < since, V.name.in_(sorted(changed)))
            .group_by(V.name)
        )
        for row in conn.execute(select(V.name, V.value).where(V.id.in_(newest))):
            found[row.name] = row.value
    return found


def _values(conn: Connection, entity_id: str, of: str, since: int, until: int) -> Iterator[Event]:
    query = (
        select(V.name, V.value, V.at, V.by, V.report)
        .where(V.entity_id == entity_id, V.at >= since, V.at <= until)
        .order_by(V.id)
    )
    key, values = None, dict[str, Any]()
    for row in conn.execute(query):
        own = (row.at, row.report, row.by)
        if key is not None and own != key:
            yield Event(key[0], values, of, key[2])
            values = {}
        key, values = own, {**values, row.name: row.value}
    if key is not None:
        yield Event(key[0], values, of, key[2])


def _states(conn: Connection, entity_id: str, since: int, until: int) -> tuple[Standing, list[Event]]:
    """The state before the first event, and the states that were not decided by conditions."""
    query = select(state_changes).where(H.entity_id == entity_id)
    last = conn.execute(query.where(H.at < since).order_by(H.id.desc()).limit(1)).first()
    following = conn.execute(query.where(H.at >= since, H.at <= until).order_by(H.id)).all()
    standing, events = Standing(), []
    if last is not None:
        standing = Standing(last.to_state, last.at, heard_at=last.at)
    elif following:
        state = following[0].from_state
        standing = Standing(state, 0, heard_at=None if state == CREATED else 0)
    recorded = last is not None and last.why["by"] in _RECORDED
    if recorded:
        events.append(Event(since, pinned=standing.state))
    for change in following:
        pinned = change.why["by"] in _RECORDED
        if recorded and not pinned:
            events.append(Event(change.at, released=True))
        if pinned:
            events.append(Event(change.at, pinned=change.to_state))
        recorded = pinned
    return standing, events


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
