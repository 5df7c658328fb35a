"""Jobs as people read them: one whole, or newest first by pages. Every read takes a scope."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, Text, and_, bindparam, cast, func, or_, select

from iotjobs.domain.errors import BadRequest, NotFound
from iotjobs.domain.jobs import Job
from iotjobs.domain.operations import OperationType
from iotjobs.domain.rights import Scope
from iotjobs.domain.statuses import Outcome
from iotjobs.store import output, tables
from iotjobs.store.jobs import J, job_columns, job_of
from iotjobs.store.statements import Prepared

WHOLE_TEXT_BYTES = 1024 * 1024
LIST_TEXT_BYTES = 4096
# Of each job in a list: a device appends to its own jobs as it likes, and a list has 500 of them.
LIST_RESULTS = 100
LIST_RESULTS_BYTES = 64 * 1024

_CURSOR = re.compile(r"([0-9]{1,18}):([0-9]{1,18})\Z", re.ASCII)
_GOOD = (Outcome.SUCCEEDED, Outcome.CANCELED)
_EMPTY = output.Text("", whole=True)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job with all that is shown of it.

    Attributes:
        plan: the masked plan, or None (CUSTOM work).
        stdout, stderr: beginnings of the newest attempt's output.
    """

    job: Job
    plan: dict[str, Any] | None
    results: list[dict[str, Any]]
    stdout: output.Text
    stderr: output.Text


def fresh(job: Job) -> JobRecord:
    """The record of a job that was inserted a moment ago: nothing came of it yet."""
    return JobRecord(job, None, [], _EMPTY, _EMPTY)


@dataclass(frozen=True, slots=True)
class JobFilter:
    """What a list of jobs is narrowed by; empty members narrow nothing.

    Attributes:
        ranges: (column, `from` or `to`, milliseconds), both ends included.
    """

    status: Sequence[str] = ()
    outcome: Sequence[str] = ()
    type: Sequence[str] = ()
    owner_id: str | None = None
    owner_type: int | None = None
    operation_id: str | None = None
    has_errors: bool | None = None
    ranges: Sequence[tuple[str, str, int]] = field(default_factory=tuple)


def _scoped(query: Select[Any], scope: Scope) -> Select[Any]:
    return query if scope.jobs_of is None else query.where(J.run_by_id == scope.jobs_of)


def job_by_reference(conn: Connection, reference: str, scope: Scope) -> Job:
    """The job of an id (32 hex digits) or a `seq` (digits).

    Raises:
        BadRequest: the reference is neither.
        NotFound: there is none, or none that the scope admits.
    """
    if len(reference) == 32 and all(c in "0123456789abcdef" for c in reference):
        row = _by_id.first(conn, {"wanted": reference})
    elif reference.isascii() and reference.isdigit() and len(reference) <= 18:
        row = _by_seq.first(conn, {"wanted": int(reference)})
    else:
        raise BadRequest("a job's id is 32 hex digits, or its seq in digits", field="id")
    job = None if row is None else job_of(row)
    if job is None or scope.jobs_of not in (None, job.run_by_id):
        raise NotFound(f"there is no job {reference}")
    return job


_by_id = Prepared(select(*job_columns).where(J.id == bindparam("wanted")))
_by_seq = Prepared(select(*job_columns).where(J.seq == bindparam("wanted")))


def job_record(conn: Connection, reference: str, scope: Scope) -> JobRecord:
    """One job, whole; see `job_by_reference` for the errors."""
    job = job_by_reference(conn, reference, scope)
    return _records(conn, [job], WHOLE_TEXT_BYTES, limited=False)[0]


def job_page(
    conn: Connection, wanted: JobFilter, scope: Scope, *, limit: int, cursor: str | None
) -> tuple[list[JobRecord], str | None]:
    """Jobs newest first, and the cursor of the next page or None.

    Raises:
        BadRequest: a cursor that is not ours.
    """
    query = _scoped(select(*job_columns), scope).where(*_conditions(wanted))
    if cursor is not None:
        timestamp, seq = _read_cursor(cursor)
        query = query.where(or_(J.timestamp < timestamp, and_(J.timestamp == timestamp, J.seq < seq)))
    query = query.order_by(J.timestamp.desc(), J.seq.desc()).limit(limit + 1)
    found = [job_of(row) for row in conn.execute(query)]
    following = _write_cursor(found[limit - 1]) if len(found) > limit else None
    return _records(conn, found[:limit], LIST_TEXT_BYTES, limited=True), following


def _conditions(wanted: JobFilter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for column, allowed in ((J.status, wanted.status), (J.outcome, wanted.outcome), (J.type, wanted.type)):
        if allowed:
            conditions.append(column.in_(allowed))
    if wanted.owner_id is not None:
        conditions.append(J.owner_id == wanted.owner_id)
    if wanted.owner_type is not None:
        conditions.append(J.owner_type == wanted.owner_type)
    if wanted.operation_id is not None:
        conditions.append(J.operation_id == wanted.operation_id)
    if wanted.has_errors is True:
        conditions.append(and_(J.outcome.is_not(None), J.outcome.not_in(_GOOD)))
    elif wanted.has_errors is False:
        conditions.append(or_(J.outcome.is_(None), J.outcome.in_(_GOOD)))
    for column_name, end, moment in wanted.ranges:
        conditions.append(J[column_name] >= moment if end == "from" else J[column_name] <= moment)
    return conditions


def _records(conn: Connection, jobs: list[Job], text_bytes: int, *, limited: bool) -> list[JobRecord]:
    ids = [job.id for job in jobs]
    with_text = [
        (job.id, job.attempt) for job in jobs if job.attempt and job.operation_type != OperationType.MQTT
    ]
    texts = output.beginnings(conn, with_text, text_bytes)
    appended = _results(conn, [job.id for job in jobs if job.results_count], limited)
    shown = _plans(conn, ids)
    return [
        JobRecord(
            job,
            shown.get(job.id),
            appended.get(job.id, []),
            texts.get((job.id, "stdout"), _EMPTY),
            texts.get((job.id, "stderr"), _EMPTY),
        )
        for job in jobs
    ]


def _plans(conn: Connection, ids: list[str]) -> dict[str, dict[str, Any]]:
    if not ids:
        return {}
    if len(ids) == 1:
        return {row.job_id: row.plan for row in _plan.all(conn, {"wanted": ids[0]})}
    return dict(conn.execute(select(P.job_id, P.plan).where(P.job_id.in_(ids))).all())


P = tables.plans.c
_plan = Prepared(select(P.job_id, P.plan).where(P.job_id == bindparam("wanted")))


def _results(conn: Connection, ids: list[str], limited: bool) -> dict[str, list[dict[str, Any]]]:
    if not ids:
        return {}
    query = (
        select(R.job_id, R.payload, R.by, R.timestamp).where(R.job_id.in_(ids)).order_by(R.job_id, R.number)
    )
    if limited:
        so_far = func.sum(func.length(cast(R.payload, Text))).over(partition_by=R.job_id, order_by=R.number)
        first = (
            select(R.job_id, R.number, so_far.label("so_far"))
            .where(R.job_id.in_(ids), R.number <= LIST_RESULTS)
            .subquery()
        )
        query = query.join(first, and_(first.c.job_id == R.job_id, first.c.number == R.number)).where(
            first.c.so_far <= LIST_RESULTS_BYTES
        )
    found: dict[str, list[dict[str, Any]]] = {}
    for job_id, payload, by, timestamp in conn.execute(query):
        found.setdefault(job_id, []).append({"payload": payload, "by": by, "timestamp": timestamp})
    return found


R = tables.results.c


def has_result(conn: Connection, job_id: str, by: str, payload: dict[str, Any]) -> bool:
    """Whether somebody has appended this custom result to a job."""
    query = select(R.payload).where(R.job_id == job_id, R.by == by)
    return any(found == payload for found in conn.execute(query).scalars())


def _write_cursor(job: Job) -> str:
    return base64.urlsafe_b64encode(f"{job.timestamp}:{job.seq}".encode()).decode().rstrip("=")


def _read_cursor(cursor: str) -> tuple[int, int]:
    try:
        text = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except (ValueError, binascii.Error):
        text = ""
    found = _CURSOR.match(text)
    if found is None:
        raise BadRequest("the cursor is not one of ours: start again without it", field="cursor")
    return int(found[1]), int(found[2])
