"""Deletes what was kept long enough, a little at a time: each function is one small step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    case,
    cast,
    delete,
    func,
    literal_column,
    or_,
    select,
    update,
)

from iotjobs.domain.statuses import ENDED
from iotjobs.store import events, tables
from iotjobs.store.jobs import J
from iotjobs.store.state_tables import property_history, standings, state_changes, traces, trigger_timers
from iotjobs.store.writer import Transaction

L = tables.log_entries.c

_has_output: ColumnElement[bool] = literal_column(tables.OUTPUT_KEPT)
_ended = or_(*(J.status == status for status in sorted(ENDED)))
# What a job's life leaves, its events apart: they move a mark.
_OF_A_JOB = (tables.plans, tables.attempts, tables.results, tables.output, tables.log_entries)


def outputs(conn: Connection, *, limit: int, ended_before: int | None = None) -> list[tuple[str, int]]:
    """Ended jobs whose output is still there, oldest first: (job id, its bytes)."""
    query = select(J.id, J.output_bytes).where(_has_output).order_by(J.ended_at).limit(limit)
    if ended_before is not None:
        query = query.where(J.ended_at < ended_before)
    return [(id_, size) for id_, size in conn.execute(query)]


def output_bytes(conn: Connection, cap_bytes: int) -> int:
    """How much output of ended jobs is there, by all attempts of each and what is kept of one at most."""
    kept = case((J.output_bytes > cap_bytes, cap_bytes), else_=J.output_bytes)
    total = func.coalesce(func.sum(cast(kept, BigInteger)), 0)
    return int(conn.execute(select(total).where(_has_output)).scalar_one())


def drop_outputs(tx: Transaction, job_ids: Sequence[str], now: int) -> None:
    """Delete what jobs wrote; their records stay and say so."""
    tx.conn.execute(delete(tables.output).where(tables.output.c.job_id.in_(job_ids)))
    tx.conn.execute(update(tables.jobs).where(J.id.in_(job_ids)).values(output_pruned_at=now))


def ended_jobs(conn: Connection, *, limit: int, before: int) -> list[str]:
    """Ids of jobs that were made and have ended before a moment, oldest first."""
    query = select(J.id).where(J.timestamp < before, J.ended_at < before, _ended)
    return list(conn.execute(query.order_by(J.timestamp, J.seq).limit(limit)).scalars())


def drop_jobs(tx: Transaction, job_ids: Sequence[str]) -> None:
    """Delete jobs with all that is known of them; readers of events are told of the gap."""
    events.forget(tx, job_ids)
    for table in _OF_A_JOB:
        tx.conn.execute(delete(table).where(table.c.job_id.in_(job_ids)))
    tx.conn.execute(delete(tables.jobs).where(J.id.in_(job_ids)))


def drop_log_entries(tx: Transaction, *, behind: int, limit: int, before: int) -> tuple[int, int | None]:
    """Look at the next entries behind an id and delete those from before a moment.

    Returns:
        How many were deleted, and the id to go on behind; None when nothing older is to be expected.
    """
    page = tx.conn.execute(select(L.id, L.at).where(L.id > behind).order_by(L.id).limit(limit)).all()
    old = [id_ for id_, at in page if at < before]
    if old:
        tx.conn.execute(delete(tables.log_entries).where(L.id.in_(old)))
    return len(old), page[-1].id if old and len(page) == limit else None


def drop_history(tx: Transaction, *, limit: int, before: int) -> int:
    """Delete values of properties from before a moment; how many."""
    return _drop(tx, property_history.c, limit, before)


def drop_values_over(tx: Transaction, *, limit: int, most: int) -> int:
    """Delete the oldest values of properties where there are more than `most`; how many."""
    H = property_history.c
    newest = tx.conn.execute(select(func.max(H.id))).scalar()
    if newest is None:
        return 0
    old = select(H.id).where(H.id <= newest - most).order_by(H.id).limit(limit)
    return tx.conn.execute(delete(property_history).where(H.id.in_(old))).rowcount


def drop_events(tx: Transaction, *, limit: int, before: int) -> int:
    """Delete events of changes of state from before a moment; how many."""
    return events.forget_older(tx, limit=limit, before=before)


def drop_traces(
    tx: Transaction, *, behind: tuple[int, int], limit: int, before: int
) -> tuple[int, tuple[int, int] | None]:
    """Look at the next traces of triggers from before a moment, behind a moment and an id, and delete them.

    That of a hold stays while it lasts: what came of it will be written there.

    Returns:
        How many were deleted, and what to go on behind; None at the end.
    """
    X, M, (at, id_) = traces.c, trigger_timers.c, behind
    old = select(X.id, X.at, X.cause_key).where(X.at >= at, X.at < before, or_(X.at > at, X.id > id_))
    page = tx.conn.execute(old.order_by(X.at, X.id).limit(limit)).all()
    lasting = select(M.cause_key).where(M.cause_key.in_([row.cause_key for row in page]))
    lasts = set(tx.conn.execute(lasting).scalars())
    going = [row.id for row in page if row.cause_key not in lasts]
    if going:
        tx.conn.execute(delete(traces).where(X.id.in_(going)))
    return len(going), (page[-1].at, page[-1].id) if len(page) == limit else None


def drop_changes(tx: Transaction, *, behind: str, limit: int, before: int) -> tuple[int, str | None]:
    """Look at the next changes of state behind an id and delete those from before a moment.

    Of each entity the last of these stays, as long as the entity is there: replays begin with it, and timers
    name it. So does the last reason that others than the conditions decided, or did no more.

    Returns:
        As of `drop_log_entries`.
    """
    H, N, S = state_changes.c, state_changes.alias().c, standings.c
    follows = (N.entity_id == H.entity_id, N.id > H.id)
    is_more = or_(H.from_state == H.to_state, N.from_state != N.to_state)
    followed_at = select(N.at).where(*follows, is_more).order_by(N.id).limit(1).scalar_subquery()
    query = select(H.id, H.at, H.entity_id, case((H.at < before, followed_at)).label("followed_at"))
    page = tx.conn.execute(query.where(H.id > behind).order_by(H.id).limit(limit)).all()
    old = [row for row in page if row.at < before]
    there = select(S.entity_id).where(S.entity_id.in_({row.entity_id for row in old}))
    are_there = set(tx.conn.execute(there).scalars())
    going = [
        row.id
        for row in old
        if row.entity_id not in are_there or (row.followed_at is not None and row.followed_at < before)
    ]
    if going:
        tx.conn.execute(delete(state_changes).where(H.id.in_(going)))
    return len(going), page[-1].id if old and len(page) == limit else None


def _drop(tx: Transaction, columns: Any, limit: int, before: int) -> int:
    table = columns.id.table
    old = select(columns.id).where(columns.at < before).order_by(columns.at).limit(limit)
    return tx.conn.execute(delete(table).where(columns.id.in_(old))).rowcount
