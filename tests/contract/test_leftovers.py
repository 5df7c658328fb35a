"""What nobody runs any more is ended on its device before anything else goes there, on both databases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, update

from iotjobs import clock
from iotjobs.domain.errors import LeaseLost, StoreUnavailable
from iotjobs.domain.jobs import Job, PendingReason, Transport
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine import leftovers
from iotjobs.engine.leases import Always
from iotjobs.engine.rescue import rescue
from iotjobs.store import jobs, queue, tables
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from iotjobs.transports.base import Gone, KillProof
from tests.services.programs import free_port
from tests.services.rows import ADMIN, Engine, add_job, job_of, rows_of, running_job
from tests.services.site import eventually
from tests.services.ssh import marked, orphan_of, processes_of

GONE = "its processes were killed and are gone"
DIED = "the process that ran it ended after it was sent; it may have run"
LANE = {"lane": "a"}

pytestmark = pytest.mark.usefixtures("reaped")


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    made = Engine(store, worker_id="alive")
    yield made
    await made.stop()


@pytest.fixture
def unreached(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """The device gives no word until this is set."""
    answered = asyncio.Event()
    truth = engine.reach.kill_first

    async def kill_first(*given: Any) -> KillProof:
        await answered.wait()
        return await truth(*given)

    monkeypatch.setattr(engine.reach, "kill_first", kill_first)
    return answered


async def rescued(engine: Engine) -> int:
    return await rescue(engine.store, engine.settler, engine.leftovers, "alive")


async def at_rest(engine: Engine, job: Job) -> Job:
    """The row, when nothing is at work on what is left of it."""
    await eventually(lambda: not engine.leftovers.has(job.id))
    return await job_of(engine.store, job.id)


async def lines_of(engine: Engine, job: Job) -> list[str]:
    return [line["message"] for line in await rows_of(engine.store, tables.log_entries, job.id)]


async def test_what_a_dead_worker_had_sent_keeps_its_lane_until_it_is_ended_on_its_device(
    engine: Engine, unreached: asyncio.Event, tmp_path: Path
) -> None:
    job = await orphan_of(engine, tmp_path, LANE)
    behind = await add_job(engine.store, lane="a", pending_reason=PendingReason.LANE)

    assert [await rescued(engine), await rescued(engine)] == [0, 0]  # it waits for no device
    assert (await job_of(engine.store, job.id)).status is Status.RUNNING
    assert engine.dispatcher.live == set()
    assert marked(job.nonce or "")
    unreached.set()

    lost = await at_rest(engine, job)
    assert (lost.outcome, lost.error_code, lost.error_message) == (
        Outcome.LOST,
        "workerDied",
        f"{DIED}; {GONE}",
    )
    assert processes_of(job.id) == []
    assert engine.dispatcher.live == {behind.id}
    assert await rescued(engine) == 0


async def test_a_device_that_is_away_holds_its_lane_no_longer_than_it_is_asked(engine: Engine) -> None:
    ssh = {"host": "127.0.0.1", "port": free_port(), "username": "u", "credential_id": None}
    away = await engine.thing(ssh={**ssh, "host_key": None, "jump_id": None})
    job = await running_job(
        engine.store, worker_id="dead", sent=True, transport=Transport.SSH, target_id=away, lane="a"
    )
    behind = await add_job(engine.store, lane="a", pending_reason=PendingReason.LANE)

    await rescued(engine)

    lost = await at_rest(engine, job)
    assert (lost.outcome, lost.error_code) == (Outcome.LOST, "workerDied")
    assert (lost.error_message or "").startswith(f"{DIED}; could not confirm that its processes are gone (")
    assert engine.dispatcher.live == {behind.id}


@pytest.mark.parametrize(
    ("asked", "status", "confirmed"),
    [("cancel", Status.CANCELED, True), ("stop", Status.STOPPED, None)],
)
async def test_what_is_being_ended_can_still_be_canceled_or_stopped(
    engine: Engine,
    unreached: asyncio.Event,
    tmp_path: Path,
    asked: str,
    status: Status,
    confirmed: bool | None,
) -> None:
    job = await orphan_of(engine, tmp_path, LANE)
    await rescued(engine)
    if asked == "cancel":
        assert await engine.control.cancel(job.id, ADMIN, None) is Status.CANCELING
    else:
        assert await engine.control.stop_job(job.id, ADMIN) is Status.STOPPING
    unreached.set()

    done = await at_rest(engine, job)
    assert (done.status, (done.cancel or {}).get("confirmed")) == (status, confirmed)
    assert processes_of(job.id) == []


async def test_what_a_dead_worker_notes_when_it_wakes_up_meanwhile_is_not_overlooked(
    engine: Engine, unreached: asyncio.Event, tmp_path: Path
) -> None:
    job = await orphan_of(engine, tmp_path, LANE)
    await rescued(engine)
    await engine.store.write(lambda tx: jobs.note(tx, job.id, 1, sent_at=(job.sent_at or 0) + 1))
    unreached.set()

    assert (await at_rest(engine, job)).status is Status.RUNNING
    await rescued(engine)
    assert (await at_rest(engine, job)).outcome is Outcome.LOST


async def test_a_job_that_we_lost_track_of_is_ended_on_its_device_before_its_lane_goes_on(
    engine: Engine, unreached: asyncio.Event, tmp_path: Path
) -> None:
    job = await orphan_of(engine, tmp_path, LANE)
    ours = update(tables.jobs).where(tables.jobs.c.id == job.id).values(worker_id="alive")
    await engine.store.write(lambda tx: tx.conn.execute(ours))
    behind = await add_job(engine.store, lane="a", pending_reason=PendingReason.LANE)
    strays = engine.deadlines.strays

    assert [await strays.look() for _ in range(4)] == [0, 1, 0, 0]
    assert (await job_of(engine.store, job.id)).status is Status.RUNNING
    unreached.set()

    lost = await at_rest(engine, job)
    said = f"iotjobs lost track of it after it was sent; it may have run, see the log; {GONE}"
    assert (lost.outcome, lost.error_code, lost.error_message) == (Outcome.LOST, "internalError", said)
    assert processes_of(job.id) == []
    assert engine.dispatcher.live == {behind.id}


async def test_a_cancel_that_met_the_parking_of_a_message_ends_also_when_its_worker_dies(
    engine: Engine,
) -> None:
    # On PostgreSQL the cancel has read its row before the parking was committed.
    job = await running_job(engine.store, sent=True, transport=Transport.MQTT, worker_id="dead")
    await engine.store.write(lambda tx: jobs.note(tx, job.id, 1, deadline_at=10**13))
    asked = {"by": "u", "at": 1, "reason": None, "confirmed": None}
    await engine.store.write(lambda tx: jobs.ask(tx, job, Status.CANCELING, clock.now_ms(), asked))

    assert await engine.leftovers.take_over_all("alive") == 1

    done = await at_rest(engine, job)
    assert (done.status, done.cancel, done.deadline_at) == (Status.CANCELED, asked, None)


async def test_a_fault_of_ours_on_the_way_to_the_device_holds_no_lane(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    job = await running_job(engine.store, worker_id="dead", sent=True, lane="a")
    behind = await add_job(engine.store, lane="a", pending_reason=PendingReason.LANE)
    monkeypatch.setattr(engine.reach, "kill_first", None)

    await rescued(engine)

    lost = await at_rest(engine, job)
    assert (lost.outcome, lost.error_message) == (Outcome.LOST, f"{DIED}; {leftovers.FAULT_LEFT}")
    assert [record.job_id for record in caplog.records if record.levelname == "ERROR"] == [job.id]
    assert engine.dispatcher.live == {behind.id}


async def test_what_is_left_is_ended_also_when_the_database_was_away_at_first(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await orphan_of(engine, tmp_path, LANE)
    truth, refused = engine.store.read, [StoreUnavailable("away")]

    async def read(query: Callable[[Connection], Any]) -> Any:
        if refused:
            raise refused.pop()
        return await truth(query)

    monkeypatch.setattr(leftovers, "STORE_RETRY_S", 0)
    monkeypatch.setattr(engine.store, "read", read)
    engine.leftovers.take_over(job)
    await eventually(lambda: not engine.leftovers.has(job.id))

    assert refused == []
    assert (await job_of(engine.store, job.id)).outcome is Outcome.LOST


# --- what waits, and may have left something ------------------------------------------------------


async def waiting(engine: Engine, folder: Path) -> Job:
    """A job that waits for its next attempt, while the processes of its first live."""
    job = await orphan_of(engine, folder, idempotent=True)
    assert await rescued(engine) == 1
    return await job_of(engine.store, job.id)


async def test_what_is_stopped_while_it_waits_for_its_next_try_does_not_run_on(
    engine: Engine, tmp_path: Path
) -> None:
    job = await waiting(engine, tmp_path)

    assert await engine.control.stop_job(job.id, ADMIN) is Status.STOPPED

    stopped = await at_rest(engine, job)
    assert marked(job.nonce or "") == []
    assert (stopped.status, stopped.nonce, stopped.worker_id) == (Status.STOPPED, None, None)
    assert f"an earlier attempt: {GONE}" in await lines_of(engine, job)


async def test_a_job_that_is_resumed_meanwhile_is_left_to_its_next_attempt(
    engine: Engine, unreached: asyncio.Event, tmp_path: Path
) -> None:
    job = await waiting(engine, tmp_path)
    await engine.control.stop_job(job.id, ADMIN)
    assert await engine.control.resume(job.id, ADMIN, confirmed=True) is Status.PENDING
    unreached.set()

    resumed = await at_rest(engine, job)
    assert (resumed.status, resumed.nonce, resumed.worker_id) == (Status.PENDING, job.nonce, None)


async def test_a_cancel_of_what_was_stopped_meanwhile_keeps_whose_it_is(
    engine: Engine, unreached: asyncio.Event, tmp_path: Path
) -> None:
    job = await waiting(engine, tmp_path)
    await engine.control.stop_job(job.id, ADMIN)
    await engine.control.cancel(job.id, ADMIN, "enough")
    unreached.set()

    canceled = await at_rest(engine, job)
    assert canceled.status is Status.CANCELED
    asked = canceled.cancel or {}
    assert (asked["by"], asked["reason"], asked["confirmed"]) == (ADMIN.user_id, "enough", True)


@pytest.mark.parametrize("how", ["expired", "stopped"])
@pytest.mark.parametrize("next_one", ["of the same process", "of the next one"])
async def test_what_may_be_left_is_looked_for_also_when_the_first_look_came_to_nothing(
    engine: Engine, unreached: asyncio.Event, tmp_path: Path, how: str, next_one: str
) -> None:
    job = await waiting(engine, tmp_path)
    if how == "expired":
        long_ago = update(tables.jobs).where(tables.jobs.c.id == job.id).values(expires_at=1)
        await engine.store.write(lambda tx: tx.conn.execute(long_ago))
        await engine.deadlines.look()
    else:
        await engine.control.stop_job(job.id, ADMIN)
    await engine.leftovers.stop()  # and here our process dies
    assert marked(job.nonce or "")
    assert (await job_of(engine.store, job.id)).worker_id == "alive"

    if next_one == "of the next one":
        heir = Engine(engine.store, worker_id="heir")
        await heir.leftovers.take_over_all("heir")
        await at_rest(heir, job)
        await heir.stop()
    else:
        unreached.set()
        await engine.control.look()
        await at_rest(engine, job)

    assert marked(job.nonce or "") == []
    assert f"an earlier attempt: {GONE}" in await lines_of(engine, job)
    assert await engine.store.read(lambda conn: queue.unproven(conn, "x", of_the_dead=True)) == []


# --- who leads no more ----------------------------------------------------------------------------


class Over(Always):
    """Another node leads since then."""

    def check(self, tx: Transaction) -> None:
        raise LeaseLost("the leader lease was taken over")


async def test_who_leads_no_more_writes_no_end_of_what_a_dead_worker_left(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await waiting(engine, tmp_path)
    await engine.control.stop_job(job.id, ADMIN)
    await engine.leftovers.stop()
    running = await running_job(engine.store, worker_id="dead", sent=True)
    asked = await running_job(engine.store, worker_id="dead", sent=True)
    await engine.control.cancel(asked.id, ADMIN, None)
    left = [running, asked, job]
    before = [await job_of(engine.store, one.id) for one in left]
    next_node, standing = Engine(engine.store, worker_id="next"), Over()

    async def kill_first(*_: object) -> KillProof:
        return KillProof(Gone.GONE, "")

    monkeypatch.setattr(next_node.reach, "kill_first", kill_first)
    await next_node.leftovers.take_over_all("next", standing)
    next_node.leftovers.take_over(running, standing=standing)
    for one in left:
        await at_rest(next_node, one)

    assert [await job_of(engine.store, one.id) for one in left] == before
    await next_node.stop()
    await engine.leftovers.take_over_all("alive")
    await at_rest(engine, job)
    assert processes_of(job.id) == []
