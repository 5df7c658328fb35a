"""The attempts of a job, and the lines about it, as people read them; what they were found to have left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from iotjobs.domain.jobs import Ending, Job
from iotjobs.domain.statuses import ACTIVE, Outcome, Status
from iotjobs.store import tables
from iotjobs.store.jobs import locked
from iotjobs.store.statements import Prepared
from iotjobs.store.writer import Transaction

A = tables.attempts.c
L = tables.log_entries.c


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try. Moments are milliseconds.

    Attributes:
        worker_id: who ran it.
        sent_at: the device may have been reached since then; None: nothing was sent.
        ended_at: None for the one under way.
    """

    number: int
    worker_id: str | None
    started_at: int | None
    sent_at: int | None
    ended_at: int | None
    outcome: str | None
    error_code: str | None
    error_message: str | None


_COLUMNS = [A[name] for name in Attempt.__dataclass_fields__]
_of_job = Prepared(select(*_COLUMNS).where(A.job_id == bindparam("wanted")).order_by(A.number))
_sent = Prepared(select(A.number).where(A.job_id == bindparam("wanted"), A.sent_at.is_not(None)).limit(1))

_end = Prepared(
    select(A.outcome, A.error_code, A.error_message).where(
        A.job_id == bindparam("wanted"), A.number == bindparam("which")
    )
)


def of_job(conn: Connection, job: Job) -> list[Attempt]:
    """All attempts of a job in their order, the one under way last."""
    found = [Attempt(*row) for row in _of_job.all(conn, {"wanted": job.id})]
    if job.status in ACTIVE:
        found.append(Attempt(job.attempt, job.worker_id, job.begun_at, job.sent_at, None, None, None, None))
    return found


def any_sent(conn: Connection, job_id: str) -> bool:
    """Whether an attempt that is over may have reached its device."""
    return _sent.first(conn, {"wanted": job_id}) is not None


def ended_as(conn: Connection, job: Job, endings: Sequence[Ending]) -> bool:
    """Whether the job's given attempt is over, and ended in one of these ways."""
    row = _end.first(conn, {"wanted": job.id, "which": job.attempt})
    return row is not None and any(
        tuple(row) == (ending.outcome, ending.error_code, ending.error_message) for ending in endings
    )


def log_entries(conn: Connection, job_id: str, *, level: str | None, limit: int) -> list[dict[str, Any]]:
    """The newest lines about a job, in their order."""
    query = select(L.at, L.level, L.message, L.additional_info).where(L.job_id == job_id)
    if level is not None:
        query = query.where(L.level == level)
    rows = conn.execute(query.order_by(L.id.desc()).limit(limit)).all()
    return [dict(row._mapping) for row in reversed(rows)]


def prove(tx: Transaction, job: Job, *, gone: bool) -> None:
    """Write what was found out about the device of a job that is at rest: nobody is to find it out any more.

    Nothing is written of one that was resumed meanwhile: its next attempt finds out.

    Args:
        tx: the transaction.
        job: the row as it was when that began, with the mark that was looked for.
        gone: nothing with that mark is left.
    """
    row = locked(tx, job.id)
    if not (row.ended or row.status is Status.STOPPED) or row.nonce != job.nonce:
        return
    values: dict[str, Any] = {"worker_id": None}
    if row.outcome is Outcome.CANCELED:
        values["cancel"] = {**(row.cancel or {}), "confirmed": gone}
    if gone:
        values |= {"nonce": None, "process_group": None, "sent_to": None}
    tx.conn.execute(update(tables.jobs).where(tables.jobs.c.id == job.id).values(values))
