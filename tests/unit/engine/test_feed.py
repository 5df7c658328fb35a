from __future__ import annotations

import asyncio

import pytest

from iotjobs.domain.errors import NotFound
from iotjobs.domain.jobs import Ending
from iotjobs.domain.statuses import Outcome
from iotjobs.engine import feed as module
from iotjobs.engine.feed import Feed
from iotjobs.store import jobs
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from tests.services.rows import running_job


async def end(store: Store, feed: Feed | None) -> tuple[str, asyncio.Task[None]]:
    """A running job, and the task that will end it; without a feed nobody is told."""
    job = await running_job(store)

    def item(tx: Transaction) -> None:
        jobs.settle(tx, job, Ending(Outcome.SUCCEEDED), 1)
        if feed is not None:
            feed.ended(tx, job.id)

    async def write() -> None:
        await asyncio.sleep(0)
        await store.write(item)

    return job.id, asyncio.create_task(write())


async def test_who_waits_is_woken_by_the_commit(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 60.0)
    feed = Feed(sqlite_store)
    job_id, ending = await end(sqlite_store, feed)

    waits = [feed.wait_for_end(job_id, 30) for _ in range(5)]
    async with asyncio.timeout(1):
        assert await asyncio.gather(*waits) == [True] * 5
    await ending
    assert await feed.wait_for_end(job_id, 0) is True
    assert feed._waiters == {}


async def test_a_lost_wake_up_costs_a_look_and_nothing_else(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.02)
    feed = Feed(sqlite_store)
    job_id, ending = await end(sqlite_store, None)

    assert await feed.wait_for_end(job_id, 5) is True
    await ending


async def test_a_wait_ends_when_its_time_is_over_and_leaves_nothing(sqlite_store: Store) -> None:
    feed = Feed(sqlite_store)
    job = await running_job(sqlite_store)

    assert await feed.wait_for_end(job.id, 0.02) is False
    assert feed._waiters == {}


async def test_waiting_for_an_unknown_job_is_an_error(sqlite_store: Store) -> None:
    with pytest.raises(NotFound):
        await Feed(sqlite_store).wait_for_end("0" * 32, 1)


async def test_when_the_site_stops_nobody_waits_any_longer(sqlite_store: Store) -> None:
    feed = Feed(sqlite_store)
    job = await running_job(sqlite_store)
    waiting = asyncio.create_task(feed.wait_for_end(job.id, 60))
    await asyncio.sleep(0)

    feed.let_go()

    async with asyncio.timeout(1):
        assert await waiting is False
        assert await feed.wait_for_end(job.id, 60) is False
