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


def told_of(conn: Connection, job_id: str) -> Told:
    """What the events say of changes of a job's status: status, outcome, moment."""
    E = tables.events.c
    rows = conn.execute(select(E.data, E.at).where(E.job_id == job_id, E.kind != "job.result").order_by(E.id))
    return [
        (Status(data["status"]), data.get("outcome"), at) for data, at in rows if "low_priority" not in data
    ]


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
    store = open_store(url)
    await store.start()
    try:
        for job_id in job_ids:
            told, job = await store.read(lambda conn, of=job_id: (told_of(conn, of), jobs.get(conn, of)))
            assert_one_life(told, job)
            assert job.status in ENDED, job
    finally:
        await store.stop()
