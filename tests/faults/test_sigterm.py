"""How serve ends: by SIGTERM, by a second one, and why it does not start twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import asyncpg
import httpx2
import pytest
from iotjobs_sim.sshd import SshServer

from tests.services.postgres import PostgresServer
from tests.services.programs import free_port
from tests.services.site import Rest, Serve, StartServe, eventually
from tests.services.ssh import processes_of


@pytest.fixture
async def serve(make_serve: StartServe, request: pytest.FixtureRequest) -> Serve:
    """A site that is up; a parameter is its grace in seconds."""
    made = make_serve(stop_grace_s=str(getattr(request, "param", 30)))
    await made.start()
    return made


async def running(rest: Rest, openssh: SshServer, text: str) -> str:
    """The id of a job that runs this script now."""
    owner = await rest.device(openssh)
    job = await rest.execute(owner, await rest.script(owner, text))
    await rest.job_that(job["id"], lambda job: job["status"] == "RUNNING" and job["output"]["bytes"])
    return str(job["id"])


@pytest.mark.check(13)
async def test_it_ends_within_five_seconds_when_nothing_runs(serve: Serve) -> None:
    async with httpx2.AsyncClient(base_url=serve.url) as client:
        assert (await client.get("/healthz")).status_code == 200  # a connection that is kept open
        began = time.monotonic()

        code = await serve.stop()

        assert time.monotonic() - began < 5
    assert code == 0
    assert "Traceback" not in serve.log
    assert "stopping" in serve.log


@pytest.mark.check(13)
async def test_a_request_that_is_not_done_at_the_end_is_told_to_come_again(
    make_serve: StartServe, postgres_server: PostgresServer
) -> None:
    made = make_serve("postgresql")
    await made.start()
    assert made.database_url is not None
    locking = await asyncpg.connect(made.database_url.replace("+asyncpg", ""))
    try:
        async with Rest(made) as rest:
            owner = await rest.thing()
            operation = await rest.operation(owner, "mqtt", topic="line/1", message="on")
            await locking.execute("BEGIN; LOCK TABLE idempotency IN ACCESS EXCLUSIVE MODE")
            path = f"/objects/{owner['id']}/operations/{operation['id']}/execute"
            asking = asyncio.create_task(rest.call("POST", path, {}, Idempotency_Key="later"))
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            await eventually(lambda: locking.fetchval(waits))

            code = await made.stop()

            answer = await asking
    finally:
        await locking.close()
    assert (answer.status, answer.body["code"], answer.headers["retry-after"]) == (503, "notReady", "2")
    assert code == 0
    assert "Traceback" not in made.log


@pytest.mark.check(13)
async def test_a_start_that_waits_for_something_is_ended_as_well(make_serve: StartServe) -> None:
    made = make_serve()
    with socket.create_server(("127.0.0.1", made.mqtt_port)):  # the broker waits ten seconds for its port
        made.process = made.launch()
        await eventually((made.data / "broker" / "lock").exists, 20)
        began = time.monotonic()

        code = await made.stop()

        assert time.monotonic() - began < 3
    assert code == 0
    assert "Traceback" not in made.log
    await made.start()  # and it has left nothing behind that is in the way


async def test_a_start_that_waits_for_a_silent_database_is_ended_too(make_serve: StartServe) -> None:
    made = make_serve()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        made.database_url = f"postgresql://u:p@127.0.0.1:{silent.getsockname()[1]}/x"
        made.process = made.launch()
        silent.settimeout(20)
        connection, _ = await asyncio.to_thread(silent.accept)
        began = time.monotonic()

        code = await made.stop()

        assert time.monotonic() - began < 3
        connection.close()
    assert code == 0
    assert "Traceback" not in made.log


@pytest.mark.check(13)
async def test_a_running_job_ends_within_the_grace_and_its_end_is_kept(
    serve: Serve, openssh: SshServer
) -> None:
    async with Rest(serve) as rest:
        job_id = await running(rest, openssh, "echo begun; sleep 2; echo whole")

    assert await serve.stop() == 0
    await serve.start()

    async with Rest(serve) as rest:
        job = await rest.job(job_id)
    assert (job["status"], job["outcome"], job["attempt"]) == ("FINISHED", "succeeded", 1)
    assert job["description"]["stdout"] == "begun\nwhole\n"


@pytest.mark.check(13)
@pytest.mark.parametrize("serve", [1], indirect=True)
async def test_what_the_grace_is_too_short_for_is_killed_on_the_device_and_says_so(
    serve: Serve, openssh: SshServer
) -> None:
    async with Rest(serve) as rest:
        owner = await rest.device(openssh)
        operation = await rest.script(owner, "echo begun; sleep 20", timeout_s=25)
        under_way = await rest.execute(owner, operation)
        behind = await rest.execute(owner, await rest.script(owner, "echo next"))
        await rest.job_that(under_way["id"], lambda job: job["output"]["bytes"])
        began = time.monotonic()

        assert await serve.stop() == 0

    assert time.monotonic() - began < 1 + 5
    assert processes_of(under_way["id"]) == []
    await serve.start()
    async with Rest(serve) as rest:
        lost = await rest.job(under_way["id"])
        after = await rest.ended(behind["id"])
    assert (lost["status"], lost["outcome"]) == ("FINISHED", "lost")
    assert lost["error"] == {
        "code": "serverStopped",
        "message": "the server was stopped while it ran; its processes were killed and are gone",
    }
    assert lost["description"]["stdout"] == "begun\n"
    assert (after["outcome"], after["description"]["stdout"]) == ("succeeded", "next\n")


@pytest.mark.check(13)
@pytest.mark.parametrize("serve", [1], indirect=True)
async def test_what_may_be_repeated_is_handed_over_to_the_next_start(
    serve: Serve, openssh: SshServer, tmp_path: Path
) -> None:
    async with Rest(serve) as rest:
        owner = await rest.device(openssh)
        text = f"echo run; if mkdir {tmp_path}/first; then sleep 20; fi"
        job = await rest.execute(owner, await rest.script(owner, text, idempotent=True))
        await rest.job_that(job["id"], lambda job: job["output"]["bytes"])

        assert await serve.stop() == 0

    assert processes_of(job["id"]) == []
    await serve.start()
    async with Rest(serve) as rest:
        job = await rest.ended(job["id"])
    assert (job["outcome"], job["attempt"], job["description"]["stdout"]) == ("succeeded", 2, "run\n")


async def test_a_second_sigterm_leaves_at_once(serve: Serve, openssh: SshServer) -> None:
    async with Rest(serve) as rest:
        job_id = await running(rest, openssh, "echo begun; sleep 20")
        assert serve.process is not None
        serve.process.send_signal(signal.SIGTERM)
        await eventually(lambda: "stopping" in serve.log)
        began = time.monotonic()

        code = await serve.stop()

    assert time.monotonic() - began < 1
    assert code == 130
    await serve.start()
    async with Rest(serve) as rest:
        assert (await rest.ended(job_id))["outcome"] == "lost"


async def test_who_waits_for_a_job_does_not_hold_the_end_up(serve: Serve, openssh: SshServer) -> None:
    async with Rest(serve) as rest:
        owner = await rest.device(openssh)
        later = await rest.script(owner, "true")
        waits = asyncio.create_task(
            rest.call(
                "POST",
                f"/objects/{owner['id']}/operations/{later['id']}/execute",
                {"start_at": "2030-01-01T00:00:00Z"},
                query={"wait": 60},
            )
        )
        [job] = await eventually(rest.all_jobs)
        began = time.monotonic()

        assert await serve.stop() == 0

        assert time.monotonic() - began < 5
        answer = await waits
    assert (answer.status, answer.body["id"], answer.body["status"]) == (202, job["id"], "PENDING")
    await serve.start()
    async with Rest(serve) as rest:
        assert (await rest.job(job["id"]))["status"] == "PENDING"


async def test_a_restored_database_that_others_can_read_is_ours_alone_again(serve: Serve) -> None:
    assert await serve.stop() == 0
    for path, loose in ((serve.data, 0o755), (serve.data / "iotjobs.db", 0o644)):
        path.chmod(loose)

    await serve.start()

    modes = {path.name: path.stat().st_mode & 0o777 for path in serve.data.iterdir()}
    assert {name: mode for name, mode in modes.items() if mode & 0o077} == {}
    assert serve.data.stat().st_mode & 0o777 == 0o700
    assert serve.log.count("others had rights there: taken away") == 2


async def test_the_same_data_is_served_once_and_the_second_names_the_first(serve: Serve) -> None:
    second = replace(serve, port=free_port(), mqtt_port=free_port(), process=None)
    second.process = second.launch()

    code = await eventually(lambda: second.process is not None and second.process.poll(), 20)

    assert code == 5
    assert f"is served by process {serve.pid}" in serve.log
    async with Rest(serve) as rest:
        assert (await rest.call("GET", "/readyz")).body["status"] == "ready"
    await serve.kill()
    await serve.start()  # the lock ended with its holder


async def test_a_port_that_is_taken_is_said_and_nothing_is_left(serve: Serve) -> None:
    second = replace(serve, folder=serve.folder / "second", mqtt_port=free_port(), process=None)
    second.process = second.launch()

    code = await eventually(lambda: second.process is not None and second.process.poll(), 20)

    assert code == 2
    assert f"cannot bind 127.0.0.1:{serve.port}" in second.log
    assert "Traceback" not in second.log


@pytest.mark.check(13)
@pytest.mark.timeout(240)
async def test_a_hundred_running_jobs_and_fifty_who_wait_hold_the_end_up_no_longer_than_the_grace(
    serve: Serve, openssh: SshServer
) -> None:
    async with Rest(serve) as rest:
        ways = []
        for _ in range(20):
            owner = await rest.device(openssh)
            ways.append((owner, await rest.script(owner, "echo begun; sleep 300", concurrent=True)))
        jobs = [job["id"] for job in await asyncio.gather(*(rest.execute(*way) for way in ways * 5))]

        async def all_run() -> bool:
            found = await rest.all_jobs(status="RUNNING")
            return len(found) == 100 and all(job["output"]["bytes"] for job in found)

        await eventually(all_run, 60, 0.25)
        waits = [
            asyncio.create_task(rest.call("GET", f"/jobs/{job_id}/output", query={"from": 0}))
            for job_id in jobs[:25]
        ] + [
            asyncio.create_task(
                rest.call(
                    "POST",
                    f"/objects/{owner['id']}/operations/{operation['id']}/execute",
                    {"start_at": "2033-01-01T00:00:00Z"},
                    query={"wait": 60},
                )
            )
            for owner, operation in ways[:10] * 5
        ]
        await eventually(lambda: later(rest), 20)
        began = time.monotonic()

        code = await serve.stop(60)

        took_s = time.monotonic() - began
        answers = await asyncio.gather(*waits)
    # All these devices are this one machine, and each kill looks at every process of it.
    left = [job_id for job_id in jobs if f"a job was left under way job_id={job_id}" in serve.log]
    print(f"ended {took_s:.1f} s after SIGTERM, {len(left)} of 100 were left")  # noqa: T201
    assert code == 0
    assert 30 <= took_s < 45
    assert {answer.status for answer in answers[25:]} == {202}
    assert serve.log.count("a job was left under way") == len(left)
    alive = {job_id for job_id in jobs if end_processes(job_id)}
    assert "Traceback" not in serve.log
    await serve.start()
    async with Rest(serve) as rest:
        found = {job_id: await rest.ended(job_id) for job_id in jobs}
    for job_id in jobs:
        assert (found[job_id]["status"], found[job_id]["outcome"]) == ("FINISHED", "lost")
        error = found[job_id]["error"]
        assert error["code"] == ("workerDied" if job_id in left else "serverStopped"), error
        if job_id not in left:  # else they are ended by the next start
            assert (job_id in alive) <= ("were killed and are gone" not in error["message"]), error
    print(Counter(found[job_id]["error"]["message"] for job_id in jobs))  # noqa: T201


def end_processes(job_id: str) -> bool:
    """End what a job left on this machine; whether there was something."""
    found = processes_of(job_id)
    for path in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(path.parent.name), signal.SIGKILL)
    return bool(found)


async def later(rest: Rest) -> bool:
    return len(await rest.all_jobs(status="PENDING")) == 50


@pytest.mark.check(13)
@pytest.mark.parametrize("serve", [1], indirect=True)
async def test_what_cannot_be_ended_in_time_is_told_in_its_record_or_in_the_log(
    serve: Serve, openssh: SshServer
) -> None:
    async with Rest(serve) as rest:
        jobs = [await running(rest, openssh, "echo begun; sleep 60") for _ in range(3)]
        openssh.freeze()
        try:
            began = time.monotonic()
            assert await serve.stop(45) == 0
            took_s = time.monotonic() - began
        finally:
            openssh.thaw()
    left = [job_id for job_id in jobs if f"a job was left under way job_id={job_id}" in serve.log]
    print(f"ended {took_s:.1f} s after SIGTERM, {len(left)} left")  # noqa: T201
    assert took_s < 1 + 15
    assert serve.log.count("a job was left under way") == len(left)

    await serve.start()
    async with Rest(serve) as rest:
        for job_id in jobs:
            job = await rest.ended(job_id)
            assert (job["status"], job["outcome"]) == ("FINISHED", "lost")
            assert job["error"]["code"] == ("workerDied" if job_id in left else "serverStopped"), job["error"]
