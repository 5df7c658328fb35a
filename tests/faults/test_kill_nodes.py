"""kill -9 of three nodes on one PostgreSQL: no job is gone, none is stuck, none ran twice."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import httpx2
from iotjobs_sim.mqtt_devices import Behaviour, PretendDevice
from iotjobs_sim.sshd import SshServer
from sqlalchemy import Connection, select

from iotjobs.domain.statuses import ENDED
from iotjobs.store import tables
from iotjobs.store.session import open_store
from tests.services.fleet import Fleet
from tests.services.mosquitto import Mosquitto
from tests.services.site import Rest, Serve, StartServe, eventually

KILLS = int(os.environ.get("IOTJOBS_TEST_KILLS") or 3)
JOBS_A_KILL = 40
DEFINITE_WITHIN_S = 30


async def test_after_kills_of_random_nodes_every_job_has_its_end_and_none_ran_twice(
    make_serve: StartServe,
    start_mosquitto: Callable[..., Mosquitto],
    openssh: SshServer,
    tmp_path: Path,
) -> None:
    seed = int(os.environ.get("IOTJOBS_TEST_SEED") or random.randrange(10**6))
    print(f"seed {seed}: IOTJOBS_TEST_SEED={seed} repeats it")  # noqa: T201 - shown when it fails
    chance = random.Random(seed)
    broker = start_mosquitto()
    first = make_serve("postgresql", mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
    nodes = [first, first.beside("second"), first.beside("third", "worker")]
    valve = PretendDevice("valve", "127.0.0.1", broker.port, behaviour=Behaviour.SLOW, answer_after_s=0.2)
    await first.start()
    await asyncio.gather(valve.start(), *(node.start() for node in nodes[1:]))
    try:
        async with AsyncExitStack() as stack:
            rests = [await stack.enter_async_context(Rest(node)) for node in nodes[:2]]
            fleet = Fleet(rests[0], tmp_path, valve)
            await fleet.define(openssh)
            wanted = asyncio.Semaphore(0)
            asking = [
                asyncio.create_task(ask(fleet, rest, chance, wanted)) for rest in rests for _ in range(2)
            ]
            for _ in range(KILLS):
                for _ in range(JOBS_A_KILL):
                    wanted.release()
                before = fleet.counted().total()
                more = chance.randrange(1, 12)
                await eventually(lambda: fleet.counted().total() - before >= more, 20, 0.005)  # noqa: B023
                await chance.choice(nodes).restart()
            for task in asking:
                task.cancel()
            restarted = time.monotonic()
            await eventually(lambda: nothing_waits(rests[0]), DEFINITE_WITHIN_S)
            took = time.monotonic() - restarted
            jobs = {job["id"]: job for job in await rests[0].all_jobs()}
        await check_events(first, jobs)
    finally:
        await valve.stop()
        for node in nodes:
            await node.kill()

    assert set(fleet.accepted) <= set(jobs), "accepted jobs are not in the list"
    outcomes = fleet.check(jobs)
    print(f"{len(jobs)} jobs, {KILLS} kills, outcomes {dict(outcomes)}, definite after {took:.1f} s")  # noqa: T201
    assert not any("Traceback" in node.log for node in nodes)


async def ask(fleet: Fleet, rest: Rest, chance: random.Random, wanted: asyncio.Semaphore) -> None:
    """Ask for as many jobs as are wanted; what is not answered does not count."""
    while True:
        await wanted.acquire()
        try:
            await fleet.submit(chance, rest)
        except httpx2.TransportError:
            await asyncio.to_thread(rest.serve.wait_up)


async def nothing_waits(rest: Rest) -> bool:
    return not (await rest.get("/jobs", status="PENDING,RUNNING"))["items"]


async def check_events(serve: Serve, jobs: dict[str, dict[str, str]]) -> None:
    """Each job has one terminal event, which is its last one and says what its row says."""
    assert serve.database_url is not None
    store = open_store(serve.database_url)
    E = tables.events.c

    def read(conn: Connection) -> dict[str, list[tuple[str, str]]]:
        told: dict[str, list[tuple[str, str]]] = {}
        for job_id, data in conn.execute(
            select(E.job_id, E.data).where(E.kind != "job.result").order_by(E.id)
        ):
            told.setdefault(job_id, []).append((data["status"], data["outcome"]))
        return told

    told = await store.read(read)
    await store.stop()
    for job_id, job in jobs.items():
        events = told[job_id]
        assert sum(status in ENDED for status, _ in events) == 1, (job_id, events)
        assert events[-1] == (job["status"], job["outcome"]), (job_id, events)
