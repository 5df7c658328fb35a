from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from pathlib import Path

import pytest

from iotjobs import clock
from iotjobs.domain.jobs import Ending, Job
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine import worker
from iotjobs.store import jobs
from iotjobs.store.queue import Ticket
from iotjobs.store.session import Store
from iotjobs.transports.base import CommandHooks, CommandRequest
from tests.services.rows import MakeEngine, add_job, counts, events_of, job_of, running_job
from tests.services.site import eventually


async def test_it_runs_what_is_submitted_and_the_lane_goes_on_by_itself(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    await engine.worker.start()
    owner_id, operation_id = await engine.script("echo {{args.n}}")

    ids = [await engine.execute(owner_id, operation_id, args={"n": n}) for n in range(4)]
    done = [await engine.ended(job_id) for job_id in ids]

    assert [job.outcome for job in done] == [Outcome.SUCCEEDED] * 4
    assert all(a.ended_at <= b.started_at for a, b in itertools.pairwise(done))
    assert {job.worker_id for job in done} == {None}
    assert engine.worker.running == 0
    assert engine.dispatcher.live == set()


async def test_no_more_run_at_once_than_it_was_told(
    sqlite_store: Store, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(at_once=2)
    await engine.worker.start()
    go = tmp_path / "go"
    owner_id, operation_id = await engine.script(f"until [ -e {go} ]; do sleep 0.02; done", concurrent=True)
    ids = [await engine.execute(owner_id, operation_id) for _ in range(5)]

    async def statuses() -> dict[str, int]:
        return await counts(sqlite_store)

    await eventually(lambda: engine.worker.running == 2, 3)

    async def two_run() -> bool:
        return await statuses() == {"RUNNING": 2, "PENDING": 3}

    await eventually(two_run, 3)
    go.touch()
    assert {(await engine.ended(job_id)).outcome for job_id in ids} == {Outcome.SUCCEEDED}


@pytest.mark.parametrize("why", ["ended", "for later", "expired", "lane busy", "unknown", "running"])
async def test_a_ticket_is_only_a_hint(sqlite_store: Store, make_engine: MakeEngine, why: str) -> None:
    engine = make_engine()
    now = clock.now_ms()
    match why:
        case "ended":
            job = await running_job(sqlite_store)
            await sqlite_store.write(
                lambda tx: engine.settler.finish(tx, job, Ending(Outcome.SUCCEEDED), now)
            )
        case "for later":
            job = await add_job(sqlite_store, start_at=now + 60_000)
        case "expired":
            job = await add_job(sqlite_store, expires_at=now - 1)
        case "lane busy":
            await running_job(sqlite_store, lane="a")
            job = await add_job(sqlite_store, lane="a")
        case "running":
            job = await running_job(sqlite_store, worker_id="another")
        case _:
            job = replace(await add_job(sqlite_store), id="f" * 32)
    before = await events_of(sqlite_store, job.id)
    await engine.dispatcher.offer_again([Ticket.of(job)])

    await engine.worker.start()
    await eventually(lambda: not engine.dispatcher.live, 3)

    assert await events_of(sqlite_store, job.id) == before


async def test_a_drain_waits_for_what_runs_and_takes_nothing_new(
    sqlite_store: Store, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(at_once=1)
    await engine.worker.start()
    go = tmp_path / "go"
    ids = await engine.script(f"until [ -e {go} ]; do sleep 0.02; done", concurrent=True)
    first, second = await engine.execute(*ids), await engine.execute(*ids)
    await eventually(lambda: engine.worker.running == 1, 3)
    draining = asyncio.create_task(engine.worker.drain(5.0))
    await asyncio.sleep(0)
    go.touch()

    assert await draining == []

    assert (await job_of(sqlite_store, first)).outcome is Outcome.SUCCEEDED
    assert (await job_of(sqlite_store, second)).status is Status.PENDING


async def test_what_a_drain_left_under_way_is_still_its_own(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "INTERRUPT_S", 0.0)
    engine, sent, never = make_engine(), asyncio.Event(), asyncio.Event()

    async def run(_job: Job, _request: CommandRequest, hooks: CommandHooks) -> None:
        await hooks.before_send()
        sent.set()
        await never.wait()

    async def kill(*_: object) -> None:
        await never.wait()

    monkeypatch.setattr(engine.reach, "run", run)
    monkeypatch.setattr(engine.reach, "kill", kill)
    await engine.worker.start()
    job_id = await engine.execute(*await engine.script("true"))
    await asyncio.wait_for(sent.wait(), 3)

    assert await engine.worker.drain(0.0) == [job_id]

    assert engine.worker.under_way() == {job_id}


async def test_a_plan_that_does_not_open_is_logged_and_stops_nobody(
    sqlite_store: Store, make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    sealed_elsewhere = await add_job(sqlite_store, secret=b"\x01" + b"x" * 60)
    await engine.dispatcher.offer_again([Ticket.of(sealed_elsewhere)])
    await engine.worker.start()

    good = await engine.ended(await engine.execute(*await engine.script("true")))

    assert good.outcome is Outcome.SUCCEEDED
    assert "an attempt could not be begun" in [record.message for record in caplog.records]
    assert (await job_of(sqlite_store, sealed_elsewhere.id)).status is Status.PENDING
    assert await sqlite_store.read(lambda conn: jobs.has_ended(conn, sealed_elsewhere.id)) is False
