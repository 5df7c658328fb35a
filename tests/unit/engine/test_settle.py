from __future__ import annotations

import logging

import pytest
from sqlalchemy import select

from iotjobs import clock
from iotjobs.domain.errors import StorageFull, StoreUnavailable
from iotjobs.domain.jobs import Ending
from iotjobs.domain.retries import RetryPolicy
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.settle import OutputEnd, Settler
from iotjobs.store import output, tables
from iotjobs.store.output import Chunk
from iotjobs.store.session import Store
from tests.services.rows import Failing, MakeEngine, add_job, job_of, plan, rows_of, running_job

GOOD = Ending(Outcome.SUCCEEDED, exit_code=0)
GONE = Ending(Outcome.FAILED, error_code="unreachable", error_message="nobody there")


async def test_an_end_its_output_and_the_next_of_the_lane_are_one(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    job = await running_job(sqlite_store, lane="a")
    following = await add_job(sqlite_store, lane="a")
    end = OutputEnd((Chunk(0, "stdout", 0, b"bytes"),), total_bytes=9, truncated=True)

    await engine.settler.end_attempt(job, plan(), GOOD, end=end)

    done = await job_of(sqlite_store, job.id)
    assert (done.outcome, done.output_bytes, done.output_truncated) == (Outcome.SUCCEEDED, 9, True)
    assert await sqlite_store.read(lambda conn: output.extent(conn, job.id, 1, "stdout")) == [(0, 5)]
    assert (await engine.dispatcher.take()).job_id == following.id


async def test_a_second_end_writes_nothing_but_a_line_about_it(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    job = await running_job(sqlite_store)
    await engine.settler.end_attempt(job, plan(), GOOD)
    before = await job_of(sqlite_store, job.id)
    late = OutputEnd((Chunk(0, "stdout", 0, b"late"),), total_bytes=4)

    await engine.settler.end_attempt(job, plan(), GONE, end=late)

    assert await job_of(sqlite_store, job.id) == before
    assert await rows_of(sqlite_store, tables.output, job.id) == []
    [line] = await rows_of(sqlite_store, tables.log_entries, job.id)
    assert line["message"].startswith("attempt 1 ended failed after it was no longer the newest")


async def test_another_try_waits_its_back_off_and_frees_the_lane_meanwhile(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    job = await running_job(sqlite_store, lane="a")
    other = await add_job(sqlite_store, lane="a")
    patient = plan(retry=RetryPolicy(2, backoff_s=60))

    await engine.settler.end_attempt(job, patient, GONE)

    waiting = await job_of(sqlite_store, job.id)
    assert (waiting.status, waiting.pending_reason, waiting.sent_at) == (Status.PENDING, "retry", None)
    assert 29_000 < waiting.start_at - clock.now_ms() <= 60_000
    assert (await engine.dispatcher.take()).job_id == other.id
    [line] = await rows_of(sqlite_store, tables.log_entries, job.id)
    assert line["message"] == "attempt 1: nobody there; tried again"


async def test_an_end_waits_for_a_store_that_cannot_take_it_now(
    sqlite_store: Store,
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine, slept = make_engine(), []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(clock, "sleep", sleep)
    store = Failing(sqlite_store, [StorageFull("full"), StoreUnavailable("away")])
    settler = Settler(store, engine.dispatcher, engine.feed, engine.limits)
    job = await running_job(sqlite_store)
    with caplog.at_level(logging.WARNING):
        await settler.end_attempt(job, plan(), GOOD)

    assert (await job_of(sqlite_store, job.id)).outcome is Outcome.SUCCEEDED
    assert len(slept) == 2
    assert len(caplog.records) == 2
    assert all(record.message.startswith("the store cannot take") for record in caplog.records)


@pytest.mark.parametrize(("idempotent", "status"), [(True, Status.PENDING), (False, Status.FINISHED)])
async def test_what_our_own_stop_cut_short_is_repeated_only_if_it_may_be(
    sqlite_store: Store, make_engine: MakeEngine, idempotent: bool, status: Status
) -> None:
    engine = make_engine()
    job = await running_job(sqlite_store, sent=True)
    ending = Ending(Outcome.LOST, error_code="serverStopped")

    await engine.settler.hand_over(job, plan(idempotent=idempotent), ending, OutputEnd())

    handed = await job_of(sqlite_store, job.id)
    assert handed.status is status
    assert handed.outcome is (None if idempotent else Outcome.LOST)
    numbers = await sqlite_store.read(
        lambda conn: conn.execute(select(tables.attempts.c.outcome)).scalars().all()
    )
    assert numbers == ["lost"]
