from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from iotjobs.domain.jobs import Job, Transport
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.rescue import rescue
from iotjobs.store import jobs, nodes, queue, tables
from iotjobs.store.nodes import Node
from iotjobs.store.session import Store
from iotjobs.transports.base import Gone, KillProof
from tests.services.rows import ADMIN, Engine, MakeEngine, job_of, plan, rows_of, running_job
from tests.services.site import eventually
from tests.services.ssh import marked, orphan_of, processes_of

pytestmark = pytest.mark.usefixtures("reaped")


async def ended(engine: Engine, job_id: str) -> Job:
    async def look() -> Job | None:
        job = await job_of(engine.store, job_id)
        return job if job.status not in (Status.CANCELING, Status.STOPPING) else None

    found: Job = await eventually(look)
    return found


@pytest.mark.parametrize(
    ("asked", "status", "outcome", "confirmed"),
    [("cancel", Status.CANCELED, Outcome.CANCELED, True), ("stop", Status.STOPPED, None, None)],
)
async def test_what_a_dead_worker_was_to_end_is_ended_with_proof(
    sqlite_store: Store,
    make_engine: MakeEngine,
    tmp_path: Path,
    asked: str,
    status: Status,
    outcome: Outcome | None,
    confirmed: bool | None,
) -> None:
    engine = make_engine(worker_id="alive")
    job = await orphan_of(engine, tmp_path)
    if asked == "cancel":
        await engine.control.cancel(job.id, ADMIN, None)
    else:
        await engine.control.stop_job(job.id, ADMIN)

    assert await rescue(sqlite_store, engine.settler, engine.leftovers, "alive") == 0
    assert await engine.leftovers.take_over_all("alive") == 1
    assert (await job_of(sqlite_store, job.id)).status not in (status, Status.FINISHED)  # waits for no device
    assert await engine.leftovers.take_over_all("alive") == 1

    done = await ended(engine, job.id)
    assert processes_of(job.id) == []
    assert (done.status, done.outcome, (done.cancel or {}).get("confirmed")) == (status, outcome, confirmed)
    await eventually(lambda: not engine.leftovers._tasks)


@pytest.mark.parametrize(
    ("columns", "sent", "outcome", "confirmed", "code"),
    [
        ({"of": plan(interpreter="raw")}, True, Outcome.CANCELED, False, "notConfirmed"),
        ({}, False, Outcome.CANCELED, True, None),
        ({"transport": Transport.MQTT}, True, Outcome.CANCELED, None, None),
        ({"transport": Transport.MQTT}, False, Outcome.CANCELED, True, None),
    ],
)
async def test_what_cannot_or_need_not_be_killed_says_so(
    sqlite_store: Store,
    make_engine: MakeEngine,
    columns: dict[str, Any],
    sent: bool,
    outcome: Outcome,
    confirmed: bool | None,
    code: str | None,
) -> None:
    engine = make_engine(worker_id="alive")
    job = await running_job(sqlite_store, worker_id="dead", sent=sent, **columns)
    await engine.control.cancel(job.id, ADMIN, None)

    await engine.leftovers.take_over_all("alive")

    done = await ended(engine, job.id)
    assert (done.outcome, (done.cancel or {})["confirmed"], done.error_code) == (outcome, confirmed, code)


async def test_a_cancel_of_what_waits_for_its_next_try_ends_what_the_earlier_left(
    sqlite_store: Store, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(worker_id="alive")
    job = await orphan_of(engine, tmp_path, idempotent=True)
    assert await rescue(sqlite_store, engine.settler, engine.leftovers, "alive") == 1

    assert await engine.control.cancel(job.id, ADMIN, "r") is Status.CANCELED
    assert ((await job_of(sqlite_store, job.id)).cancel or {})["confirmed"] is None

    async def confirmed() -> bool:
        return ((await job_of(sqlite_store, job.id)).cancel or {})["confirmed"] is True

    await eventually(confirmed)
    assert processes_of(job.id) == []
    lines = [line["message"] for line in await rows_of(sqlite_store, tables.log_entries, job.id)]
    assert lines == ["an earlier attempt: its processes were killed and are gone"]


async def test_what_expires_while_it_waits_for_its_next_try_is_ended_on_the_device_too(
    sqlite_store: Store, make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(worker_id="alive")
    job = await orphan_of(engine, tmp_path, idempotent=True)
    assert await rescue(sqlite_store, engine.settler, engine.leftovers, "alive") == 1
    long_ago = update(tables.jobs).where(tables.jobs.c.id == job.id).values(expires_at=1)
    await sqlite_store.write(lambda tx: tx.conn.execute(long_ago))

    await engine.deadlines.look()

    expired = await job_of(sqlite_store, job.id)
    assert (expired.outcome, expired.cancel) == (Outcome.EXPIRED, None)
    assert (expired.error_message or "").endswith("; attempt 1 may still run on the device, see the log")

    async def told() -> bool:
        lines = await rows_of(sqlite_store, tables.log_entries, job.id)
        return [line["message"] for line in lines] == [
            "an earlier attempt: its processes were killed and are gone"
        ]

    await eventually(told)
    assert processes_of(job.id) == []


async def canceled_in_back_off(engine: Engine, folder: Path) -> Job:
    """A job that was canceled while it waited for its next attempt; the process died right after that."""
    job = await orphan_of(engine, folder, idempotent=True)
    assert await rescue(engine.store, engine.settler, engine.leftovers, "alive") == 1
    assert await engine.control.cancel(job.id, ADMIN, "r") is Status.CANCELED
    await engine.leftovers.stop()
    assert await confirmed(engine, job) is None
    assert marked(job.nonce or "")
    return job


async def confirmed(engine: Engine, job: Job) -> bool | None:
    found: bool | None = ((await job_of(engine.store, job.id)).cancel or {})["confirmed"]
    return found


async def test_a_proof_that_a_dead_process_owes_is_given_after_the_next_start(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    job = await canceled_in_back_off(make_engine(worker_id="alive"), tmp_path)
    heir = make_engine(worker_id="heir")

    await heir.leftovers.take_over_all("heir")

    async def proven() -> bool:
        return await confirmed(heir, job) is True

    await eventually(proven)
    assert processes_of(job.id) == []
    assert (await job_of(heir.store, job.id)).worker_id is None
    assert await heir.store.read(lambda conn: queue.unproven(conn, "x", of_the_dead=True)) == []


async def test_a_proof_that_we_owe_ourselves_is_given_whatever_went_wrong_at_first(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(worker_id="alive")
    job = await canceled_in_back_off(engine, tmp_path)

    await engine.control.look()

    async def proven() -> bool:
        return await confirmed(engine, job) is True

    await eventually(proven)


async def test_a_proof_that_another_living_worker_owes_is_left_to_it(
    make_engine: MakeEngine, tmp_path: Path
) -> None:
    engine = make_engine(worker_id="alive")
    job = await canceled_in_back_off(engine, tmp_path)
    await engine.store.write(lambda tx: nodes.register(tx, "alive", Node("host", 7, "1.0", (), 5)))
    other = make_engine(worker_id="other")

    await other.leftovers.take_over_all("other")
    await other.control.look()
    assert not other.leftovers._tasks

    await engine.store.write(lambda tx: nodes.bury(tx, "alive"))
    await other.leftovers.take_over_all("other")
    await eventually(lambda: not other.leftovers._tasks)
    assert await confirmed(other, job) is True


async def test_who_was_first_is_not_overwritten(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(worker_id="alive")
    job = await running_job(sqlite_store, worker_id="dead", sent=True)
    await engine.control.cancel(job.id, ADMIN, None)

    async def kill_first(*_: object) -> KillProof:
        row = await job_of(sqlite_store, job.id)
        await sqlite_store.write(lambda tx: jobs.settle(tx, row, jobs.STOPPED, 5))
        return KillProof(Gone.UNCONFIRMED, "because")

    monkeypatch.setattr(engine.reach, "kill_first", kill_first)
    await engine.leftovers.take_over_all("alive")
    await eventually(lambda: not engine.leftovers._tasks)

    assert (await job_of(sqlite_store, job.id)).error_code == "stopped"
