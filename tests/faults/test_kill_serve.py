"""kill -9 of serve with jobs of every kind in flight: none is gone, none is stuck, none ran twice."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from iotjobs_sim.mqtt_devices import Behaviour, PretendDevice
from iotjobs_sim.sshd import SshServer

from tests.services.fleet import Fleet
from tests.services.mosquitto import Mosquitto
from tests.services.site import Rest, StartServe, eventually

JOBS = 50
KILLS = 2


async def test_after_kills_at_random_moments_every_job_has_its_end_and_none_ran_twice(
    make_serve: StartServe,
    start_mosquitto: Callable[..., Mosquitto],
    openssh: SshServer,
    tmp_path: Path,
    database: str,
) -> None:
    seed = int(os.environ.get("IOTJOBS_TEST_SEED") or random.randrange(10**6))
    print(f"seed {seed}: IOTJOBS_TEST_SEED={seed} repeats it")  # noqa: T201 - shown when it fails
    chance = random.Random(seed)
    broker = start_mosquitto()
    serve = make_serve(database, mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
    await serve.start()
    valve = PretendDevice("valve", "127.0.0.1", broker.port, behaviour=Behaviour.SLOW, answer_after_s=0.2)
    await valve.start()
    try:
        async with Rest(serve) as rest:
            fleet = Fleet(rest, tmp_path, valve)
            await fleet.define(openssh)
            for kill in range(1, KILLS + 1):
                wanted = JOBS * kill // KILLS - len(fleet.accepted)
                before = fleet.counted().total()  # some run before the last one is accepted
                await asyncio.gather(*(fleet.submit(chance) for _ in range(wanted)))
                seen = chance.randrange(1, wanted)
                await eventually(lambda: fleet.counted().total() - before >= seen, 20, 0.002)  # noqa: B023
                await serve.restart()
            await eventually(lambda: nothing_waits(rest), 30)
            jobs = {job["id"]: job for job in await rest.all_jobs()}
    finally:
        await valve.stop()

    assert set(jobs) == set(fleet.accepted), "accepted jobs and the list differ"
    print(f"outcomes {dict(fleet.check(jobs))}, kills {KILLS}")  # noqa: T201
    for job_id, operation in fleet.accepted.items():
        job = jobs[job_id]
        if job["outcome"] == "lost":
            assert not operation["idempotent"], job
            assert job["error"] == {
                "code": "workerDied",
                "message": "the process that ran it ended after it was sent; it may have run",
            }
    assert "Traceback" not in serve.log


async def nothing_waits(rest: Rest) -> bool:
    return not (await rest.get("/jobs", status="PENDING,RUNNING"))["items"]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen
