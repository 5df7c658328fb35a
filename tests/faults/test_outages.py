"""The database and the broker go away under a running server, and come back: it needs no restart."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from iotjobs_sim.sshd import SshServer

from tests.services.fleet import Fleet, slow_valve
from tests.services.mosquitto import Mosquitto
from tests.services.postgres import PostgresServer, running_postgres
from tests.services.site import Rest, Serve, StartServe, ended, eventually
from tests.services.wire import Wire

CUT_S = 20.0
JOBS = 40


@asynccontextmanager
async def running(serve: Serve, openssh: SshServer, broker: Mosquitto, folder: Path) -> AsyncIterator[Fleet]:
    await serve.start()
    async with slow_valve(broker.port) as valve, Rest(serve) as rest:
        fleet = Fleet(rest, folder, valve)
        await fleet.define(openssh)
        yield fleet


async def submit_all(fleet: Fleet, count: int) -> int:
    """Submit so many; how many were refused (they may have been recorded, but nobody was promised it)."""
    chance = random.Random(7)
    refused = 0

    async def one() -> None:
        nonlocal refused
        try:
            await fleet.submit(chance)
        except AssertionError:
            refused += 1

    await asyncio.gather(*(one() for _ in range(count)))
    return refused


async def check(fleet: Fleet) -> Counter[str]:
    """Every accepted job has its end, and none ran twice that may not; how they ended."""

    async def nothing_waits() -> bool:
        answer = await fleet.rest.call("GET", "/jobs", query={"status": "PENDING,RUNNING"})
        return answer.status == 200 and not answer.body["items"]  # 503 while the database recovers

    await eventually(nothing_waits, 60)
    jobs = {job["id"]: job for job in await fleet.rest.all_jobs()}
    counts = fleet.counted()
    assert set(fleet.accepted) <= set(jobs)
    for job_id, operation in fleet.accepted.items():
        job = jobs[job_id]
        assert ended(job), (job["id"], job["status"], job["attempt"], job["outcome"], job["transport"])
        assert operation["idempotent"] or counts[job_id] <= 1, job
        assert job["outcome"] != "succeeded" or counts[job_id] >= 1, job
    return Counter(jobs[job_id]["outcome"] for job_id in fleet.accepted)


async def ready(fleet: Fleet) -> bool:
    return bool((await fleet.rest.get("/readyz"))["status"] == "ready")


@pytest.fixture
def own_postgres() -> AsyncIterator[PostgresServer]:
    with running_postgres({"fsync": "on"}) as server:
        yield server


async def test_a_postgresql_that_crashes_and_recovers(
    make_serve: StartServe,
    start_mosquitto: Callable[..., Mosquitto],
    openssh: SshServer,
    own_postgres: PostgresServer,
    tmp_path: Path,
) -> None:
    broker = start_mosquitto()
    own_postgres.execute("CREATE DATABASE site")
    serve = make_serve(mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
    serve.database_url = own_postgres.url("site")
    async with running(serve, openssh, broker, tmp_path) as fleet:
        pid = serve.pid
        await submit_all(fleet, JOBS // 2)
        # One backend is killed: the postmaster ends all others, and recovers as after a power cut.
        backend = own_postgres.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'iotjobs' LIMIT 1"
        )
        os.kill(int(backend), signal.SIGKILL)
        await submit_all(fleet, JOBS // 2)
        outcomes = await check(fleet)
        again = await submit_all(fleet, 5)
        outcomes = await check(fleet)

        assert (again, serve.pid) == (0, pid)
        assert outcomes["succeeded"] >= JOBS // 4, outcomes
        assert (await fleet.rest.get("/readyz"))["status"] == "ready"
    assert "Traceback" not in serve.log


@pytest.mark.parametrize("silent", [0.5, 1.0])
async def test_a_postgresql_that_is_cut_off_for_twenty_seconds(
    silent: float,
    make_serve: StartServe,
    start_mosquitto: Callable[..., Mosquitto],
    openssh: SshServer,
    fresh_database: Callable[[], str],
    postgres_server: PostgresServer,
    tmp_path: Path,
) -> None:
    broker = start_mosquitto()
    async with Wire(postgres_server.port) as wire:
        serve = make_serve(mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
        serve.database_url = fresh_database().replace(f":{postgres_server.port}/", f":{wire.port}/")
        async with running(serve, openssh, broker, tmp_path) as fleet:
            pid = serve.pid
            await submit_all(fleet, JOBS // 2)
            wire.freeze()
            during = asyncio.create_task(submit_all(fleet, 10))
            await wire.outage(CUT_S, silent=silent)
            await during
            outcomes = await check(fleet)
            assert await submit_all(fleet, 5) == 0
            await check(fleet)

            await eventually(lambda: ready(fleet), 30)
            assert serve.pid == pid
            assert outcomes["succeeded"] >= JOBS // 4, outcomes
        assert "Traceback" not in serve.log


async def test_a_broker_that_is_cut_off_for_twenty_seconds(
    make_serve: StartServe,
    start_mosquitto: Callable[..., Mosquitto],
    openssh: SshServer,
    tmp_path: Path,
) -> None:
    broker = start_mosquitto()
    async with Wire(broker.port) as wire:
        serve = make_serve(mqtt_url=f"mqtt://127.0.0.1:{wire.port}")
        async with running(serve, openssh, broker, tmp_path) as fleet:
            pid = serve.pid
            await submit_all(fleet, JOBS // 2)
            wire.freeze()
            assert await submit_all(fleet, JOBS // 2) == 0
            await wire.outage(CUT_S)
            outcomes = await check(fleet)

            await eventually(lambda: ready(fleet), 30)
            before = len(fleet.accepted)
            assert await submit_all(fleet, 5) == 0
            outcomes = await check(fleet)
            assert (serve.pid, len(fleet.accepted)) == (pid, before + 5)
            assert outcomes["succeeded"] >= JOBS // 3, outcomes
        assert "Traceback" not in serve.log
