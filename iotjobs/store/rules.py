"""State conditions and triggers: lists that are put whole, and what triggers leave behind.

Conditions of an entity's own take the place of its class's; triggers of its class stand beside its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import time
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from iotjobs import clock
from iotjobs.domain.entities import Entity
from iotjobs.domain.expressions import compile_expression
from iotjobs.domain.periods import DAYS, Period
from iotjobs.domain.states import Condition
from iotjobs.domain.triggers import HOUR_MS, Decision, History, Ruling, Trigger
from iotjobs.store import facts
from iotjobs.store.spans import ALWAYS, Between, newest
from iotjobs.store.state_tables import (
    condition_lists,
    firings,
    rule_lists,
    traces,
    trigger_timers,
    triggers,
)
from iotjobs.store.statements import Prepared
from iotjobs.store.writer import Transaction

N, T = condition_lists.c, triggers.c
X, M, F = traces.c, trigger_timers.c, firings.c

_VERSION = "rules_version"  # a fact of the site


def changed(tx: Transaction) -> None:
    """What decides about entities is different from the commit of this transaction on.

    That is a class, an object or a link, conditions or triggers, and what triggers start: operations and their
    scripts. See `known`.
    """
    facts.put(tx, _VERSION, clock.new_id())  # never a value that was there before: a commit may have failed


def version(conn: Connection) -> str | None:
    """What `changed` has made different last."""
    return facts.value(conn, _VERSION)


_items = Prepared(select(N.conditions, N.version).where(N.owner_id == bindparam("owner")))


def condition_items(conn: Connection, owner_id: str) -> list[dict[str, Any]] | None:
    """The list as it was put; None: it has none of its own."""
    row = _items.first(conn, {"owner": owner_id})
    return None if row is None else row.conditions


def conditions_of(conn: Connection, entity: Entity) -> tuple[Condition, ...]:
    """What decides an entity's state: its own list, or its class's."""
    found = own_conditions(conn, entity.id)
    if found is None and entity.class_id is not None:
        found = own_conditions(conn, entity.class_id)
    return found or ()


def own_conditions(conn: Connection, owner_id: str) -> tuple[Condition, ...] | None:
    """The list of an owner's own; None: it has none."""
    items = condition_items(conn, owner_id)
    return None if items is None else tuple(map(condition_of, items))


def condition_of(item: Mapping[str, Any]) -> Condition:
    """The condition of a stored item."""
    return Condition(
        item["id"],
        item["state"],
        compile_expression(item["when"]),
        item["hold_s"],
        item["description"],
        None if item["period"] is None else period_of(item["period"]),
    )


def period_of(stored: Mapping[str, Any]) -> Period:
    """The period of a stored one."""
    return Period(
        frozenset(map(DAYS.index, stored["days"])),
        time.fromisoformat(stored["from"]),
        time.fromisoformat(stored["to"]),
        stored["zone"],
    )


def put_conditions(
    tx: Transaction, owner_kind: str, owner_id: str, items: Sequence[Mapping[str, Any]] | None
) -> None:
    """Make this the owner's list; None: it has none of its own any more."""
    changed(tx)
    tx.conn.execute(delete(condition_lists).where(N.owner_id == owner_id))
    if items is not None:
        row = {"owner_id": owner_id, "owner_kind": owner_kind, "conditions": list(items), "version": 1}
        tx.conn.execute(insert(condition_lists), row)


_SETTINGS = ("states", "hold_s", "repeat_s", "cooldown_s", "max_per_hour", "enabled", "dry")
_of_owner = Prepared(select(triggers).where(T.owner_id == bindparam("owner")).order_by(T.position))
_by_id = Prepared(select(triggers).where(T.id == bindparam("wanted")))


def trigger_of(row: Any) -> Trigger:
    """The trigger of a row."""
    settings = {**row.settings, "states": tuple(row.settings["states"])}
    return Trigger(row.id, row.name, operation_id=row.operation_id, **settings)


def trigger_rows(conn: Connection, owner_id: str) -> Sequence[Any]:
    """The triggers of an owner's own, in their order."""
    return _of_owner.all(conn, {"owner": owner_id})


def trigger_row(conn: Connection, trigger_id: str) -> Any:
    """A trigger's row, or None."""
    return _by_id.first(conn, {"wanted": trigger_id})


def trigger_page(
    conn: Connection, *, limit: int, after: str | None = None, broken: bool | None = None
) -> Sequence[Any]:
    """Rows of all triggers by id; `broken`: only those whose breaker is open, or is not."""
    query = select(triggers).order_by(T.id).limit(limit)
    if after is not None:
        query = query.where(T.id > after)
    if broken is not None:
        query = query.where(T.broken_at.is_not(None) if broken else T.broken_at.is_(None))
    return conn.execute(query).all()


def triggers_of(conn: Connection, entity: Entity) -> tuple[tuple[Trigger, bool], ...]:
    """An entity's triggers and those of its class, each with whether its breaker is open."""
    owners = [entity.id] if entity.class_id is None else [entity.id, entity.class_id]
    return tuple(found for owner in owners for found in own_triggers(conn, owner))


def own_triggers(conn: Connection, owner_id: str) -> tuple[tuple[Trigger, bool], ...]:
    """The triggers of an owner's own, each with whether its breaker is open."""
    rows = trigger_rows(conn, owner_id)
    return tuple((trigger_of(row), row.broken_at is not None) for row in rows)


def put_triggers(tx: Transaction, owner_kind: str, owner_id: str, items: Sequence[Mapping[str, Any]]) -> None:
    """Make these the owner's triggers; one that keeps its id keeps its breaker, timers and history."""
    changed(tx)
    before = {row.id: row for row in trigger_rows(tx.conn, owner_id)}
    gone = sorted(set(before) - {item["id"] for item in items})
    if gone:
        cancel_waits(tx.conn, M.trigger_id.in_(gone), "the trigger was taken away")
        tx.conn.execute(delete(firings).where(F.trigger_id.in_(gone)))
    tx.conn.execute(delete(triggers).where(T.owner_id == owner_id))
    rows = [
        {
            "id": item["id"],
            "owner_kind": owner_kind,
            "owner_id": owner_id,
            "position": position,
            "name": item["name"],
            "operation_id": item["operation_id"],
            "settings": {name: item[name] for name in _SETTINGS},
            "broken_at": before[item["id"]].broken_at if item["id"] in before else None,
        }
        for position, item in enumerate(items)
    ]
    if rows:
        tx.conn.execute(insert(triggers), rows)
    settings = {trigger_id: row.settings for trigger_id, row in before.items()}
    _recall(tx, settings, {item["id"]: item for item in items if item["id"] in before}, clock.now_ms())


def _remembers(settings: Mapping[str, Any]) -> bool:
    return bool(settings["cooldown_s"]) or settings["max_per_hour"] is not None


def set_breaker(tx: Transaction, trigger_id: str, broken_at: int | None) -> None:
    """Open a trigger's breaker, or reset it."""
    changed(tx)
    tx.conn.execute(update(triggers).where(T.id == trigger_id).values(broken_at=broken_at))


# --- traces and timers ------------------------------------------------------------------------

_fired = Prepared(
    select(
        func.max(F.at),
        func.coalesce(func.sum(case((F.at > bindparam("since"), 1), else_=0)), 0),
    ).where(F.trigger_id == bindparam("trigger"), F.entity_id == bindparam("entity"))
)
_insert_firing = Prepared(firings.insert().inline(), ("trigger_id", "entity_id", "at"))
_drop_firings = Prepared(
    firings.delete().where(
        F.trigger_id == bindparam("trigger"), F.entity_id == bindparam("entity"), F.at <= bindparam("upto")
    )
)


def history_of(conn: Connection, trigger: Trigger, entity_id: str, now: int) -> History:
    """How a trigger with a cooldown or a rate fired for an entity."""
    which = {"trigger": trigger.id, "entity": entity_id, "since": now - HOUR_MS}
    return History(*_fired.first(conn, which))


def add_firings(tx: Transaction, fired: Sequence[tuple[Trigger, str, int]]) -> None:
    """Keep that triggers fired for entities, each at a moment, and of what was before what they still need."""
    before = [
        {
            "trigger": trigger.id,
            "entity": entity_id,
            "upto": at if trigger.max_per_hour is None else at - HOUR_MS,
        }
        for trigger, entity_id, at in fired
    ]
    _drop_firings.run_each(tx.conn, before)
    rows = [{"trigger_id": trigger.id, "entity_id": entity_id, "at": at} for trigger, entity_id, at in fired]
    _insert_firing.insert_all(tx.conn, rows)


def _recall(
    tx: Transaction, before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]], now: int
) -> None:
    """Triggers that ask for it from now on know when they fired, as far as there are traces of it.

    What one only tried is forgotten when it is dry no more.
    """
    live = sorted(own for own in after if before[own]["dry"] and not after[own]["dry"])
    asking = sorted(own for own in after if _remembers(after[own]) and not _remembers(before[own]))
    rated = sorted(
        own
        for own in after
        if after[own]["max_per_hour"] is not None and (before[own]["max_per_hour"] is None or own in live)
    )
    dry = sorted(own for own in after if after[own]["dry"])
    of_it = and_(X.trigger_id == F.trigger_id, X.owner_id == F.entity_id)
    if live:
        tried = select(X.id).where(of_it, X.decision == Decision.DRY, X.at == F.at)
        tx.conn.execute(delete(firings).where(F.trigger_id.in_(live), tried.exists()))
    fired = or_(X.decision == Decision.FIRED, and_(X.decision == Decision.DRY, X.trigger_id.in_(dry)))
    if rated:
        known = select(F.id).where(of_it, F.at == X.at)
        found = select(X.trigger_id, X.owner_id, case((X.at > now, now), else_=X.at)).where(
            X.trigger_id.in_(rated), fired, X.at > now - HOUR_MS, ~known.exists()
        )
        tx.conn.execute(insert(firings).from_select(["trigger_id", "entity_id", "at"], found))
    if again := sorted({*asking, *live}):
        last = func.max(X.at)
        known = select(F.id).where(of_it, F.at >= X.at)
        found = (
            select(X.trigger_id, X.owner_id, case((last > now, now), else_=last))
            .where(X.trigger_id.in_(again), fired, ~known.exists())
            .group_by(X.trigger_id, X.owner_id)
        )
        tx.conn.execute(insert(firings).from_select(["trigger_id", "entity_id", "at"], found))


_TRACE = (
    "cause_key",
    "trigger_id",
    "trigger_name",
    "owner_id",
    "owner_type",
    "state_change_id",
    "state",
    "decision",
    "reason",
    "job_id",
    "at",
)
_insert_trace = Prepared(traces.insert(), _TRACE)
_settle_trace = Prepared(
    update(traces)
    .where(X.cause_key == bindparam("is_key"))
    .values(
        decision=bindparam("to_decision"),
        reason=bindparam("to_reason"),
        job_id=bindparam("to_job"),
        at=bindparam("to_at"),
    )
)


def add_trace(tx: Transaction, trace: Mapping[str, Any], *, last: bool) -> None:
    """Keep what a trigger decided; `last`: nothing in this transaction reads it, or changes it, any more."""
    if last:
        tx.append(traces, dict(trace))
    else:
        _insert_trace.insert(tx.conn, trace)


def settle_trace(tx: Transaction, cause_key: str, ruling: Ruling, job_id: str | None, at: int) -> None:
    """A wait is over: its trace says from now on what came of it."""
    given = {"to_decision": ruling.decision, "to_reason": ruling.reason, "to_job": job_id, "to_at": at}
    _settle_trace.run(tx.conn, {"is_key": cause_key, **given})


_insert_timer = Prepared(trigger_timers.insert(), tuple(M.keys()))
_timers_of = Prepared(select(trigger_timers).where(M.entity_id == bindparam("entity")))
_drop_timers = Prepared(trigger_timers.delete().where(M.entity_id == bindparam("entity")))
_drop_timer = Prepared(trigger_timers.delete().where(M.cause_key == bindparam("is_key")))
_due = Prepared(
    select(trigger_timers).where(M.due_at <= bindparam("now")).order_by(M.due_at).limit(bindparam("limit"))
)


def add_timer(tx: Transaction, timer: Mapping[str, Any]) -> None:
    """Look at a trigger again, at `due_at`."""
    _insert_timer.insert_all(tx.conn, [timer])


def timers_due(conn: Connection, entity_id: str, now: int) -> list[Any]:
    """The entity's timers that have come to their moment, in the order of these."""
    found = [row for row in _timers_of.all(conn, {"entity": entity_id}) if row.due_at <= now]
    return sorted(found, key=lambda row: (row.due_at, row.cause_key))


def drop_timers(tx: Transaction, entity_id: str) -> list[tuple[str, int]]:
    """The entity leaves its state: nothing waits any more. Keys of those that held, and when they were due."""
    found = _timers_of.all(tx.conn, {"entity": entity_id})
    if found:
        _drop_timers.run(tx.conn, {"entity": entity_id})
    return [(row.cause_key, row.due_at) for row in found if row.number == 0]


def cancel_waits(conn: Connection, which: ColumnElement[bool], reason: str) -> None:
    """Take timers away, of which `which` is said in columns of `trigger_timer`; traces of holds say why."""
    held = select(M.cause_key).where(which, M.number == 0)
    told = {"decision": Decision.HOLD_CANCELED, "reason": reason, "at": clock.now_ms()}
    conn.execute(update(traces).where(X.cause_key.in_(held)).values(told))
    conn.execute(delete(trigger_timers).where(which))


def forget(conn: Connection, owner_id: str) -> None:
    """An owner goes: its conditions, its triggers, and what is kept of when they fired and of their waits."""
    cancel_waits(conn, M.entity_id == owner_id, "the object or link was deleted")
    own = select(T.id).where(T.owner_id == owner_id)
    conn.execute(delete(firings).where(or_(F.entity_id == owner_id, F.trigger_id.in_(own))))
    for column in (N.owner_id, T.owner_id, rule_lists.c.owner_id):
        conn.execute(column.table.delete().where(column == owner_id))


def drop_timer(tx: Transaction, cause_key: str) -> bool:
    """Take a timer away; whether it was still there."""
    return _drop_timer.run(tx.conn, {"is_key": cause_key}) == 1


def put_off(tx: Transaction, cause_key: str, due_at: int) -> None:
    """Look at a timer at another moment."""
    tx.conn.execute(update(trigger_timers).where(M.cause_key == cause_key).values(due_at=due_at))


def due_timers(conn: Connection, now: int, limit: int) -> Sequence[Any]:
    """Timers whose moment has come, the earliest first."""
    return _due.all(conn, {"now": now, "limit": limit})


def trace_rows(
    conn: Connection,
    *,
    limit: int,
    before: int | None = None,
    span: Between = ALWAYS,
    **wanted: str | None,
) -> Sequence[Any]:
    """Traces, the newest first; `wanted`: values of columns, None wants nothing."""
    given = {name: value for name, value in wanted.items() if value is not None}
    query = select(traces).where(*(X[name] == value for name, value in given.items()))
    return conn.execute(newest(query, X, span, limit=limit, before=before, narrow=bool(given))).all()
