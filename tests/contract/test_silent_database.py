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
from tests.services.postgres import PostgresServer
from tests.services.rows import Engine, job_of, plan, running_job
from tests.services.wire import Wire

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


async def note(store: Store, job: Job, sent_at: int) -> None:
    await store.write(lambda tx: jobs.note(tx, job.id, 1, sent_at=sent_at))


@pytest.mark.parametrize("falls_silent", ["before BEGIN", "before a statement", "before COMMIT"])
@pytest.mark.parametrize("by_core", [False, True])
async def test_what_is_written_after_a_silence_is_on_disk_and_what_was_open_then_holds_nothing(
    falls_silent: str, by_core: bool, database: str, other: Store, postgres_server: PostgresServer
) -> None:
    job = await running_job(other)
    async with Wire(postgres_server.port) as wire:
        url = database.replace(f":{postgres_server.port}/", f":{wire.port}/")
        store = PostgresStore(postgres_url(url), connections=1, answer_s=ANSWER_S)
        await store.start()
        await note(store, job, 4)

        def item(tx: Transaction) -> None:
            if by_core:
                tx.conn.execute(update(tables.jobs).where(tables.jobs.c.id == job.id).values(sent_at=5))
            else:
                jobs.note(tx, job.id, 1, sent_at=5)
            if falls_silent != "before BEGIN":
                wire.freeze()
            if falls_silent == "before a statement":
                jobs.get(tx.conn, job.id)

        if falls_silent == "before BEGIN":
            wire.freeze()
        with pytest.raises(StoreUnavailable):
            await store.write(item)
        wire.mend()

        for sent_at in range(6, 9):  # by whatever connections are still there
            assert (await store.read(lambda conn: jobs.get(conn, job.id))).sent_at != sent_at
            await note(store, job, sent_at)
            assert (await job_of(other, job.id)).sent_at == sent_at
            await asyncio.wait_for(note(other, job, 0), 5)
        await store.stop()


async def test_a_write_that_was_canceled_takes_no_later_one_along(
    database: str, other: Store, postgres_server: PostgresServer
) -> None:
    job = await running_job(other)
    async with Wire(postgres_server.port) as wire:
        url = database.replace(f":{postgres_server.port}/", f":{wire.port}/")
        store = PostgresStore(postgres_url(url), connections=1)
        await store.start()
        await note(store, job, 4)
        wire.freeze()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await note(store, job, 5)
        wire.mend()

        for sent_at in range(6, 9):
            await note(store, job, sent_at)
            assert (await job_of(other, job.id)).sent_at == sent_at
        await store.stop()
