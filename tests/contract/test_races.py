"""Cancel, stop and finish at once: exactly one terminal event, whoever is first, on both databases."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from iotjobs.domain.control import NOT_CONFIRMED
from iotjobs.domain.errors import Conflict
from iotjobs.domain.jobs import Ending, Job
from iotjobs.domain.statuses import ENDED, Outcome, Status
from iotjobs.store import jobs, queue
from iotjobs.store.queue import Ticket
from iotjobs.store.session import Store
from tests.services.lives import assert_one_life, told_by_job
from tests.services.rows import ADMIN, Engine, add_job, job_of, plan, running_job

ROUNDS = 300
ALL_AT_ONCE = 10  # jobs whose races run beside each other

GOOD = Ending(Outcome.SUCCEEDED, exit_code=0)
ENDED_BY_SIGNAL = Ending(Outcome.LOST, error_code=NOT_CONFIRMED, error_message="its processes are gone")


async def life_of(store: Store, job_id: str) -> Job:
    """The row of a job, which its events have to fold to."""
    told, job = await store.read(lambda conn: (told_by_job(conn, job_id)[job_id], jobs.get(conn, job_id)))
    assert_one_life(told, job)
    assert [at for _, _, at in told] == sorted(at for _, _, at in told)
    return job


async def refused_or_done(ask: Awaitable[Any]) -> str:
    try:
        return str(await ask)
    except Conflict:
        return "refused"


async def after_turns(turns: int, ask: Callable[[], Awaitable[Any]]) -> Any:
    for _ in range(turns):
        await asyncio.sleep(0)
    return await ask()


async def begin(engine: Engine, ticket: Ticket) -> None:
    """As the worker does, among others."""
    await engine.store.write(
        lambda tx: engine.worker._begin(tx, ticket),
        locks=engine.limits.locks_of(ticket),
        ahead=(queue.candidates, ticket.job_id),
    )


async def race(engine: Engine, chance: random.Random) -> Job:
    """One running job, and everybody who wants it to end, in any order."""
    job = await running_job(engine.store, sent=True, lane=None)
    by_signal = chance.random() < 0.5
    over = asyncio.Event()

    async def worker() -> None:
        if by_signal:
            await over.wait()
            # The proof that nothing is left: the run's mark is gone.
            gone = Job(**{name: getattr(job, name) for name in Job.__dataclass_fields__} | {"nonce": None})
            await engine.settler.end_attempt(gone, plan(), ENDED_BY_SIGNAL)
        else:
            await engine.settler.end_attempt(job, plan(), GOOD)

    asks: list[Callable[[], Awaitable[Any]]] = [
        lambda: refused_or_done(engine.control.cancel(job.id, ADMIN, None)),
        lambda: refused_or_done(engine.control.stop_job(job.id, ADMIN)),
        lambda: refused_or_done(engine.control.set_low_priority(job.id, ADMIN, chance.random() < 0.5)),
        worker,
    ]
    if chance.random() < 0.5:
        asks += asks[:2]
    if chance.random() < 0.3:
        asks = asks[1:]  # no cancel: a stop may win
    chance.shuffle(asks)
    tasks = [asyncio.create_task(after_turns(chance.randrange(6), ask)) for ask in asks]
    await asyncio.wait([task for task, ask in zip(tasks, asks, strict=True) if ask is not worker])
    over.set()
    await asyncio.gather(*tasks)
    return await job_of(engine.store, job.id)


@pytest.mark.check(2)
async def test_cancel_stop_and_finish_at_once_leave_one_end(store: Store) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    engine, chance = Engine(store), random.Random(seed)
    seen: set[tuple[Status, str | None]] = set()
    for _ in range(ROUNDS // ALL_AT_ONCE):
        for job in await asyncio.gather(*(race(engine, chance) for _ in range(ALL_AT_ONCE))):
            job = await life_of(store, job.id)
            seen.add((job.status, job.outcome))
            assert job.status in (Status.CANCELED, Status.FINISHED, Status.STOPPED)
            if job.status is Status.STOPPED:
                ends = await asyncio.gather(
                    *(refused_or_done(engine.control.cancel(job.id, ADMIN, None)) for _ in range(2)),
                    refused_or_done(engine.control.resume(job.id, ADMIN, confirmed=True)),
                )
                assert ends[:2] == ["CANCELED", "CANCELED"]
                assert (await life_of(store, job.id)).status is Status.CANCELED
    await engine.stop()

    assert {(Status.FINISHED, "succeeded"), (Status.CANCELED, "canceled"), (Status.STOPPED, None)} <= seen


@pytest.mark.check(2)
async def test_begin_expiry_and_requests_at_once_leave_one_life(store: Store) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 - shown when the test fails
    engine, chance = Engine(store), random.Random(seed)
    for _ in range(ROUNDS // ALL_AT_ONCE // 3):
        jobs_ = [await add_job(store, lane=f"l{n % 3}", expires_at=1) for n in range(ALL_AT_ONCE)]
        asks: list[Callable[[], Awaitable[Any]]] = [engine.deadlines.look, engine.deadlines.sweep]
        for job in jobs_:
            asks += [
                lambda job=job: refused_or_done(begin(engine, Ticket.of(job))),
                lambda job=job: refused_or_done(engine.control.cancel(job.id, ADMIN, None)),
                lambda job=job: refused_or_done(engine.control.stop_job(job.id, ADMIN)),
                lambda job=job: refused_or_done(engine.control.resume(job.id, ADMIN, confirmed=False)),
            ]
        chance.shuffle(asks)
        await asyncio.gather(*(after_turns(chance.randrange(6), ask) for ask in asks))
        await engine.deadlines.look()
        for job in jobs_:
            assert (await life_of(store, job.id)).status in ENDED
    await engine.stop()
