from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text

from iotjobs import clock
from iotjobs.domain.jobs import Ending
from iotjobs.domain.statuses import Outcome
from iotjobs.engine import control, events, feed
from iotjobs.engine import hints as module
from iotjobs.engine.events import EventFeed
from iotjobs.engine.hints import Hints
from iotjobs.engine.place import alone
from iotjobs.store.events import Event, newest
from iotjobs.store.hints import PAYLOAD_BYTES
from iotjobs.store.nodes import Node
from iotjobs.store.session import open_store
from tests.services.rows import ADMIN, Engine, running_job
from tests.services.site import eventually


class End:
    """One end of the line, and what it heard."""

    def __init__(self, url: str) -> None:
        self.hints = Hints(url)
        self.events = 0
        self.ended: list[str] = []
        self.asked: list[str] = []
        self.hints.on_events = self._count
        self.hints.on_ended, self.hints.on_asked = self.ended.append, self.asked.append

    def _count(self) -> None:
        self.events += 1


@pytest.fixture
def url(fresh_database: Callable[[], str]) -> str:
    return fresh_database()


@asynccontextmanager
async def two_ends(url: str) -> AsyncIterator[tuple[End, End]]:
    one, other = End(url), End(url)
    for node in (one, other):
        await node.hints.start()
    await eventually(lambda: one.events and other.events, 10)  # the line is open
    yield one, other
    for node in (one, other):
        await node.hints.stop()


async def test_the_other_node_hears_and_the_one_that_said_it_does_not(url: str) -> None:
    async with two_ends(url) as (one, other):
        before = one.events

        one.hints.ended("a")
        one.hints.asked("w2")
        await eventually(lambda: other.asked, 5)

        assert (other.ended, other.asked) == (["a"], ["w2"])
        assert (one.ended, one.asked, one.events) == ([], [], before)


async def test_more_than_a_notification_holds_comes_in_several(url: str) -> None:
    ids = [f"{number:032x}" for number in range(PAYLOAD_BYTES // 10)]
    async with two_ends(url) as (one, other):
        for job_id in ids:
            one.hints.ended(job_id)

        await eventually(lambda: len(other.ended) == len(ids), 10)

        assert other.ended == ids


async def test_a_line_that_is_cut_is_opened_again(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_AFTER_S", 0.05)
    store = open_store(url)
    async with two_ends(url) as (one, other):
        before = other.events
        cut = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'iotjobs hints'"
        )
        await store.write(lambda tx: tx.conn.execute(text(f"{cut} AND datname = current_database()")))
        await eventually(lambda: other.events > before, 10)  # what it may have missed meanwhile

        async def heard() -> None:
            while not other.ended:
                one.hints.ended("a")
                await asyncio.sleep(0)

        await asyncio.wait_for(heard(), 10)
    await store.stop()


async def test_what_one_node_commits_is_heard_on_another_before_it_looks(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for waits, name in ((feed, "POLL_S"), (events, "POLL_S"), (control, "LOOK_EVERY_S")):
        monkeypatch.setattr(waits, name, 600.0)
    async with two_sites(url) as (here, there), asyncio.timeout(20):
        job = await running_job(here.store, worker_id="here")
        waiting = asyncio.create_task(there.feed.wait_for_end(job.id, 600))
        start = await there.store.look(newest)
        following = asyncio.create_task(anext(there.events.follow(start)))
        await eventually(lambda: there.feed._waiters and there.events._readers, 5)
        ending = Ending(Outcome.SUCCEEDED)
        await here.store.write(lambda tx: here.settler.finish(tx, job, ending, clock.now_ms()))

        assert await waiting
        event = await following
        assert isinstance(event, Event)
        assert event.job_id == job.id

        asked = await running_job(here.store, worker_id="there")
        await here.control.cancel(asked.id, ADMIN, None)
        await eventually(lambda: there.told, 10)
        assert there.told == [(asked.id, asked.attempt)]


class Site(Engine):
    """The engine of one of two nodes, and what its worker is told to end."""

    def __init__(self, url: str, worker_id: str) -> None:
        super().__init__(open_store(url), worker_id=worker_id)
        self.events = EventFeed(self.store)
        self.told: list[tuple[str, int]] = []
        self.worker.end = lambda job_id, attempt: self.told.append((job_id, attempt))  # type: ignore[method-assign]
        place = alone(Node("", 0, "", (), 1))
        self.hints = place.hints = Hints(url)
        self.store.after_writes.append(self.hints.written)
        place.connect(self.feed, self.events, self.control)


@asynccontextmanager
async def two_sites(url: str) -> AsyncIterator[tuple[Site, Site]]:
    here, there = Site(url, "here"), Site(url, "there")
    for site in (here, there):
        await site.hints.start()
        await site.control.start()
    await eventually(lambda: not here.hints._cut and not there.hints._cut, 10)
    yield here, there
    for site in (here, there):
        site.events.let_go()
        await site.stop()
        await site.hints.stop()
        await site.store.stop()


async def test_nothing_gathers_while_nobody_can_be_told() -> None:
    hints = Hints("postgresql://nobody@127.0.0.1:1/nothing")

    hints.ended("a")
    hints.asked("w")

    assert (hints._ended, hints._asked) == ({}, {})
