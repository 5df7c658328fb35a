"""What is said of a run whose object has another address by the time that somebody else ends it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from iotjobs_sim.sshd import SshServer
from sqlalchemy import update

from iotjobs import clock
from iotjobs.domain.jobs import Job, Transport
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.rescue import rescue
from iotjobs.engine.sending import Begun, RunMark
from iotjobs.store import definitions, entities, tables
from iotjobs.store.definitions import Kind
from iotjobs.store.session import Store
from iotjobs.transports.ssh_trust import SshTarget
from tests.services.rows import ADMIN, Engine, begin, job_of, plan, running_job
from tests.services.site import eventually
from tests.services.ssh import marked, orphan_of, processes_of, target_of
from tests.services.zoo import says_gone, ssh_server


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    made = Engine(store, worker_id="alive")
    yield made
    await made.stop()


async def address(engine: Engine, target: SshTarget, **members: Any) -> dict[str, Any]:
    """The members of an object's `ssh`."""
    new_id = clock.new_id()
    secret = entities.seal_credential(engine.secrets, new_id, {"private_key": target.credential.private_key})
    given = {"name": new_id, "kind": "ssh_key", "username": target.username, "secret": secret}
    await engine.store.write(
        lambda tx: definitions.create(tx, Kind.CREDENTIAL, given, clock.now_ms(), new_id=new_id)
    )
    ssh = {"host": target.host, "port": target.port, "username": None, "credential_id": new_id}
    return {**ssh, "host_key": "\n".join(target.host_keys), "jump_id": None, **members}


async def move(engine: Engine, object_id: str, to: dict[str, Any]) -> None:
    """As a PATCH does."""
    query = update(tables.objects).where(tables.objects.c.id == object_id).values(ssh=to)
    await engine.store.write(lambda tx: tx.conn.execute(query))
    engine.reach.forget()


async def orphan(engine: Engine, server: SshServer, folder: Path, **members: Any) -> Job:
    """A job under way on a device whose worker, `w1`, has died; the row."""
    thing = await engine.thing(ssh=await address(engine, target_of(server)))
    where = {"transport": Transport.SSH, "target_id": thing}
    return await orphan_of(engine, folder, where, **members)


async def end_on_device(engine: Engine, job: Job) -> None:
    """End what the job left, as if it had ended by itself."""
    mark = RunMark(job.nonce or "", 0, job.sent_to)
    await engine.reach.kill_first(job, mark, 0.2)
    assert marked(job.nonce or "") == []


async def canceled(engine: Engine, job: Job) -> Job:
    """The row, once another process than the one that died has ended it."""
    await engine.control.cancel(job.id, ADMIN, None)
    await engine.leftovers.take_over_all("alive")

    async def look() -> Job | None:
        row = await job_of(engine.store, job.id)
        return row if row.status is Status.CANCELED else None

    found: Job = await eventually(look)
    return found


async def test_gone_from_another_device_is_no_proof(
    engine: Engine, openssh: SshServer, tmp_path: Path
) -> None:
    job = await orphan(engine, openssh, tmp_path)
    assert job.sent_to == f"{openssh.host}:{openssh.port}"

    async with ssh_server(says_gone) as other:
        await move(engine, job.target_id or "", await address(engine, other))
        ended = await canceled(engine, job)

    assert (ended.cancel or {})["confirmed"] is False
    assert ended.error_code == "notConfirmed"
    said = f"it was sent to {openssh.host}:{openssh.port}, and its object is at {other.host}:{other.port} now"
    assert said in (ended.error_message or "")
    assert marked(job.nonce or "")
    await move(engine, job.target_id or "", await address(engine, target_of(openssh)))
    await end_on_device(engine, job)


@pytest.mark.parametrize(("runs", "confirmed"), [(True, True), (False, False)])
async def test_a_device_with_a_new_address_is_known_by_what_runs_there(
    engine: Engine, openssh: SshServer, tmp_path: Path, runs: bool, confirmed: bool
) -> None:
    job = await orphan(engine, openssh, tmp_path)
    if not runs:
        await end_on_device(engine, job)
    await move(engine, job.target_id or "", await address(engine, target_of(openssh), host="localhost"))

    ended = await canceled(engine, job)

    assert processes_of(job.id) == []
    assert (ended.cancel or {})["confirmed"] is confirmed


async def test_at_the_same_address_nothing_left_is_proof(
    engine: Engine, openssh: SshServer, tmp_path: Path
) -> None:
    job = await orphan(engine, openssh, tmp_path)
    await end_on_device(engine, job)

    assert ((await canceled(engine, job)).cancel or {})["confirmed"] is True


async def test_what_was_sent_before_anybody_noted_where_is_not_proven(
    engine: Engine, openssh: SshServer, tmp_path: Path
) -> None:
    job = await orphan(engine, openssh, tmp_path)
    await end_on_device(engine, job)
    unknown = update(tables.jobs).where(tables.jobs.c.id == job.id).values(sent_to=None)
    await engine.store.write(lambda tx: tx.conn.execute(unknown))

    ended = await canceled(engine, job)

    assert (ended.cancel or {})["confirmed"] is False
    assert "it was sent to an address that is not on record" in (ended.error_message or "")


async def test_an_idempotent_job_is_not_repeated_beside_what_it_left_at_another_address(
    engine: Engine, openssh: SshServer, tmp_path: Path
) -> None:
    job = await orphan(engine, openssh, tmp_path, idempotent=True)
    assert await rescue(engine.store, engine.settler, engine.leftovers, "alive") == 1
    waits = await job_of(engine.store, job.id)
    assert (waits.status, waits.nonce, waits.sent_to) == (Status.PENDING, job.nonce, job.sent_to)

    async with ssh_server(says_gone) as other:
        await move(engine, job.target_id or "", await address(engine, other))
        again, made = await begin(engine.store, waits, worker_id="alive"), plan(idempotent=True)
        await engine.executor.run(Begun(again, made, RunMark.left_by(waits, made)))

    ended = await job_of(engine.store, job.id)
    assert (ended.outcome, ended.error_code) == (Outcome.LOST, "earlierNotEnded")
    assert "it was sent to" in (ended.error_message or "")
    await move(engine, job.target_id or "", await address(engine, target_of(openssh)))
    await end_on_device(engine, job)


async def test_a_warm_run_notes_where_it_goes_at_its_begin_and_anew_when_that_changed(
    engine: Engine, openssh: SshServer
) -> None:
    thing = await engine.thing(ssh=await address(engine, target_of(openssh)))
    operation = await engine.operation(thing, via="ssh", parameters={"text": "true"})
    await engine.worker.start()
    places = []
    for _ in range(2):
        job_id = await engine.execute(thing, operation)
        places.append((await engine.ended(job_id)).sent_to)
    assert places == [f"{openssh.host}:{openssh.port}"] * 2
    assert engine.reach.open_way(thing) == places[0]

    job = await running_job(engine.store, worker_id="alive", transport=Transport.SSH, target_id=thing)
    begun = replace(job, sent_at=clock.now_ms(), sent_to="192.0.2.1:22")
    await engine.executor.run(Begun(begun, plan(), since=clock.monotonic()))

    ended = await job_of(engine.store, job.id)
    assert (ended.outcome, ended.sent_to) == (Outcome.SUCCEEDED, places[0])
