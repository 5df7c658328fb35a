"""Lanes under load, on both databases: no wake-up is lost, and no lane holds up another."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable

import pytest

from iotjobs import clock
from iotjobs.domain.jobs import Ending, Job
from iotjobs.domain.operations import OperationType, Plan
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.execution import Begun
from iotjobs.engine.presence import Alone
from iotjobs.engine.settle import Settler
from iotjobs.engine.worker import Worker
from iotjobs.store import jobs, queue, reads
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from tests.services.rows import Engine, job_row
from tests.services.site import eventually

LANES = 50
AT_ONCE = 40


class NoOp:
    """An executor whose attempts succeed at once; notes when each began."""

    def __init__(self, settler: Settler) -> None:
        self._settler = settler
        self.began: dict[str, float] = {}

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


class Racing:
    """An engine around no-op attempts, and jobs that are put straight into it."""

    def __init__(self, store: Store) -> None:
        self.engine = Engine(store)
        self.store = store
        self.runs = NoOp(self.engine.settler)
        self.worker = Worker(
            store,
            self.engine.secrets,
            self.engine.dispatcher,
            self.runs,  # type: ignore[arg-type]
            limits=self.engine.limits,
            presence=Alone("w1"),
            at_once=AT_ONCE,
        )
        self.engine.worker = self.worker

    async def submit(self, lane: str | None, **columns: object) -> str:
        row = job_row(lane=lane, **columns)

        def item(tx: Transaction) -> None:
            seq = jobs.insert_job(tx, row, Plan(OperationType.SCRIPT, 60.0, script="true"), None)
            ticket = queue.ticket_of(tx.conn, jobs.inserted(row, seq))
            queue.offer_if_free(tx, lane, ticket, clock.now_ms(), self.engine.dispatcher)

        await self.store.write(item, locks=[] if lane is None else [lane])
        return str(row["id"])

    async def all_ended(self) -> bool:
        counts = await self.store.read(reads.counts)
        return not counts.get(Status.PENDING) and not counts.get(Status.RUNNING)


@pytest.fixture
async def racing(store: Store) -> AsyncIterator[Callable[[], Racing]]:
    made: list[Racing] = []

    def make() -> Racing:
        made.append(Racing(store))
        return made[-1]

    yield make
    for one in made:
        await one.engine.stop()


async def test_submits_that_race_with_settles_lose_no_wake_up(
    racing: Callable[[], Racing], full: bool
) -> None:
    race = racing()
    count = 10_000 if full else 1_500
    seed = random.randrange(10**6)
    print(f"seed {seed}, {count} jobs in {LANES} lanes")  # noqa: T201 - shown when it fails
    chance = random.Random(seed)
    await race.worker.start()
    lanes = [f"lane{chance.randrange(LANES)}" for _ in range(count)]
    waiting = iter(lanes)

    async def producer() -> None:
        for lane in waiting:
            await race.submit(lane, priority=chance.randrange(10))

    await asyncio.gather(*(producer() for _ in range(20)))
    # Nothing sweeps here: every job must have been offered by the transaction that made it ready.
    await eventually(race.all_ended, 60 if full else 20)
    assert len(race.runs.began) == count
    assert await race.engine.deadlines.sweep() == 0


async def test_what_waits_for_one_busy_lane_costs_the_others_nothing(
    racing: Callable[[], Racing], full: bool
) -> None:
    race = racing()
    waiting = 5_000 if full else 1_000

    async def median_ms(rounds: int) -> float:
        took = []
        for number in range(rounds):
            began = time.monotonic()
            job_id = await race.submit(f"free{number}")
            await eventually(lambda: job_id in race.runs.began, 5, 0.001)  # noqa: B023
            took.append(1000 * (race.runs.began[job_id] - began))
        return statistics.median(took)

    await race.worker.start()
    alone = await median_ms(60)
    stuck = await race.submit("offline", start_at=None)
    await eventually(lambda: stuck in race.runs.began, 5)
    # An attempt of another worker that does not end holds the lane.
    held = job_row(lane="offline")
    await race.store.write(lambda tx: _begun_elsewhere(tx, held))
    await asyncio.gather(*(race.submit("offline") for _ in range(waiting)))
    behind = await median_ms(60)
    began = time.monotonic()
    assert await race.engine.deadlines.sweep() == 0
    print(f"{alone:.2f} ms alone, {behind:.2f} ms beside {waiting} waiting jobs")  # noqa: T201
    print(f"a sweep over them took {1000 * (time.monotonic() - began):.0f} ms")  # noqa: T201
    assert len(race.runs.began) == 121  # each of the others began, and none of the lane


def _begun_elsewhere(tx: Transaction, row: dict[str, object]) -> None:
    seq = jobs.insert_job(tx, row, Plan(OperationType.SCRIPT, 60.0, script="true"), None)
    job = jobs.inserted(row, seq)
    jobs.begin_attempt(tx, job, worker_id="w2", nonce="n", at=clock.now_ms(), sent=True)
