from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import update

from iotjobs import clock
from iotjobs.domain.jobs import Delivery, Ending, PendingReason, Transport
from iotjobs.domain.retries import RetryPolicy
from iotjobs.domain.states import Heard
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine import deadlines
from iotjobs.store import jobs, queue, tables
from iotjobs.store.session import Store
from tests.services.rows import MakeEngine, add_job, job_of, plan, running_job


async def test_a_start_that_has_come_is_offered_and_one_ahead_is_not(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine, now = make_engine(), clock.now_ms()
    due = await add_job(sqlite_store, start_at=now - 1, pending_reason=PendingReason.START_AT)
    ahead = await add_job(sqlite_store, start_at=now + 60_000, pending_reason=PendingReason.START_AT)

    await engine.deadlines.look()

    assert engine.dispatcher.live == {due.id}
    moved = await job_of(sqlite_store, due.id)
    assert (moved.start_at, moved.pending_reason) == (None, None)
    assert await job_of(sqlite_store, ahead.id) == ahead


async def test_a_start_that_was_put_off_since_it_was_looked_for_does_not_come(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine, now = make_engine(), clock.now_ms()
    looked_for = await add_job(sqlite_store, start_at=now - 1, pending_reason=PendingReason.START_AT)
    put_off = update(tables.jobs).values(start_at=now + 60_000)
    await sqlite_store.write(lambda tx: tx.conn.execute(put_off))

    await sqlite_store.write(lambda tx: queue.begin_waiting(tx, looked_for, now, engine.dispatcher))

    assert engine.dispatcher.live == set()
    assert (await job_of(sqlite_store, looked_for.id)).start_at == now + 60_000


async def test_what_waits_too_long_expires_and_says_what_for(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine, now = make_engine(), clock.now_ms()
    in_lane = await add_job(sqlite_store, lane="a", expires_at=now - 1, pending_reason=PendingReason.LANE)
    behind = await add_job(sqlite_store, lane="a")
    running = await running_job(sqlite_store, expires_at=now - 1)

    await engine.deadlines.look()

    expired = await job_of(sqlite_store, in_lane.id)
    assert (expired.status, expired.outcome, expired.error_code) == (
        Status.FINISHED,
        Outcome.EXPIRED,
        "expired",
    )
    assert expired.error_message == "still PENDING when its time to live ended (waiting: lane)"
    assert engine.dispatcher.live == {behind.id}
    assert (await job_of(sqlite_store, running.id)).status is Status.RUNNING


async def test_a_retry_that_waits_too_long_expires_and_the_clock_goes_on(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine, now = make_engine(), clock.now_ms()
    job = await running_job(sqlite_store, expires_at=now + 30)
    gone = Ending(Outcome.FAILED, error_code="unreachable")
    await engine.settler.end_attempt(job, plan(retry=RetryPolicy(3, backoff_s=60)), gone)
    other = await add_job(sqlite_store, start_at=now - 1)
    expires_at = (await job_of(sqlite_store, job.id)).expires_at  # later by as long as the attempt took
    async with asyncio.timeout(3):
        while clock.now_ms() <= expires_at:  # noqa: ASYNC110 - the wall clock is what is waited for
            await asyncio.sleep(0)

    await engine.deadlines.look()
    await engine.deadlines.look()

    assert (await job_of(sqlite_store, job.id)).outcome is Outcome.EXPIRED
    assert engine.dispatcher.live == {other.id}


async def test_a_parked_job_without_an_answer_times_out_and_not_before(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine, now = make_engine(), clock.now_ms()
    ids = []
    for deadline in (now - 1, now + 60_000):
        job = await running_job(sqlite_store, sent=True, transport=Transport.MQTT)
        await sqlite_store.write(
            lambda tx, job=job, at=deadline: jobs.note(
                tx, job.id, 1, deadline_at=at, delivery=Delivery.ACKNOWLEDGED
            )
        )
        ids.append(job.id)

    await engine.deadlines.look()

    silent, patient = [await job_of(sqlite_store, job_id) for job_id in ids]
    assert (silent.outcome, silent.error_code) == (Outcome.TIMED_OUT, "noAnswer")
    assert silent.error_message == "the device did not answer in time"
    assert (patient.status, patient.parked) == (Status.RUNNING, True)


async def test_an_answer_is_not_late_before_it_is_known_that_it_did_not_come(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    heard_until, now = 0, clock.now_ms()
    engine = make_engine(heard=lambda now: Heard(now, heard_until))
    of = plan(answer_within_s=5)
    job = await running_job(sqlite_store, sent=True, transport=Transport.MQTT, of=of)
    await sqlite_store.write(lambda tx: jobs.note(tx, job.id, 1, deadline_at=now - 60_000))
    start = await add_job(sqlite_store, start_at=now - 1, pending_reason=PendingReason.START_AT)

    await engine.deadlines.look()
    assert engine.dispatcher.live == {start.id}  # which is no device's word
    heard_until = now - 60_001
    await engine.deadlines.look()
    assert (await job_of(sqlite_store, job.id)).status is Status.RUNNING
    heard_until = now - 60_000
    await engine.deadlines.look()
    assert (await job_of(sqlite_store, job.id)).outcome is Outcome.TIMED_OUT


async def test_the_sweep_offers_what_lost_its_ticket_and_counts_it(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    ids = {(await add_job(sqlite_store)).id for _ in range(3)}

    assert await engine.deadlines.sweep() == 3
    assert engine.dispatcher.live == ids
    assert await engine.deadlines.sweep() == 0
    engine.dispatcher.done(await engine.dispatcher.take())
    assert await engine.deadlines.sweep() == 1


async def test_who_was_quicker_than_the_clock_wins(sqlite_store: Store, make_engine: MakeEngine) -> None:
    engine, now = make_engine(), clock.now_ms()
    job = await add_job(sqlite_store, expires_at=now - 1)
    await sqlite_store.write(
        lambda tx: jobs.begin_attempt(tx, job, worker_id="w", nonce="n", at=now, sent=False)
    )

    await engine.deadlines._move(job, engine.deadlines._expire)

    assert (await job_of(sqlite_store, job.id)).status is Status.RUNNING


async def test_its_sweep_finds_a_job_that_our_worker_holds_and_does_not_run(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deadlines, "SWEEP_EVERY_S", 0.0)
    monkeypatch.setattr(deadlines, "LOOK_EVERY_S", 0.01)
    engine = make_engine()
    job = await running_job(sqlite_store, sent=True)

    await engine.deadlines.start()

    assert (await engine.ended(job.id)).error_code == "internalError"
    assert engine.deadlines.strays.ended == 1
