"""What the store and the engine promise to readers of events, on both databases."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from sqlalchemy import insert, select, text

from iotjobs import clock
from iotjobs.domain.errors import BadRequest
from iotjobs.engine import events as engine
from iotjobs.engine.events import EventFeed, FeedLag, Gap
from iotjobs.store import events, tables
from iotjobs.store.events import BEGINNING, Event, Position
from iotjobs.store.session import PostgresStore, Store, open_store
from iotjobs.store.writer import Transaction
from tests.services.rows import add_job
from tests.services.site import eventually

WRITERS = 500
EACH = 6


def happened(tx: Transaction, of: str, number: int) -> None:
    tx.conn.execute(
        insert(tables.events),
        {"kind": "job.changed", "at": clock.now_ms(), "job_id": of, "data": {"n": number}},
    )


async def next_of(reader: AsyncGenerator[Event | Gap, None], within_s: float = 10.0) -> Event | Gap:
    async with asyncio.timeout(within_s):
        return await anext(reader)


async def waiting(store: Store, after: Position = BEGINNING) -> list[Event]:
    return await store.look(lambda conn: events.after(conn, after, 10_000))


async def test_a_reader_that_reconnects_at_random_under_500_writers_sees_every_event_once_in_order(
    store: Store,
) -> None:
    seed = int(os.environ.get("EVENTS_TEST_SEED") or random.randrange(10**6))
    print(f"seed {seed}: EVENTS_TEST_SEED={seed} repeats it")  # noqa: T201 - shown when it fails
    chance = random.Random(seed)
    feed = EventFeed(store)

    async def write(name: str) -> None:
        for number in range(EACH):
            extra = chance.randrange(3)  # a transaction may hold more than one, and any may be slow

            def item(tx: Transaction, number: int = number, extra: int = extra) -> None:
                for part in range(1 + extra):
                    happened(tx, name, number * 10 + part)
                if chance.random() < 0.05 and tx.conn.dialect.name == "postgresql":
                    tx.conn.execute(text("SELECT pg_sleep(0.05)"))

            await store.write(item)

    seen: list[Event] = []
    connections = 0

    async def read(stop: asyncio.Event) -> None:
        nonlocal connections
        position = BEGINNING
        while not (stop.is_set() and position == await store.look(events.newest)):
            connections += 1
            patience = chance.randrange(1, 200)
            async with aclosing(feed.follow(position)) as reader:
                for _ in range(patience):
                    try:
                        event = await next_of(reader, 0.2)
                    except TimeoutError:
                        break
                    assert isinstance(event, Event)
                    seen.append(event)
                    position = Position.parse(str(event.position))

    over = asyncio.Event()
    reading = asyncio.create_task(read(over))
    began = time.monotonic()
    await asyncio.gather(*(write(f"w{number}") for number in range(WRITERS)))
    wrote_s = time.monotonic() - began
    over.set()
    async with asyncio.timeout(30):
        await reading

    count = await store.read(lambda conn: len(conn.execute(select(tables.events.c.id)).all()))
    print(  # noqa: T201
        f"{count} events by {WRITERS} writers in {wrote_s:.1f} s, read over {connections} connections"
    )
    positions = [event.position for event in seen]
    assert positions == sorted(set(positions)), "out of order, or twice"
    assert len(seen) == count >= WRITERS * EACH
    assert {event.position for event in await waiting(store)} == set(positions)
    of_one: dict[Any, list[int]] = {}
    for event in seen:
        of_one.setdefault(event.job_id, []).append(event.data["n"])
    assert all(numbers == sorted(numbers) for numbers in of_one.values())


async def test_an_open_write_transaction_holds_back_and_loses_nothing(store: Store, store_url: str) -> None:
    if not isinstance(store, PostgresStore):
        pytest.skip("SQLite has one writer, so that nobody can be overtaken")
    held, go = asyncio.Event(), asyncio.Event()
    lag = FeedLag(store)

    async def slow() -> None:
        async with store._engine.begin() as conn:
            await conn.run_sync(lambda sync: happened(Transaction(sync), "slow", 1))
            held.set()
            await go.wait()

    overtaken = asyncio.create_task(slow())
    await held.wait()
    feed = EventFeed(store)
    async with aclosing(feed.follow(BEGINNING)) as reader:
        await store.write(lambda tx: happened(tx, "quick", 1))
        assert await waiting(store) == []  # committed, and behind something that is not
        await lag.look()
        assert lag.lag_s < engine.LAG_TOLD_S
        assert lag.reason() is None

        await store.write(lambda tx: tx.conn.execute(text("UPDATE event SET at = at - 60000")))
        await lag.look()
        assert lag.lag_s > 59
        assert "holds events back for" in (lag.reason() or "")

        go.set()
        await overtaken
        found = [await next_of(reader), await next_of(reader)]
    assert [event.job_id for event in found if isinstance(event, Event)] == ["slow", "quick"]
    await lag.look()
    assert lag.reason() is None


async def test_a_session_on_the_server_is_bounded_and_commits_to_disk_however_the_server_is_set(
    store: Store,
) -> None:
    if not isinstance(store, PostgresStore):
        pytest.skip("of PostgreSQL")

    def limits(conn: Any) -> list[str]:
        names = ("idle_in_transaction_session_timeout", "statement_timeout", "synchronous_commit")
        return [conn.execute(text(f"SHOW {name}")).scalar_one() for name in names]

    assert await store.read(limits) == ["5s", "10s", "on"]


async def test_a_resume_below_what_was_pruned_is_told_and_goes_on(store: Store) -> None:
    old, kept = [(await add_job(store)).id for _ in range(2)]
    for number, job_id in enumerate((old, kept, old, kept)):
        await store.write(lambda tx, of=job_id, n=number: happened(tx, of, n))
    everything = await waiting(store)
    last_of_old = max(event.position for event in everything if event.job_id == old)

    await store.write(lambda tx: events.forget(tx, [old]))

    feed = EventFeed(store)
    async with aclosing(feed.follow(everything[0].position)) as reader:
        assert await next_of(reader) == Gap(everything[0].position, last_of_old)
        found = [await next_of(reader) for _ in range(3)]
        assert [event.job_id for event in found if isinstance(event, Event)] == [kept] * 3
        await store.write(lambda tx: happened(tx, kept, 9))  # and the gap is told once
        later = await next_of(reader)
        assert isinstance(later, Event)
        assert later.data == {"n": 9}
    async with aclosing(feed.follow(last_of_old)) as reader:  # who had seen that far missed nothing
        first = await next_of(reader)
        assert isinstance(first, Event)


async def test_the_mark_moves_with_the_deletion_and_never_back(store: Store) -> None:
    first, second = [(await add_job(store)).id for _ in range(2)]
    positions = [event.position for event in await waiting(store)]

    await store.write(lambda tx: events.forget(tx, [second]))
    assert await store.look(events.pruned) == positions[1]
    assert await store.look(events.newest) == positions[1]
    await store.write(lambda tx: events.forget(tx, [first]))
    await store.write(lambda tx: events.forget(tx, ["none"]))

    assert await store.look(events.pruned) == positions[1]
    assert await waiting(store) == []


async def test_a_new_generation_is_told_to_whoever_resumes_from_an_older_one(store: Store) -> None:
    await add_job(store)
    await store.write(lambda tx: happened(tx, "a", 1))
    [*_, before] = await waiting(store)

    generation = await store.write(lambda tx: events.begin_generation(tx, 5_000))
    again = await store.write(lambda tx: events.begin_generation(tx, 5_000))
    assert (generation, again) == (5, 6)
    await store.write(lambda tx: happened(tx, "b", 2))

    [*_, newest] = await waiting(store)
    assert newest.position.generation == again
    assert newest.position > before.position
    async with aclosing(EventFeed(store).follow(before.position)) as reader:
        assert await next_of(reader) == Gap(before.position, Position(again, 0, 0))
        assert await next_of(reader) == newest


async def test_a_position_that_never_was_is_told_and_left(store: Store) -> None:
    await add_job(store)
    newest = await store.look(events.newest)
    beyond = Position(newest.generation, newest.xid + 10, newest.number + 10)

    async with aclosing(EventFeed(store).follow(beyond)) as reader:
        assert await next_of(reader) == Gap(beyond, newest)
        await store.write(lambda tx: happened(tx, "a", 1))
        event = await next_of(reader)
        assert isinstance(event, Event)


async def test_without_a_position_only_what_comes_is_told_also_by_another_process(
    store: Store, store_url: str
) -> None:
    await add_job(store)
    feed, other = EventFeed(store), open_store(store_url)
    await other.start()
    try:
        async with aclosing(feed.follow()) as reader:
            coming = asyncio.create_task(next_of(reader))
            await eventually(lambda: feed._readers)
            await store.read(events.newest)
            await other.write(lambda tx: happened(tx, "b", 2))  # no hint: found by looking
            event = await coming
    finally:
        await other.stop()
    assert isinstance(event, Event)
    assert event.job_id == "b"
    assert feed._readers == set()


async def test_every_reader_ends_with_the_site(store: Store) -> None:
    feed = EventFeed(store)

    async def all_of(after: Position | None) -> list[Event | Gap]:
        async with aclosing(feed.follow(after)) as reader:
            return [event async for event in reader]

    await add_job(store)
    readers = [asyncio.create_task(all_of(BEGINNING)), asyncio.create_task(all_of(None))]
    await eventually(lambda: len(feed._readers) == 2)

    feed.let_go()

    async with asyncio.timeout(5):
        await asyncio.gather(*readers)
        assert await all_of(BEGINNING) == []


@pytest.mark.parametrize(
    "given", ["", "1", "1-2", "1-2-3-4", "-1-2-3", "a-b-c", "\u0661-0-1", "1-0-1\n", "9" * 40 + "-0-1"]
)
def test_an_id_that_is_not_ours_is_refused(given: str) -> None:
    with pytest.raises(BadRequest):
        Position.parse(given)


def test_an_id_is_read_as_it_was_written() -> None:
    assert Position.parse(str(Position(3, 77, 12))) == Position(3, 77, 12)
    assert Position(2, 0, 1) > Position(1, 999, 999)
