"""kill -9 of serve with jobs of every kind in flight: none is gone, none is stuck, none ran twice."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from iotjobs_sim.sshd import SshServer

from tests.services.fleet import Fleet, slow_valve
from tests.services.lives import assert_lives
from tests.services.mosquitto import Mosquitto
from tests.services.siege import Siege, nothing_waits, seeded, shown, waiting
from tests.services.site import Rest, StartServe, eventually
from tests.services.ssh import processes_of

JOBS_A_KILL = 40
DEFINITE_WITHIN_S = 30
JOBS = 50
TAKES_S = 2.0
DIED = "the process that ran it ended after it was sent; it may have run"
GONE = "its processes were killed and are gone"


@pytest.mark.check(1)
async def test_after_kills_at_random_moments_every_job_has_its_end_and_none_ran_twice(
    make_serve: StartServe,
    start_mosquitto: Callable[..., Mosquitto],
    openssh: SshServer,
    tmp_path: Path,
    database: str,
    full: bool,
) -> None:
    kills = 50 if full and database == "sqlite" else 2  # for PostgreSQL see test_kill_nodes
    seed, chance = seeded()
    if database == "sqlite":  # as it is installed: the broker is a child of serve, and dies with it
        serve = make_serve()
    else:
        serve = make_serve(database, mqtt_url=f"mqtt://127.0.0.1:{start_mosquitto().port}")
    await serve.start()
    async with Rest(serve) as rest:
        thing = await rest.thing(thing="valve")
        async with slow_valve(*await access(rest, thing)) as valve:
            fleet = Fleet(rest, tmp_path, valve)
            await fleet.define(openssh, thing=thing)
            siege = Siege(fleet, [serve], [rest], chance)
            await siege.lay(kills, kills * JOBS_A_KILL)
            took, jobs = await siege.all_definite(DEFINITE_WITHIN_S)
            with suppress(AssertionError):  # the check below names those that have not
                await eventually(lambda: all_arrived(fleet, jobs), 20)

    await assert_lives(serve.database_url or f"sqlite:///{serve.data}/iotjobs.db", jobs)
    outcomes = assert_each_has_its_end(fleet, jobs)
    shown(
        database,
        outcomes,
        seed=seed,
        kills=kills,
        jobs=len(jobs),
        met=siege.met,
        definite_s=f"{took:.1f}",
    )
    assert "Traceback" not in serve.log


async def access(rest: Rest, thing: dict[str, Any]) -> tuple[Any, ...]:
    """The port of the site's broker; on our own one also a login for the thing."""
    url = rest.serve.settings.get("mqtt_url")
    if url is not None:
        return (int(url.rpartition(":")[2]),)
    enrolled = await rest.call("POST", f"/objects/{thing['id']}/enrol")
    return rest.serve.mqtt_port, enrolled.body["username"], enrolled.body["password"]


def all_arrived(fleet: Fleet, jobs: dict[str, dict[str, Any]]) -> bool:
    """Whether what the broker took has come to its device, which may just connect again."""
    counted = fleet.counted()
    return all(counted[job_id] for job_id, job in jobs.items() if job["outcome"] == "succeeded")


async def test_after_a_kill_amid_fifty_jobs_in_flight_every_job_has_its_end_and_none_ran_twice(
    make_serve: StartServe,
    start_mosquitto: Callable[..., Mosquitto],
    openssh: SshServer,
    tmp_path: Path,
    database: str,
) -> None:
    chance, broker = random.Random(50), start_mosquitto()
    serve = make_serve(database, mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
    await serve.start()
    async with slow_valve(broker.port, answer_after_s=TAKES_S) as valve, Rest(serve) as rest:
        fleet = Fleet(rest, tmp_path, valve)
        await fleet.define(openssh, takes_s=TAKES_S)
        await asyncio.gather(*(fleet.submit(chance) for _ in range(JOBS)))
        await eventually(lambda: len(fleet.ran()) >= JOBS // 5, 20, 0.002)  # and more are waiting
        in_flight = await waiting(rest)
        await serve.restart()
        await eventually(lambda: nothing_waits(rest), 40)
        jobs = {job["id"]: job for job in await rest.all_jobs()}

    assert len(in_flight) > JOBS // 2, "most had ended before the kill: it proves nothing"
    assert {job["status"] for job in in_flight} == {"PENDING", "RUNNING"}
    assert "lost" in {job["outcome"] for job in jobs.values()}  # one that may not be repeated had been sent
    assert_each_has_its_end(fleet, jobs)
    assert "Traceback" not in serve.log


async def test_in_a_lane_nothing_runs_beside_what_a_dead_server_left(
    make_serve: StartServe,
    start_mosquitto: Callable[..., Mosquitto],
    openssh: SshServer,
    tmp_path: Path,
    database: str,
) -> None:
    serve = make_serve(database, mqtt_url=f"mqtt://127.0.0.1:{start_mosquitto().port}")
    await serve.start()
    pid = tmp_path / "pid"
    async with Rest(serve) as rest:
        device = await rest.device(openssh)
        first = await rest.execute(device, await rest.script(device, f"echo $$ >{pid}; exec sleep 77"))
        state = f"$(cut -d ' ' -f 3 /proc/$(cat {pid})/stat 2>/dev/null)"
        look = f'case "{state}" in "" | [XZ]) echo alone ;; *) echo beside ;; esac'
        second = await rest.execute(device, await rest.script(device, look))
        await eventually(lambda: pid.exists() and pid.read_text())
        await rest.job_that(second["id"], lambda job: job["pending_reason"] == "lane")

    await serve.restart()

    async with Rest(serve) as rest:
        lost, second = await rest.ended(first["id"]), await rest.ended(second["id"])
    assert (lost["outcome"], lost["error"]) == ("lost", {"code": "workerDied", "message": f"{DIED}; {GONE}"})
    assert second["description"]["stdout"] == "alone\n"
    assert processes_of(first["id"]) == []


def assert_each_has_its_end(fleet: Fleet, jobs: dict[str, dict[str, Any]]) -> Counter[str]:
    """What was accepted is there and ended; `lost` is only what may not be repeated, and says why."""
    outcomes = fleet.check(jobs)
    for job_id, operation in fleet.accepted.items():
        job = jobs[job_id]
        if job["outcome"] == "lost":
            assert not operation["idempotent"], job
            proof = "" if operation["type"] == "mqtt" else f"; {GONE}"
            assert job["error"] == {"code": "workerDied", "message": DIED + proof}
    return outcomes


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen
