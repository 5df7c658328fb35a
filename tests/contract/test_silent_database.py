"""A PostgreSQL that does not answer in time is away, whatever asked it: nothing else is said of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from sqlalchemy import text, update

from iotjobs.domain.errors import StoreUnavailable
from iotjobs.domain.jobs import Ending, Job
from iotjobs.domain.statuses import Outcome
from iotjobs.store import jobs, tables
from iotjobs.store.session import PostgresStore, Store, open_store, postgres_url
from iotjobs.store.writer import Transaction
from tests.services.rows import Engine, job_of, plan, running_job

ANSWER_S = 0.5


@pytest.fixture
async def database(fresh_database: Callable[[], str]) -> str:
    return fresh_database()


@pytest.fixture
async def store(database: str) -> AsyncIterator[PostgresStore]:
    opened = PostgresStore(postgres_url(database), answer_s=ANSWER_S)
    await opened.start()
    yield opened
    await opened.stop()


@pytest.fixture
async def other(database: str) -> AsyncIterator[Store]:
    opened = open_store(database)
    await opened.start()
    yield opened
    await opened.stop()


async def hold(other: Store, job: Job, seconds: float) -> asyncio.Task[None]:
    """Keep the row of a job locked for so long."""
    locked = asyncio.Event()
    loop = asyncio.get_running_loop()

    def item(tx: Transaction) -> None:
        tx.conn.execute(update(tables.jobs).where(tables.jobs.c.id == job.id).values(label="held"))
        loop.call_soon(locked.set)
        tx.conn.execute(text("SELECT pg_sleep(:seconds)"), {"seconds": seconds})

    task = asyncio.create_task(other.write(item))
    await locked.wait()
    return task


async def test_a_statement_that_is_not_answered_in_time_says_that_the_store_is_away(
    store: PostgresStore, other: Store
) -> None:
    job = await running_job(store)
    holding = await hold(other, job, 3 * ANSWER_S)

    for locks in (None, ()):
        with pytest.raises(StoreUnavailable):
            await store.write(lambda tx: jobs.note(tx, job.id, 1, sent_at=5), locks=locks)
    assert not store.up
    await holding
    await store.write(lambda tx: jobs.note(tx, job.id, 1, sent_at=5), locks=())
    assert store.up


async def test_an_end_waits_for_a_silent_database_and_says_what_came_of_the_run(
    store: PostgresStore, other: Store
) -> None:
    engine = Engine(store)
    job = await running_job(store, sent=True)
    holding = await hold(other, job, 3.5 * ANSWER_S)

    await engine.settler.end_attempt(job, plan(), Ending(Outcome.SUCCEEDED, exit_code=0))

    await holding
    ended = await job_of(store, job.id)
    assert (ended.outcome, ended.exit_code, ended.error_code) == (Outcome.SUCCEEDED, 0, None)
    await engine.stop()
