"""Entities with all that bears on their state, and what is remembered of it.

A `Snapshot` is read at the beginning of a change, after `lock`; what came of it is written by `save` once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from sqlalchemy import Connection, bindparam, exists, literal_column, or_, select, update

from iotjobs import clock
from iotjobs.domain.entities import Entity, OwnerType
from iotjobs.domain.expressions import Facts
from iotjobs.domain.states import Forced, Standing
from iotjobs.store import entities, references, tables
from iotjobs.store.spans import ALWAYS, Between, newest
from iotjobs.store.state_tables import (
    WAKES,
    property_history,
    report_ids,
    standings,
    state_changes,
    trigger_timers,
)
from iotjobs.store.statements import Among, Prepared, insert_if_new
from iotjobs.store.writer import Transaction

C, O, L, S = tables.classes.c, tables.objects.c, tables.links.c, standings.c  # noqa: E741 - as in the queries
REPORT_IDS_KEPT = 256


@dataclass(slots=True)
class Snapshot:
    """An entity as it stood when its row was read, and as one transaction goes on to change it.

    Attributes:
        entity: its properties, the effective ones, are this snapshot's own dict.
        facts: what conditions may read; its properties are that dict.
        own: its own properties, without what its class gives.
        types: of its properties, the class's under its own.
        change_id: of its last change of state; None: it never had one.
        depth: of that change, how many triggers stand before it in its chain of causes.
        hold_depths: likewise of what began each hold, by its key; 0 where there is none.
        why: of that change.
        overruled: the reason of the state now, if it is not the conditions that decide it.
        reports: how many had an effect, with the words of its connection that have ids.
        superseded: how many, and words of its connection, came too quickly and lived on in a later one only.
        online: the last such word; None: there was none.
        kept: there is a row of its state.
        waits: a trigger's timer may wait for it.
        wake_at: when it was to be looked at next; None: not by itself.
    """

    entity: Entity
    facts: Facts
    own: dict[str, Any]
    types: Mapping[str, str]
    no_data_after_s: float | None
    standing: Standing
    change_id: str | None
    depth: int
    hold_depths: Mapping[str, int]
    why: Mapping[str, Any]
    overruled: Mapping[str, Any] | None
    reports: int
    superseded: int
    online: bool | None
    kept: bool
    waits: bool
    wake_at: int | None

    def set_properties(self, changed: Mapping[str, Any]) -> None:
        """Give properties other values."""
        cast("dict[str, Any]", self.entity.properties).update(changed)
        self.own.update(changed)

    def heard(self, at: int) -> None:
        """Something was heard of it."""
        before = self.standing
        self.standing = Standing(
            before.state, before.since, before.holding, at, False, before.forced, before.known_until
        )

    def is_news(self, online: bool) -> bool:
        """Whether a word of its connection that the broker had kept tells what is not known.

        Another than the last was said since. The same as the last is that one, or tells as much; and
        where there was none, what was heard of the device may be newer.
        """
        return self.standing.heard_at is None if self.online is None else online != self.online

    def see_ends(self, end: Entity) -> None:
        """A link's end is this one from now on."""
        entity = self.entity
        assert entity.source is not None
        assert entity.target is not None
        source = end if entity.source.id == end.id else entity.source
        target = end if entity.target.id == end.id else entity.target
        self.entity = replace(entity, source=source, target=target)
        self.facts = replace(self.facts, source=source.properties, target=target.properties)


_STANDING = (
    S.state,
    S.since,
    S.why,
    S.overruled,
    S.change_id,
    S.depth,
    S.hold_depths,
    S.holding,
    S.known_until,
    S.heard_at,
    S.offline,
    S.forced,
    S.reports,
    S.superseded,
    S.online,
    S.wake_at,
)
_CLASS = (
    C.properties.label("defaults"),
    C.property_types.label("default_types"),
    C.no_data_after_s.label("default_no_data"),
)


def _timers_of(entity_id: Any) -> Any:
    return exists().where(trigger_timers.c.entity_id == entity_id).label("waits")


_every_object = (
    select(
        O.id, O.name, O.class_id, O.properties, O.property_types, O.tags, O.no_data_after_s, O.thing, O.ssh
    )
    .add_columns(*_CLASS, *_STANDING, _timers_of(O.id))
    .join_from(tables.objects, tables.classes, O.class_id == C.id, isouter=True)
    .join(standings, S.entity_id == O.id, isouter=True)
)
_objects = Prepared(_every_object.where(Among(O.id, "wanted")))
_object = Prepared(_every_object.where(O.id == bindparam("wanted")))
_links = (
    select(L.id, L.name, L.class_id, L.properties, L.property_types, L.tags, L.source, L.target)
    .add_columns(*_CLASS, *_STANDING, _timers_of(L.id))
    .join_from(tables.links, tables.classes, L.class_id == C.id, isouter=True)
    .join(standings, S.entity_id == L.id, isouter=True)
    .where(L.id == bindparam("wanted"))
)
_link = Prepared(_links)


def load_object(conn: Connection, object_id: str) -> Snapshot | None:
    """An object."""
    row = _object.first(conn, {"wanted": object_id})
    return None if row is None else _object_of(row)


def load_objects(conn: Connection, object_ids: Iterable[str]) -> dict[str, Snapshot]:
    """Objects by their ids, in one statement; SQLite reads them when they are needed, which costs next to nothing."""
    wanted = sorted(set(object_ids))
    if not wanted or conn.dialect.name != "postgresql":
        return {}
    return {row.id: _object_of(row) for row in _objects.all(conn, {"wanted": wanted})}


def _object_of(row: Any) -> Snapshot:
    after_s = row.default_no_data if row.no_data_after_s is None else row.no_data_after_s
    return _snapshot(row, entities.object_of(row), after_s)


def load(conn: Connection, owner_type: OwnerType, entity_id: str) -> Snapshot | None:
    """An object or a link."""
    return load_object(conn, entity_id) if owner_type is OwnerType.OBJECT else load_link(conn, entity_id)


def load_link(conn: Connection, link_id: str, end: Mapping[str, Snapshot] | None = None) -> Snapshot | None:
    """A link. Its ends are those of `end` by object id, or read."""
    row = _link.first(conn, {"wanted": link_id})
    if row is None:
        return None
    known = end or {}
    source, target = (known.get(at) or load_object(conn, at) for at in (row.source, row.target))
    if source is None or target is None:
        return None  # it was deleted since, and then they were
    properties = {**(row.defaults or {}), **row.properties}
    kind, ends = OwnerType.LINK, (source.entity, target.entity)
    entity = Entity(row.id, kind, row.name, row.class_id, properties, source=ends[0], target=ends[1])
    return _snapshot(row, entity, None)


def _snapshot(row: Any, entity: Entity, no_data_after_s: float | None) -> Snapshot:
    known = row.state is not None  # else it was made a moment ago, and this is its first change
    standing = Standing()
    if known:
        standing = Standing(
            row.state,
            row.since,
            row.holding,
            row.heard_at,
            row.offline,
            None if row.forced is None else Forced(**row.forced),
            row.known_until,
        )
    source, target = entity.source, entity.target
    return Snapshot(
        entity,
        Facts(
            entity.properties,
            entity.name,
            tuple(row.tags),
            None if source is None else source.properties,
            None if target is None else target.properties,
        ),
        own=row.properties,
        types={**(row.default_types or {}), **row.property_types},
        no_data_after_s=no_data_after_s,
        standing=standing,
        change_id=row.change_id,
        depth=row.depth or 0,
        hold_depths=row.hold_depths or {},
        why=row.why or {},
        overruled=row.overruled,
        reports=row.reports or 0,
        superseded=row.superseded or 0,
        online=row.online,
        kept=known,
        waits=bool(row.waits),
        wake_at=row.wake_at,
    )


_of_object = Prepared(
    select(L.id).where(or_(L.source == bindparam("at"), L.target == bindparam("at"))).order_by(L.id)
)


def links_of(conn: Connection, object_id: str) -> list[str]:
    """Ids of the links that the object is an end of."""
    return [row.id for row in _of_object.all(conn, {"at": object_id})]


_set_object = Prepared(
    update(tables.objects).where(O.id == bindparam("is_id")).values(properties=bindparam("properties"))
)
_set_link = Prepared(
    update(tables.links).where(L.id == bindparam("is_id")).values(properties=bindparam("properties"))
)


def save_properties(tx: Transaction, snapshots: Iterable[Snapshot]) -> None:
    """Keep entities' own properties. Their versions stay: those are of what people define."""
    rows: dict[OwnerType, list[dict[str, Any]]] = {OwnerType.OBJECT: [], OwnerType.LINK: []}
    for snapshot in snapshots:
        entity = snapshot.entity
        rows[entity.owner_type].append({"is_id": entity.id, "properties": snapshot.own})
    for owner_type, statement in ((OwnerType.OBJECT, _set_object), (OwnerType.LINK, _set_link)):
        if rows[owner_type]:
            statement.run_each(tx.conn, rows[owner_type])


_CHANGING = (
    "state",
    "since",
    "why",
    "overruled",
    "change_id",
    "depth",
    "hold_depths",
    "holding",
    "known_until",
    "heard_at",
    "offline",
    "forced",
    "wake_at",
    "reports",
    "superseded",
    "online",
)
_update = Prepared(
    update(standings)
    .where(S.entity_id == bindparam("is_id"))
    .values({name: bindparam(f"to_{name}") for name in _CHANGING})
)


def save(tx: Transaction, snapshots: Iterable[tuple[Snapshot, int | None]]) -> None:
    """Keep what is remembered of entities' states, each with the moment when time alone may change it."""
    changed = []
    for snapshot, wake_at in snapshots:
        entity, values = snapshot.entity, _remembered(snapshot, wake_at)
        if not snapshot.kept:
            row = {"entity_id": entity.id, "owner_type": int(entity.owner_type), **values}
            snapshot.kept = True
            if insert_if_new(tx.conn, standings, row):
                continue  # else `states.wake` made it at the same moment
        changed.append({"is_id": entity.id, **{f"to_{name}": value for name, value in values.items()}})
    if changed:
        _update.run_each(tx.conn, changed)


def _remembered(snapshot: Snapshot, wake_at: int | None) -> dict[str, Any]:
    standing = snapshot.standing
    return {
        "state": standing.state,
        "since": standing.since,
        "why": dict(snapshot.why),
        "overruled": None if snapshot.overruled is None else dict(snapshot.overruled),
        "change_id": snapshot.change_id,
        "depth": snapshot.depth,
        "hold_depths": dict(snapshot.hold_depths) or None,
        "holding": dict(standing.holding),
        "known_until": standing.known_until,
        "heard_at": standing.heard_at,
        "offline": standing.offline,
        "forced": None if standing.forced is None else asdict(standing.forced),
        "wake_at": wake_at,
        "reports": snapshot.reports,
        "superseded": snapshot.superseded,
        "online": snapshot.online,
    }


_wake = Prepared(
    update(standings).where(S.entity_id == bindparam("is_id")).values(wake_at=bindparam("to_wake_at"))
)


def wake(tx: Transaction, entity_id: str, at: int) -> None:
    """Have an entity's state decided anew at this moment."""
    _wake.run(tx.conn, {"is_id": entity_id, "to_wake_at": at})


_waking = Prepared(
    select(S.entity_id, S.owner_type)
    .where(literal_column(WAKES), S.wake_at <= bindparam("now"))
    .order_by(S.wake_at)
    .limit(bindparam("limit"))
)


def waking(conn: Connection, now: int, limit: int) -> list[tuple[OwnerType, str]]:
    """Entities whose state time alone may change now."""
    rows = _waking.all(conn, {"now": now, "limit": limit})
    return [(OwnerType(row.owner_type), row.entity_id) for row in rows]


def forget(tx: Transaction, entity_id: str) -> None:
    """Let go of what is remembered of an entity that is not there any more; its changes and traces stay."""
    references.forget_rules(tx.conn, entity_id)


R = report_ids.c
_known_report = Prepared(
    select(R.number).where(R.entity_id == bindparam("entity"), R.report_id == bindparam("report"))
)
_known_reports = Prepared(
    select(R.entity_id, R.report_id).where(Among(R.entity_id, "entities"), Among(R.report_id, "reports"))
)
_insert_report = Prepared(report_ids.insert(), ("entity_id", "report_id", "number"))
_forget_reports = Prepared(
    report_ids.delete().where(R.entity_id == bindparam("entity"), R.number <= bindparam("upto"))
)


_numbers = select(R.number).where(R.entity_id == bindparam("entity"))
_forget_oldest = Prepared(
    report_ids.delete().where(
        R.entity_id == bindparam("entity"),
        R.number < _numbers.order_by(R.number.desc()).offset(REPORT_IDS_KEPT).limit(1).scalar_subquery(),
    )
)


def forget_oldest_reports(tx: Transaction, entity_id: str) -> None:
    """Of an entity whose reports have many ids each no more are kept than of others, and those of one."""
    _forget_oldest.run(tx.conn, {"entity": entity_id})


def known_reports(
    conn: Connection, entity_ids: Iterable[str], report_ids: Iterable[str]
) -> set[tuple[str, str]]:
    """Which of these reports of these entities came before: the ids of both."""
    rows = _known_reports.all(conn, {"entities": list(entity_ids), "reports": list(report_ids)})
    return {(row.entity_id, row.report_id) for row in rows}


def is_new_report(tx: Transaction, entity_id: str, report_id: str, number: int) -> bool:
    """Note a report's id, the entity's newest `REPORT_IDS_KEPT` of which are kept; whether it is new."""
    if _known_report.first(tx.conn, {"entity": entity_id, "report": report_id}) is not None:
        return False
    _insert_report.insert_all(tx.conn, [{"entity_id": entity_id, "report_id": report_id, "number": number}])
    _forget_reports.run(tx.conn, {"entity": entity_id, "upto": number - REPORT_IDS_KEPT})
    return True


H = state_changes.c


def changes(
    conn: Connection,
    *,
    limit: int,
    entity_id: str | None = None,
    before: str | None = None,
    span: Between = ALWAYS,
) -> Sequence[Any]:
    """Changes of state, the newest first, before the one of an id; the columns of `state_change`."""
    query = select(state_changes).where(H.from_state != H.to_state)
    if entity_id is not None:
        query = query.where(H.entity_id == entity_id)
    narrow = entity_id is not None
    return conn.execute(newest(query, H, span, limit=limit, before=before, narrow=narrow)).all()


_from = Prepared(select(H.from_state).where(H.id == bindparam("wanted")))


def left_by(conn: Connection, change_id: str) -> str | None:
    """The state that a change left; None: versions before deleted its record."""
    found: str | None = _from.scalar(conn, {"wanted": change_id})
    return found


def add_change(tx: Transaction, snapshot: Snapshot, before: str, at: int) -> None:
    """Keep that an entity's state has become what the snapshot says, with its event."""
    entity, standing = snapshot.entity, snapshot.standing
    common = {"id": snapshot.change_id, "at": at, "why": dict(snapshot.why), "depth": snapshot.depth}
    tx.append(state_changes, {**common, **_of(entity), "from_state": before, "to_state": standing.state})
    told = {"from": before, "to": standing.state, "why": dict(snapshot.why), "id": snapshot.change_id}
    event = {"kind": "state.changed", "at": at, "job_id": None, "entity_id": entity.id, "data": told}
    tx.append(tables.events, event)


def add_reason(tx: Transaction, snapshot: Snapshot, why: Mapping[str, Any], at: int) -> None:
    """Keep, for replays, that others than the conditions began or ceased to decide a state that stays the same."""
    same = dict.fromkeys(("from_state", "to_state"), snapshot.standing.state)
    row = {"id": clock.new_id(), "at": at, "why": dict(why), "depth": 0}
    tx.append(state_changes, {**row, **_of(snapshot.entity), **same})


def _of(entity: Entity) -> dict[str, Any]:
    return {"entity_id": entity.id, "owner_type": int(entity.owner_type), "entity_name": entity.name}


GONE = object()  # the value of a property that is not there any more


def add_history(tx: Transaction, entity_id: str, changed: Mapping[str, Any], by: str | None, at: int) -> None:
    """Keep the new values of an entity's properties, or that they are gone."""
    common = {"entity_id": entity_id, "at": at, "by": by, "step": clock.new_step()}
    for name, value in changed.items():
        gone = value is GONE
        row = {"name": name, "value": None if gone else value, "gone": gone}
        tx.append(property_history, {**common, **row})


V = property_history.c


def history(
    conn: Connection,
    entity_id: str,
    name: str,
    *,
    limit: int,
    before: int | None = None,
    span: Between = ALWAYS,
) -> Sequence[Any]:
    """The values that a property got, the newest first, before the one of an id."""
    query = select(V.id, V.value, V.at, V.by).where(V.entity_id == entity_id, V.name == name)
    return conn.execute(newest(query, V, span, limit=limit, before=before, narrow=True)).all()


_lock = {
    owner_type: Prepared(select(E.id).where(Among(E.id, "wanted")).order_by(E.id).with_for_update())
    for owner_type, E in ((OwnerType.OBJECT, O), (OwnerType.LINK, L))
}


def lock(tx: Transaction, owner_type: OwnerType, entity_ids: Iterable[str]) -> None:
    """Let nobody else change these until the transaction ends; in one order, so that two do not wait for each other.

    On PostgreSQL it has to come before what is read of them: a statement that waits for a row sees that
    row as it is then, and what it joins, such as the standing, as it was before.
    """
    if tx.conn.dialect.name != "postgresql":
        return
    wanted = sorted({entity_id for entity_id in entity_ids if f"row {entity_id}" not in tx.locked})
    if wanted:
        _lock[owner_type].all(tx.conn, {"wanted": wanted})
        tx.locked.update(f"row {entity_id}" for entity_id in wanted)
