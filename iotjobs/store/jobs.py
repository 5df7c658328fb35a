"""Jobs: how one is inserted, and the one function that writes a status.

Every function here runs inside a transaction (`Transaction`). Beside the inserts, `_change` is the only writer of
`job.status`: it asks the table of `domain.statuses`, compares the expected status (and, for an
attempt, its number: a worker that lost its attempt writes nothing), and appends the event.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from sqlalchemy import Connection, bindparam, insert, or_, select, update

from iotjobs.domain.errors import BadRequest, Conflict, EngineError, LeaseLost, NotFound, TransitionRefused
from iotjobs.domain.jobs import Cause, Delivery, Ending, Job, JobType, PendingReason, Transport
from iotjobs.domain.operations import Plan
from iotjobs.domain.statuses import ACTIVE, ENDED, Outcome, Status, may_become
from iotjobs.store import tables
from iotjobs.store.drawn import Drawn
from iotjobs.store.statements import Prepared, storable
from iotjobs.store.writer import Action, Transaction

J = tables.jobs.c
RESULTS_LIMIT = 1000

_COLUMNS = tuple(Job.__dataclass_fields__)
_ENUMS: dict[str, Any] = {
    "type": JobType,
    "transport": Transport,
    "cause": Cause,
    "status": Status,
    "outcome": Outcome,
    "pending_reason": PendingReason,
    "delivery": Delivery,
}
_ENUM_AT = tuple((_COLUMNS.index(name), enum) for name, enum in _ENUMS.items())
job_columns = [J[name] for name in _COLUMNS]


def job_of(row: Any) -> Job:
    """The dataclass of a row of `job_columns`."""
    values = list(row)
    for index, enum in _ENUM_AT:
        if values[index] is not None:
            values[index] = enum(values[index])
    return Job(*values)


def insert_job(tx: Transaction, row: Mapping[str, Any], plan: Plan | None, secret: bytes | None) -> int:
    """Insert a PENDING job with its plan and its `job.added` event.

    Args:
        tx: the transaction that makes the job known; at its end, if the job's number was drawn ahead.
        row: columns of the job without `seq`; absent ones get their defaults.
        plan: what people may see of what it will do.
        secret: the whole plan, encrypted, when it holds secrets.

    Returns:
        The job's `seq`.
    """
    drawn: Drawn | None = tx.ahead.pop(row["id"], None)
    if drawn is None:
        seq = _insert_job.insert(tx.conn, {**_DEFAULTS, **row})
    else:
        seq = drawn.seq
        tx.append(tables.jobs, {**_DEFAULTS, **row, "seq": seq})
    if plan is not None:
        tx.append(tables.plans, {"job_id": row["id"], "plan": plan.to_json(), "secret": secret})
    _event(tx, "job.added", row["timestamp"], row["id"], row["owner_id"], status=Status.PENDING, outcome=None)
    return seq


def insert_begun(
    tx: Transaction, row: Mapping[str, Any], plan: Plan, *, worker_id: str, nonce: str, at: int
) -> Job:
    """Insert a message's job with its first attempt under way and sent, as `begin_attempt` would leave it.

    It is one row and both events, written with those of the whole transaction: nothing in it may read the job,
    its `id` and `cause_key` are new, and its `seq` is not known here: it is 0. The plan has no secrets.
    """
    assert may_become(Status.PENDING, Status.RUNNING)
    moments = {"started_at": at, "begun_at": at, "sent_at": at}
    begun = {"status": Status.RUNNING, "attempt": 1, "delivery": Delivery.QUEUED}
    values = {**_DEFAULTS, **row, **begun, **moments, "worker_id": worker_id, "nonce": nonce}
    tx.append(tables.jobs, values)
    tx.append(tables.plans, {"job_id": row["id"], "plan": plan.to_json(), "secret": None})
    _event(tx, "job.added", row["timestamp"], row["id"], row["owner_id"], status=Status.PENDING, outcome=None)
    _event(tx, "job.changed", at, row["id"], row["owner_id"], status=Status.RUNNING, outcome=None)
    return Job(seq=0, **values)


_DEFAULTS: dict[str, Any] = {name: None for name in _COLUMNS if name != "seq"} | {
    "status": Status.PENDING,
    "attempt": 0,
    "queue": "mix",
    "priority": 5,
    "low_priority": False,
    "results_count": 0,
    "output_bytes": 0,
    "output_truncated": False,
    "transient": False,
    "abortable": True,
    "data": {},
}
_insert_job = Prepared(insert(tables.jobs), tuple(_DEFAULTS))


def inserted(row: Mapping[str, Any], seq: int) -> Job:
    """The job of a row that `insert_job` has just inserted."""
    return Job(**{**_DEFAULTS, **row, "seq": seq})


def _event(tx: Transaction, kind: str, at: int, job_id: str, entity_id: str, **data: Any) -> None:
    tx.append(tables.events, {"kind": kind, "at": at, "job_id": job_id, "entity_id": entity_id, "data": data})


_by_id = Prepared(select(*job_columns).where(J.id == bindparam("job_id")))


def get(conn: Connection, job_id: str) -> Job:
    """The job of an id, whoever asks: for the engine's own use.

    Raises:
        NotFound: there is none.
    """
    row = _by_id.first(conn, {"job_id": job_id})
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    return job_of(row)


def locked(tx: Transaction, job_id: str) -> Job:
    """The job as it stands, and stays until this transaction ends: for a decision on more than its status.

    Raises:
        NotFound: there is none.
    """
    row = tx.conn.execute(select(*job_columns).where(J.id == job_id).with_for_update()).first()
    if row is None:
        raise NotFound(f"there is no job {job_id}")
    return job_of(row)


_plan = Prepared(
    select(tables.plans.c.plan, tables.plans.c.secret).where(tables.plans.c.job_id == bindparam("job_id"))
)


def plan_of(conn: Connection, job_id: str) -> tuple[dict[str, Any], bytes | None]:
    """The masked plan of a job, and the whole one, encrypted, if it holds secrets and the job lives."""
    row = _plan.first(conn, {"job_id": job_id})
    return row.plan, row.secret


_status = Prepared(select(J.status).where(J.id == bindparam("job_id")))


def has_ended(conn: Connection, job_id: str) -> bool:
    """Whether nothing will change the job's status any more.

    Raises:
        NotFound: there is no such job.
    """
    status = _status.scalar(conn, {"job_id": job_id})
    if status is None:
        raise NotFound(f"there is no job {job_id}")
    return status in ENDED


@cache
def _update(names: tuple[str, ...], fenced: bool) -> Prepared:
    statement = update(tables.jobs).where(J.id == bindparam("is_id"), J.status == bindparam("is_status"))
    if fenced:
        statement = statement.where(J.attempt == bindparam("is_attempt"))
    return Prepared(statement.values({name: bindparam(name) for name in names}))


@cache
def _update_all(names: tuple[str, ...], fenced: bool) -> Action:
    def update_all(conn: Connection, expected: list[Any]) -> Callable[[], None]:
        def run() -> None:
            if _update(names, fenced).run_all(conn, expected) != len(expected):
                # Whose it was is seen when the group is tried again in parts.
                raise EngineError("one of the jobs of a group is not as it was read")

        return run

    return update_all


def _change(
    tx: Transaction,
    job: Job,
    to: Status,
    at: int,
    *,
    fenced: bool = True,
    last: bool = False,
    **values: Any,
) -> None:
    """Write a status: the only place that does.

    Args:
        tx: the transaction; the event is appended to it.
        job: the row that the decision was made on; its status is the expected one.
        to: the new status.
        at: the moment, milliseconds.
        fenced: also expect the attempt's number.
        last: nothing in this item reads the row, or counts it, any more.
        values: further columns.

    Raises:
        TransitionRefused: the table does not allow it, or the status changed meanwhile.
        LeaseLost: another attempt began meanwhile.
    """
    if not may_become(job.status, to):
        raise TransitionRefused(job.id, job.status, to)
    names = ("status", *sorted(values))
    expected = {"is_id": job.id, "is_status": job.status, "status": to, **values}
    if fenced:
        expected["is_attempt"] = job.attempt
    if last and tx.defers:
        tx.gather(_update_all(names, fenced), expected)
    elif _update(names, fenced).run(tx.conn, expected) != 1:
        actual = get(tx.conn, job.id)
        if actual.attempt != job.attempt:
            raise LeaseLost(f"job {job.id} is at attempt {actual.attempt}, not {job.attempt}")
        raise TransitionRefused(job.id, actual.status, to)
    outcome = values.get("outcome")
    _event(tx, "job.changed", at, job.id, job.owner_id, status=to, outcome=outcome)


def begin_attempt(
    tx: Transaction, job: Job, *, worker_id: str, nonce: str, at: int, sent: bool, sent_to: str | None = None
) -> int:
    """PENDING → RUNNING as the next attempt; returns its number.

    Args:
        tx: the transaction.
        job: the row as it was read when the decision was made.
        worker_id: who runs it.
        nonce: marks the attempt's processes on the device; written when it is sent, so that until then
            the row has the mark of an earlier attempt that may still run.
        at: the moment, milliseconds.
        sent: the way is open, so that sending follows at once: also write `sent_at`.
        sent_to: where that way leads.
    """
    number = job.attempt + 1
    mark: dict[str, Any] = {"nonce": nonce, "process_group": None, "sent_to": sent_to} if sent else {}
    _change(
        tx,
        job,
        Status.RUNNING,
        at,
        attempt=number,
        worker_id=worker_id,
        started_at=job.started_at or at,
        begun_at=at,
        deadline_at=None,
        last=True,
        pending_reason=None,
        delivery=Delivery.QUEUED if job.transport is Transport.MQTT else None,
        start_at=None,
        sent_at=at if sent else None,
        **mark,
    )
    return number


# Not IN: see `Prepared`.
_under_way = or_(*(J.status == status for status in sorted(ACTIVE)))


@cache
def _note(names: tuple[str, ...]) -> Prepared:
    return Prepared(
        update(tables.jobs)
        .where(J.id == bindparam("is_id"), J.attempt == bindparam("is_attempt"), _under_way)
        .values({name: bindparam(name) for name in names})
    )


def note(tx: Transaction, job_id: str, attempt: int, **values: Any) -> None:
    """Write facts of the attempt under way (never its status).

    Raises:
        LeaseLost: the attempt is not the newest, or it has ended: also when the next one has not begun.
    """
    given = {"is_id": job_id, "is_attempt": attempt, **values}
    if _note(tuple(sorted(values))).run(tx.conn, given) != 1:
        raise LeaseLost(f"attempt {attempt} of job {job_id} is not under way")


def settle(
    tx: Transaction,
    job: Job,
    ending: Ending,
    at: int,
    *,
    last: bool = False,
    worker_id: str | None = None,
    **facts: Any,
) -> None:
    """End the job by its newest attempt, or by something that came first.

    Erases the job's secrets. The caller offers the next job of the lane.

    Args:
        tx: the transaction.
        job: the row that the decision was made on.
        ending: how.
        at: the moment, milliseconds.
        last: nothing waits behind it, so that nothing in this item reads the row any more.
        worker_id: who finds out whether anything is left on its device (`attempts.prove`).
        facts: further columns.

    Raises:
        TransitionRefused, LeaseLost: somebody else ended it, or began another attempt.
    """
    if job.status in ACTIVE:  # else its last attempt was closed before it waited again
        _close_attempt(tx, job, ending, at)
    _change(
        tx,
        job,
        Status.CANCELED if ending.outcome is Outcome.CANCELED else Status.FINISHED,
        at,
        last=last,
        outcome=ending.outcome,
        exit_code=ending.exit_code,
        error_code=ending.error_code,
        error_message=storable(ending.error_message),
        ended_at=at,
        deadline_at=None,
        pending_reason=None,
        worker_id=worker_id,
        sent_at=job.sent_at,  # None when it turned out that nothing left
        **facts,
    )
    if job.data.get("secret_args"):
        tx.conn.execute(_erase_secret, {"is_job": job.id})


_erase_secret = update(tables.plans).where(tables.plans.c.job_id == bindparam("is_job")).values(secret=None)


def try_again(tx: Transaction, job: Job, ending: Ending, at: int, start_at: int, **facts: Any) -> None:
    """RUNNING → PENDING until `start_at`, when the next attempt may begin.

    Keeps the `nonce`, `process_group` and `sent_to` that the given job has: what may still run on the device has
    to be found there, and ended, before the next attempt is sent. While it ran its time to live did not count:
    what was left when the attempt began is left now, also when the clock was set between the two.
    """
    _close_attempt(tx, job, ending, at)
    _change(
        tx,
        job,
        Status.PENDING,
        at,
        start_at=start_at,
        expires_at=None if job.expires_at is None else job.expires_at + at - (job.begun_at or at),
        pending_reason=PendingReason.RETRY if start_at > at else None,
        sent_at=None,
        nonce=job.nonce,
        process_group=job.process_group,
        sent_to=job.sent_to,
        deadline_at=None,
        worker_id=None,
        **facts,
    )


def ask(tx: Transaction, job: Job, to: Status, at: int, cancel: dict[str, Any] | None = None) -> None:
    """An attempt under way is to be ended: → CANCELING, with whose cancel it is, or STOPPING.

    Raises:
        TransitionRefused, LeaseLost: the job is not as it was read.
    """
    _change(tx, job, to, at, cancel=job.cancel if cancel is None else cancel)


STOPPED = Ending(Outcome.CANCELED, error_code="stopped", error_message="ended by a stop")


def set_aside(tx: Transaction, job: Job, at: int, *, worker_id: str | None = None, **facts: Any) -> None:
    """PENDING or STOPPING → STOPPED, until somebody resumes it; its secrets stay.

    The time to live goes on; of a job that was running it begins anew, for while a job runs it does
    not count. For `worker_id` see `settle`.
    """
    if job.status in ACTIVE:
        _close_attempt(tx, job, STOPPED, at)
        if job.ttl_ms is not None:
            facts["expires_at"] = at + job.ttl_ms
    _change(
        tx,
        job,
        Status.STOPPED,
        at,
        pending_reason=None,
        sent_at=job.sent_at,
        nonce=job.nonce,
        process_group=job.process_group,
        sent_to=job.sent_to,
        worker_id=worker_id,
        deadline_at=None,
        **facts,
    )


def resume(tx: Transaction, job: Job, at: int) -> None:
    """STOPPED → PENDING, to run anew as the next attempt; the caller offers it.

    Raises:
        TransitionRefused: it is not STOPPED.
    """
    if job.status is not Status.STOPPED:  # from RUNNING only `try_again` leads there
        raise TransitionRefused(job.id, job.status, Status.PENDING)
    later = job.start_at is not None and job.start_at > at
    _change(
        tx,
        job,
        Status.PENDING,
        at,
        sent_at=None,
        worker_id=None,
        start_at=job.start_at if later else None,
        pending_reason=PendingReason.START_AT if later else None,
    )


def _close_attempt(tx: Transaction, job: Job, ending: Ending, at: int) -> None:
    tx.append(
        tables.attempts,
        {
            "job_id": job.id,
            "number": job.attempt,
            "worker_id": job.worker_id,
            "started_at": job.begun_at,
            "sent_at": job.sent_at,
            "ended_at": at,
            "outcome": ending.outcome,
            "error_code": ending.error_code,
            "error_message": storable(ending.error_message),
        },
    )


def set_low_priority(tx: Transaction, job: Job, low: bool, at: int) -> None:
    """Put a job behind everything else, or back; the caller offers it again by its new rank.

    Raises:
        Conflict: it has ended.
    """
    query = update(tables.jobs).where(J.id == job.id, J.ended_at.is_(None)).values(low_priority=low)
    if tx.conn.execute(query).rowcount != 1:
        raise Conflict(f"job {job.id} has ended")
    # The row is ours now: its status may be newer than the one that was read.
    told = {"status": _status.scalar(tx.conn, {"job_id": job.id}), "outcome": None, "low_priority": low}
    _event(tx, "job.changed", at, job.id, job.owner_id, **told)


def append_result(tx: Transaction, job: Job, payload: dict[str, Any], by: str, at: int) -> dict[str, Any]:
    """Append a custom result; returns the entry. Allowed whatever the job's status.

    The counter on the job's row is raised first: its row lock puts concurrent appends in order.

    Raises:
        BadRequest: the job has as many results as it may have.
    """
    counted = tx.conn.execute(_count_result, {"is_id": job.id}).rowcount
    if counted != 1:
        raise BadRequest(f"job {job.id} has {RESULTS_LIMIT} custom results, which is the limit")
    number = tx.conn.execute(select(J.results_count).where(J.id == job.id)).scalar_one()
    entry = {"payload": payload, "by": by, "timestamp": at}
    tx.conn.execute(insert(tables.results), {"job_id": job.id, "number": number, **entry})
    _event(tx, "job.result", at, job.id, job.owner_id, status=job.status, outcome=job.outcome, result=entry)
    return entry


_count_result = (
    update(tables.jobs)
    .where(J.id == bindparam("is_id"), J.results_count < RESULTS_LIMIT)
    .values(results_count=J.results_count + 1)
)


def log(tx: Transaction, job_id: str, at: int, level: str, message: str, **info: Any) -> None:
    """Add a line about a job."""
    tx.append(
        tables.log_entries,
        {
            "job_id": job_id,
            "at": at,
            "level": level,
            "message": storable(message),
            "additional_info": info or None,
        },
    )
