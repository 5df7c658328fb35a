"""Lanes under load, on both databases with the dispatcher of each: no wake-up is lost, and no lane holds up another."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import pytest
from sqlalchemy import update

from iotjobs import clock
from iotjobs.domain.jobs import Ending, Job, PendingReason
from iotjobs.domain.operations import OperationType, Plan
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.deadlines import SWEEP_EVERY_S
from iotjobs.engine.dispatch import Dispatcher, InProcessDispatcher
from iotjobs.engine.dispatch_postgres import PgQueuerDispatcher
from iotjobs.engine.execution import Begun
from iotjobs.engine.presence import Alone
from iotjobs.engine.settle import Settler
from iotjobs.engine.worker import Worker
from iotjobs.store import jobs, queue, tables
from iotjobs.store.queue import Ticket
from iotjobs.store.session import Store, open_store
from iotjobs.store.writer import Transaction
from tests.services.rows import Engine, add_job, counts, job_of, job_row
from tests.services.site import eventually

LANES = 50
AT_ONCE = 500  # the setting's default: only its lane holds a job up
PRODUCERS = 20


class NoOp:
    """An executor whose attempts succeed at once; notes when each began and had its end."""

    def __init__(self, settler: Settler) -> None:
        self._settler = settler
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}

    def ready_to_send(self, _job: Job) -> bool:
        return True

    def interrupt(self) -> None:
        pass

    def forget(self, _job_id: str) -> None:
        pass

    async def run(self, begun: Begun) -> None:
        assert begun.job.id not in self.began, "begun twice"
        self.began[begun.job.id] = time.monotonic()
        await asyncio.sleep(0)
        await self._settler.end_attempt(begun.job, begun.plan, Ending(Outcome.SUCCEEDED, exit_code=0))
        self.ended[begun.job.id] = time.monotonic()


class Racing:
    """An engine around no-op attempts with its database's own dispatcher, and jobs put straight into it."""

    def __init__(self, store: Store, url: str) -> None:
        postgres = url.startswith("postgresql")
        self.store = store
        self.dispatcher: Dispatcher = (
            PgQueuerDispatcher(store, url, at_once=AT_ONCE) if postgres else InProcessDispatcher()
        )
        self.engine = Engine(store, dispatcher=self.dispatcher)
        self.runs = NoOp(self.engine.settler)
        self.worker = Worker(
            store,
            self.engine.secrets,
            self.dispatcher,
            self.runs,  # type: ignore[arg-type]
            limits=self.engine.limits,
            presence=Alone("w1"),
            at_once=AT_ONCE,
        )
        self.engine.worker = self.worker
        self.submitted: dict[str, list[tuple[str, float]]] = {}

    async def submit(self, lane: str, **columns: object) -> str:
        row = job_row(lane=lane, **columns)

        def item(tx: Transaction) -> None:
            seq = jobs.insert_job(tx, row, Plan(OperationType.SCRIPT, 60.0, script="true"), None)
            ticket = queue.ticket_of(tx.conn, jobs.inserted(row, seq))
            queue.offer_if_free(tx, lane, ticket, clock.now_ms(), self.dispatcher)

        await self.store.write(item, locks=[lane])
        self.submitted.setdefault(lane, []).append((str(row["id"]), time.monotonic()))
        return str(row["id"])

    async def submit_all(self, rows: Iterable[dict[str, Any]]) -> None:
        """Submit them in their order, as many callers do."""
        left = iter(rows)

        async def producer() -> None:
            for row in left:
                await self.submit(**row)

        await asyncio.gather(*(producer() for _ in range(PRODUCERS)))

    async def all_ended(self) -> bool:
        found = await counts(self.store)
        return not found.get(Status.PENDING) and not found.get(Status.RUNNING)

    def longest_wait_s(self) -> float:
        """The longest time that a lane was free while a job of it waited."""
        longest = 0.0
        for submitted in self.submitted.values():
            waiting = dict(submitted)
            free_since = 0.0
            for job_id in sorted(waiting, key=self.runs.began.__getitem__):
                longest = max(longest, self.runs.began[job_id] - max(free_since, min(waiting.values())))
                free_since = self.runs.ended[job_id]
                del waiting[job_id]
        return longest


Make = Callable[..., Awaitable[Racing]]


@pytest.fixture
async def racing(store_url: str) -> AsyncIterator[Make]:
    made: list[Racing] = []

    async def make(url: str = store_url) -> Racing:
        store = open_store(url)
        await store.start()
        made.append(Racing(store, url))
        await made[-1].dispatcher.start()
        await made[-1].worker.start()
        return made[-1]

    yield make
    for one in made:
        await one.engine.stop()
        await one.dispatcher.stop()
        await one.store.stop()


async def test_submits_that_race_with_settles_lose_no_wake_up(racing: Make, full: bool) -> None:
    race = await racing()
    count = 10_000 if full else 600
    seed = random.randrange(10**6)
    chance = random.Random(seed)
    lanes = [f"lane{chance.randrange(LANES)}" for _ in range(count)]
    began = time.monotonic()
    await race.submit_all({"lane": lane, "priority": chance.randrange(10)} for lane in lanes)
    # Nothing sweeps here: every job must have been offered by the transaction that made it ready.
    try:
        await eventually(race.all_ended, 240 if full else 40)
    finally:
        took_s, swept = time.monotonic() - began, await race.engine.deadlines.sweep()
        print(f"seed {seed}: {count} jobs in {LANES} lanes in {took_s:.1f} s, only a sweep found {swept}")  # noqa: T201
    print(f"a job waited {race.longest_wait_s():.3f} s in a free lane at most")  # noqa: T201 - a figure
    assert swept == 0
    assert len(race.runs.began) == count
    assert race.longest_wait_s() < SWEEP_EVERY_S


@pytest.mark.parametrize("limit", [1, 3])
async def test_submits_that_race_with_settles_lose_no_wake_up_in_a_full_queue_either(
    racing: Make, limit: int
) -> None:
    race = await racing()
    race.engine.limits.concurrency = {"press": limit}
    rows = [{"lane": f"lane{number % LANES}", "queue": "press"} for number in range(300)]
    await race.submit_all(rows)

    # Nothing sweeps here, and nothing looks for free places: whoever left the queue has offered the next.
    await eventually(race.all_ended, 60)

    assert await race.engine.deadlines.sweep() == 0
    assert len(race.runs.began) == len(rows)


async def test_what_waits_for_one_busy_lane_costs_the_others_nothing(
    racing: Make,
    store_url: str,
    make_url: Callable[[str], str],
    full: bool,
) -> None:
    waiting, rounds = (5_000, 150) if full else (500, 50)
    kind = "postgresql" if store_url.startswith("postgresql") else "sqlite"
    empty, behind = await racing(make_url(kind)), await racing()
    # An attempt of another worker that does not end holds the lane.
    held = job_row(lane="offline")
    await behind.store.write(lambda tx: _begun_elsewhere(tx, held))
    await behind.submit_all({"lane": "offline"} for _ in range(waiting))

    async def latency_ms(race: Racing, lane: str) -> float:
        began = time.monotonic()
        job_id = await race.submit(lane)
        await eventually(lambda: job_id in race.runs.ended, 5, 0.001)
        return 1000 * (race.runs.began[job_id] - began)

    took: dict[Racing, list[float]] = {empty: [], behind: []}
    for number in range(rounds):  # in turn, so that what else the machine does meets both
        for race, measured in took.items():
            measured.append(await latency_ms(race, f"free{number}"))
    alone_ms, behind_ms = (statistics.median(took[race]) for race in (empty, behind))
    began = time.monotonic()
    assert await behind.engine.deadlines.sweep() == 0
    print(  # noqa: T201
        f"{alone_ms:.2f} ms alone, {behind_ms:.2f} ms beside {waiting} waiting jobs: {behind_ms / alone_ms:.2f} x"
    )
    print(f"a sweep over them took {1000 * (time.monotonic() - began):.0f} ms")  # noqa: T201
    assert len(behind.runs.began) == rounds  # each of the others began, and none of the lane
    assert behind_ms <= 1.5 * alone_ms


async def test_who_has_expired_stands_before_nobody_also_while_no_leader_writes_its_end(store: Store) -> None:
    engine, lane = Engine(store), PendingReason.LANE
    first, second = await add_job(store, lane="a"), await add_job(store, lane="a", pending_reason=lane)
    long_ago = update(tables.jobs).where(tables.jobs.c.id == first.id).values(expires_at=1)
    await store.write(lambda tx: tx.conn.execute(long_ago))

    assert await engine.worker._begun(Ticket.of(first)) is None

    assert engine.dispatcher.live == {second.id}
    assert [ticket.job_id for ticket in await store.read(lambda conn: queue.ready(conn, 2, 9))] == [second.id]
    begun = await engine.worker._begun(Ticket.of(second))
    assert begun is not None
    await engine.deadlines.look()
    assert (await job_of(store, first.id)).outcome is Outcome.EXPIRED
    await engine.settler.end_attempt(begun.job, begun.plan, Ending(Outcome.SUCCEEDED))
    await engine.stop()


async def test_what_comes_into_a_lane_where_only_an_expired_one_stands_is_offered(store: Store) -> None:
    engine = Engine(store)
    await add_job(store, lane="a", expires_at=1)
    new = await add_job(store, lane="a")
    now = clock.now_ms()
    assert await store.write(lambda tx: queue.offer_if_free(tx, "a", Ticket.of(new), now, engine.dispatcher))
    await engine.stop()


def _begun_elsewhere(tx: Transaction, row: dict[str, object]) -> None:
    seq = jobs.insert_job(tx, row, Plan(OperationType.SCRIPT, 60.0, script="true"), None)
    job = jobs.inserted(row, seq)
    jobs.begin_attempt(tx, job, worker_id="w2", nonce="n", at=clock.now_ms(), sent=True)
