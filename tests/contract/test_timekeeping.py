"""A clock that is set, forwards and backwards, running and stopped: on both databases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, update

from iotjobs import clock
from iotjobs.domain.errors import LeaseLost, StorageFull, StoreUnavailable
from iotjobs.domain.jobs import Job
from iotjobs.domain.statuses import Status
from iotjobs.engine.leases import Always
from iotjobs.engine.timekeeping import LEAP_MS, QUICK_MS, Timekeeper
from iotjobs.store import moments, nodes, tables
from iotjobs.store.session import Store
from iotjobs.store.state_tables import standings, trigger_timers
from iotjobs.store.writer import Transaction
from tests.services.rows import Engine, Failing, add_job, job_of, running_job

DAY = 86_400_000
SetClock = Callable[[int], None]


@pytest.fixture
def set_clock(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[SetClock]:
    """Sets the clock that the store goes by, so many milliseconds from the true moment."""
    ahead = 0

    def clock_ms(conn: Connection) -> int:
        return truth(conn) + ahead

    def set_to(by_ms: int) -> None:
        nonlocal ahead
        ahead = by_ms

    before = clock._ahead_ns
    truth = nodes.clock_ms
    monkeypatch.setattr(nodes, "clock_ms", clock_ms)
    yield set_to
    clock._ahead_ns = before


async def waiting_jobs(store: Store) -> dict[str, Job]:
    """One of each kind of waiting, and one that has ended; all of them a minute from now."""
    soon = clock.now_ms() + 60_000
    parked, done = await running_job(store, sent=True), await running_job(store)
    J = tables.jobs.c
    await store.write(
        lambda tx: tx.conn.execute(update(tables.jobs).where(J.id == parked.id).values(deadline_at=soon))
    )
    finished = {"status": Status.FINISHED, "expires_at": soon}
    await store.write(lambda tx: tx.conn.execute(update(tables.jobs).where(J.id == done.id).values(finished)))
    made = {
        "start": await add_job(store, start_at=soon, expires_at=soon + 60_000),
        "life": await add_job(store, expires_at=soon),
        "parked": parked,
        "done": done,
    }
    return {name: await job_of(store, job.id) for name, job in made.items()}


def to_come(job: Job) -> list[int | None]:
    return [job.start_at, job.expires_at, job.deadline_at]


def moved(job: Job, by: int) -> list[int | None]:
    return [None if moment is None else moment + by for moment in to_come(job)]


def near(found: list[int | None], expected: list[int | None]) -> bool:
    return all(
        (a is None) == (b is None) and abs((a or 0) - (b or 0)) < 300
        for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("by", [DAY, -DAY, 5_000, -5_000])
async def test_what_is_to_come_moves_with_a_clock_that_is_set(
    store: Store, set_clock: SetClock, by: int
) -> None:
    jobs, keeper = await waiting_jobs(store), Timekeeper(store, Always())
    key = {"scope": "s", "body": "b", "job_id": "j", "at": 10**12}
    await store.write(lambda tx: tx.conn.execute(insert(tables.idempotency), key))
    await keeper.look()
    before = clock.now_ms()

    set_clock(by)
    assert clock.now_ms() - before < 1000  # ours goes on as before, until everything moves at once
    await keeper.look()

    assert abs(clock.now_ms() - before - by) < 2000
    for name in ("start", "life", "parked"):
        assert near(to_come(await job_of(store, jobs[name].id)), moved(jobs[name], by)), name
    assert to_come(await job_of(store, jobs["done"].id)) == to_come(jobs["done"])
    kept = await store.read(lambda conn: conn.execute(tables.idempotency.select()).one())
    assert abs(kept.at - 10**12 - by) < 300
    await keeper.look()  # and it is the same clock from now on
    assert near(to_come(await job_of(store, jobs["life"].id)), moved(jobs["life"], by))


async def test_a_little_is_followed_and_moves_nothing(store: Store, set_clock: SetClock) -> None:
    jobs, keeper = await waiting_jobs(store), Timekeeper(store, Always())
    before = clock.now_ms()

    set_clock(LEAP_MS - 100)
    await keeper.look()

    assert clock.now_ms() - before >= LEAP_MS - 200
    assert to_come(await job_of(store, jobs["life"].id)) == to_come(jobs["life"])


async def test_while_nothing_can_be_written_ours_goes_on_as_before(store: Store, set_clock: SetClock) -> None:
    jobs = await waiting_jobs(store)
    failing = Failing(store, [StorageFull("full"), StoreUnavailable("away")])
    keeper = Timekeeper(failing, Always())  # type: ignore[arg-type]
    before = clock.now_ms()
    set_clock(DAY)

    for _ in range(2):
        await keeper.look()
        assert clock.now_ms() - before < 5000
        assert to_come(await job_of(store, jobs["life"].id)) == to_come(jobs["life"])
    await keeper.look()

    assert clock.now_ms() - before >= DAY - 1000
    assert near(to_come(await job_of(store, jobs["life"].id)), moved(jobs["life"], DAY))


async def test_who_does_not_lead_follows_and_moves_nothing(store: Store, set_clock: SetClock) -> None:
    class Behind(Always):
        leads = False

    jobs, keeper = await waiting_jobs(store), Timekeeper(store, Behind())
    before = clock.now_ms()
    set_clock(DAY)

    await keeper.look()

    assert clock.now_ms() - before >= DAY - 1000
    assert to_come(await job_of(store, jobs["life"].id)) == to_come(jobs["life"])


async def test_who_leads_no_more_moves_nothing(store: Store, set_clock: SetClock) -> None:
    class Late(Always):
        def check(self, tx: Transaction) -> None:
            raise LeaseLost("taken over")

    jobs, keeper = await waiting_jobs(store), Timekeeper(store, Late())
    set_clock(DAY)

    await keeper.look()

    assert to_come(await job_of(store, jobs["life"].id)) == to_come(jobs["life"])


async def test_an_answer_that_took_long_says_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, keeper = await waiting_jobs(store), Timekeeper(store, Always())
    times = iter([1000, 1000 + QUICK_MS])

    monkeypatch.setattr(nodes, "clock_ms", lambda _: DAY)
    monkeypatch.setattr(clock, "now_ms", lambda: next(times))
    await keeper.look()
    monkeypatch.undo()

    assert to_come(await job_of(store, jobs["life"].id)) == to_come(jobs["life"])


async def test_a_clock_that_went_back_while_stopped_makes_nothing_wait_longer(
    store: Store, set_clock: SetClock
) -> None:
    jobs = await waiting_jobs(store)
    set_clock(-DAY)

    await Timekeeper(store, Always()).begin()

    now = clock.now_ms()
    for name in ("start", "life", "parked"):
        job = await job_of(store, jobs[name].id)
        remains = [moment - now for moment in to_come(job) if moment is not None]
        assert all(50_000 < left <= 120_000 for left in remains), (name, remains)


async def test_a_clock_that_went_on_while_stopped_makes_everything_due_and_moves_nothing(
    store: Store, set_clock: SetClock
) -> None:
    jobs = await waiting_jobs(store)
    set_clock(DAY)

    await Timekeeper(store, Always()).begin()

    for name, job in jobs.items():
        assert to_come(await job_of(store, job.id)) == to_come(job), name
    assert clock.now_ms() > (jobs["life"].expires_at or 0)


async def test_an_empty_store_begins_and_its_own_clock_is_the_systems(store: Store) -> None:
    await Timekeeper(store, Always()).begin()

    assert await store.read(moments.newest) is None
    assert abs(await store.read(nodes.clock_ms) - time.time() * 1000) < 2000

    def nothing(tx: Transaction) -> Any:
        return moments.shift(tx, 5)

    await store.write(nothing)


async def test_holds_silence_and_forced_states_go_on_as_before(store: Store, set_clock: SetClock) -> None:
    engine = Engine(store)
    owner_id, operation_id = await engine.script("true")
    await store.write(lambda tx: tx.conn.execute(update(tables.objects).values(no_data_after_s=600.0)))
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 5", "hold_s": 60})
    await engine.triggers(owner_id, {"states": ["working"], "operation_id": operation_id, "hold_s": 300})
    await engine.report(owner_id, t=9)
    timekeeper = Timekeeper(store, Always())
    await timekeeper.begin()

    def remaining(conn: Connection) -> list[int]:
        now, standing = clock.now_ms(), conn.execute(select(standings)).one()
        due = conn.execute(select(trigger_timers.c.due_at)).scalar_one()
        moments_ = [standing.wake_at, standing.heard_at, standing.holding["c0"], due]
        return [round((moment - now) / 1000) for moment in moments_]

    before = await store.read(remaining)
    assert before == [60, 0, 0, 300]
    for by in (DAY, -DAY):
        set_clock(by)
        await timekeeper.look()
        assert await store.read(remaining) == before
    await engine.stop()
