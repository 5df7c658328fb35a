"""What the events say of jobs, folded, beside the rows that they led to."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from sqlalchemy import Connection, select

from iotjobs.domain.jobs import Job
from iotjobs.domain.statuses import ENDED, TRANSITIONS, Status
from iotjobs.store import jobs, tables
from iotjobs.store.session import open_store

Told = list[tuple[Status, str | None, int]]


def told_by_job(conn: Connection, job_id: str | None = None) -> dict[str, Told]:
    """What the events say of changes of a status, of one job or of all: status, outcome, moment."""
    E = tables.events.c
    query = select(E.job_id, E.data, E.at).where(E.kind != "job.result").order_by(E.id)
    told: dict[str, Told] = {}
    for of, data, at in conn.execute(query if job_id is None else query.where(E.job_id == job_id)):
        if "low_priority" not in data:
            told.setdefault(of, []).append((Status(data["status"]), data.get("outcome"), at))
    return told


def assert_one_life(told: Told, job: Job) -> None:
    """One way through the table, with one end, that folds to the row.

    Moments are compared and not ordered: clocks of two nodes may be some milliseconds apart.
    """
    statuses = [status for status, _, _ in told]
    assert statuses[0] is Status.PENDING
    assert all(later in TRANSITIONS[one] for one, later in itertools.pairwise(statuses)), statuses
    assert sum(status in ENDED for status in statuses) == (job.status in ENDED), (job.id, told)
    status, outcome, at = told[-1]
    begun = [at for status, _, at in told if status is Status.RUNNING]
    folded = (status, outcome, at if status in ENDED else None, len(begun), begun[0] if begun else None)
    row = (job.status, job.outcome, job.ended_at, job.attempt, job.started_at)
    assert folded == row, (job.id, told)


async def assert_lives(url: str, job_ids: Iterable[str]) -> None:
    """Every one of these jobs in a site's database has one life, and has ended."""

    def read(conn: Connection) -> tuple[dict[str, Told], dict[str, Job]]:
        rows = (jobs.job_of(row) for row in conn.execute(select(*jobs.job_columns)))
        return told_by_job(conn), {job.id: job for job in rows}

    store = open_store(url)
    await store.start()
    try:
        told, found = await store.read(read)
    finally:
        await store.stop()
    for job_id in job_ids:
        assert_one_life(told[job_id], found[job_id])
        assert found[job_id].status in ENDED, found[job_id]
