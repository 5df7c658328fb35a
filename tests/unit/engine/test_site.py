"""Draining: nothing begins, what runs goes on, and opening lets everything go on."""

from __future__ import annotations

from pathlib import Path

import pytest

from iotjobs import clock
from iotjobs.domain.errors import BadRequest
from iotjobs.domain.jobs import JobType, PendingReason
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine import site
from iotjobs.store import queue, queues
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from tests.services.rows import ADMIN, MakeEngine, add_job, job_of
from tests.services.site import eventually


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "SETTLED_AFTER_MS", 0)
    monkeypatch.setattr(site, "LOOK_EVERY_S", 0.02)


async def test_a_drained_site_begins_nothing_and_its_job_ends_with_what_runs(
    sqlite_store: Store, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine()
    await engine.worker.start()
    await engine.switch.start()
    go = tmp_path / "go"
    owner_id, operation_id = await engine.script(f"until [ -e {go} ]; do sleep 0.02; done", concurrent=True)
    running = await engine.execute(owner_id, operation_id)

    async def begun() -> bool:  # its worker counts it before
        return (await job_of(sqlite_store, running)).status is Status.RUNNING

    await eventually(begun, 3)

    drain = await engine.switch.switch(is_open=False, caller=ADMIN)
    waits = await engine.execute(owner_id, operation_id)

    async def told() -> bool:
        return (await job_of(sqlite_store, waits)).pending_reason is PendingReason.DRAINED

    await eventually(told, 3)
    assert engine.limits.drained() is not None
    found = await job_of(sqlite_store, drain)
    assert (found.type, found.status, found.owner_type) == (JobType.STOP_APP, Status.RUNNING, 0)
    go.touch()
    assert (await engine.ended(running)).outcome is Outcome.SUCCEEDED
    assert (await engine.ended(drain)).outcome is Outcome.SUCCEEDED
    assert (await job_of(sqlite_store, waits)).status is Status.PENDING

    opened = await engine.switch.switch(is_open=True, caller=ADMIN)
    assert (await engine.ended(opened)).type is JobType.START_APP
    assert (await engine.ended(waits)).outcome is Outcome.SUCCEEDED
    assert engine.limits.drained() is None


async def test_a_drain_outlives_the_process(sqlite_store: Store, make_engine: MakeEngine) -> None:
    before = make_engine()
    drain = await before.switch.switch(is_open=False, caller=ADMIN)

    after = make_engine(worker_id="w2")
    await after.switch.look()
    await after.worker.start()
    job_id = await after.execute(*await after.script("true"))

    assert not after.limits.opened.is_set()
    assert (await job_of(sqlite_store, drain)).outcome is Outcome.SUCCEEDED  # nothing ran any more
    assert not await after.feed.wait_for_end(job_id, 0.2)
    await after.switch.switch(is_open=True, caller=ADMIN)
    assert (await after.ended(job_id)).outcome is Outcome.SUCCEEDED


async def test_a_drain_ends_also_when_the_clock_was_set_back_meanwhile(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(site, "SETTLED_AFTER_MS", 2_000)
    engine = make_engine()
    drain = await engine.switch.switch(is_open=False, caller=ADMIN)
    await engine.switch.look()
    assert (await job_of(sqlite_store, drain)).status is Status.RUNNING

    monkeypatch.setattr(clock, "_ahead_ns", clock._ahead_ns - 86_400 * 10**9)
    await engine.switch.look()

    assert (await job_of(sqlite_store, drain)).outcome is Outcome.SUCCEEDED


async def test_opening_ends_the_job_of_a_drain_that_was_not_over(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    drain = await engine.switch.switch(is_open=False, caller=ADMIN)
    await engine.switch.switch(is_open=True, caller=ADMIN)
    found = await job_of(sqlite_store, drain)
    assert (found.outcome, found.error_code) == (Outcome.FAILED, "replaced")
    assert await sqlite_store.read(queues.drains) == []


async def test_an_alias_is_no_queue_of_its_own(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with pytest.raises(BadRequest, match="another name of mix"):
        await engine.switch.put_queue("default", 3)


async def test_a_job_that_was_told_drained_after_the_opening_goes_on_all_the_same(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    late = await add_job(sqlite_store, pending_reason=PendingReason.DRAINED)
    await engine.switch.look()
    assert (await job_of(sqlite_store, late.id)).pending_reason is None
    assert (await engine.dispatcher.take()).job_id == late.id


async def test_a_stale_look_of_the_worker_holds_nothing_back(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    engine.limits.opened.clear()  # the site was opened, and this node has not read it yet
    job = await add_job(sqlite_store)

    def may_begin(tx: Transaction) -> bool:
        found = queue.candidate(tx, job.id)
        assert found is not None
        return engine.limits.may_begin(tx, found, engine.dispatcher)

    assert await sqlite_store.write(may_begin)
