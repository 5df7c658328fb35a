"""Somebody sets the clock by a day, under a real server: running and stopped."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from iotjobs_sim.sshd import SshServer

from iotjobs import clock
from tests.services.mosquitto import Mosquitto
from tests.services.postgres import PostgresServer, running_postgres
from tests.services.programs import missing
from tests.services.site import Rest, Serve, StartServe, eventually, pause

DAY_S = 86_400
SOON_S = 10.0
LATE_S = 5.0  # what a busy machine may take beyond it


@dataclass
class Watch:
    """The clock that the server sees; ours here stays as it is."""

    file: Path

    def set(self, by_s: int) -> None:
        """So many seconds from the true moment, from now on."""
        fresh = self.file.with_suffix(".new")
        fresh.write_text(f"{by_s:+d}\n")
        fresh.rename(self.file)


def under(watch_file: Path) -> dict[str, str]:
    """The environment of a process that sees that clock."""
    return {
        "LD_PRELOAD": libfaketime(),
        "FAKETIME_TIMESTAMP_FILE": str(watch_file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    made = Watch(tmp_path / "watch")
    made.set(0)
    return made


def libfaketime() -> str:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        missing("libfaketime is not installed: apt-get install faketime (or make setup)")
    return str(found[0])


@pytest.fixture
async def serve(make_serve: StartServe, start_mosquitto: Callable[..., Mosquitto], watch: Watch) -> Serve:
    """A site that sees that clock; its broker sees the true one."""
    made = make_serve(mqtt_url=f"mqtt://127.0.0.1:{start_mosquitto().port}")
    made.variables = under(watch.file)
    await made.start()
    return made


Jobs = dict[str, dict[str, Any]]


async def waiting(rest: Rest, openssh: SshServer, *, runs_s: int = 18) -> Jobs:
    """One of each kind of waiting, all for the same few seconds, and one that runs meanwhile."""
    device, thing = await rest.device(openssh), await rest.thing(thing="valve")
    long = await rest.script(device, f"echo begun; sleep {runs_s}")
    behind = await rest.script(device, "true", ttl_s=SOON_S)
    later = await rest.script(device, "true", concurrent=True)
    ask = await rest.operation(
        thing, "mqtt", parameters={"topic": "x/valve", "message": "m", "answer": {"within_s": SOON_S}}
    )
    running = await rest.execute(device, long)
    await rest.job_that(running["id"], lambda job: job["output"]["bytes"])
    at = clock.rfc3339(clock.now_ms() + int(SOON_S * 1000))
    made = {
        "life": await rest.execute(device, behind),
        "start": await rest.execute(device, later, start_at=at),
        "answer": await rest.execute(thing, ask),
        "running": running,
    }
    await rest.job_that(made["answer"]["id"], lambda job: job["delivery"] == "acknowledged")
    return made


async def outcomes(rest: Rest, jobs: Jobs) -> dict[str, str | None]:
    found = await asyncio.gather(*(rest.job(job["id"]) for job in jobs.values()))
    return dict(zip(jobs, [job["outcome"] for job in found], strict=True))


NONE_YET = dict.fromkeys(("life", "start", "answer", "running"))
DEFINITE = {"life": "expired", "start": "succeeded", "answer": "timed_out"}


@pytest.mark.check(10)
@pytest.mark.parametrize("by_s", [DAY_S, -DAY_S])
async def test_a_leap_while_running_fires_nothing_and_loses_nothing(
    serve: Serve, openssh: SshServer, watch: Watch, by_s: int
) -> None:
    async with Rest(serve) as rest:
        began = time.monotonic()
        jobs = await waiting(rest, openssh)
        made_s = time.monotonic() - began
        watch.set(by_s)
        await pause(max(1.0, SOON_S - made_s - 2.5))
        assert await outcomes(rest, jobs) == NONE_YET
        assert "the clock was set: timers go on as before" in serve.log

        for name, outcome in DEFINITE.items():
            job = await rest.ended(jobs[name]["id"], SOON_S + LATE_S)
            assert job["outcome"] == outcome, (name, job["outcome"], job["error"])
        took_s = time.monotonic() - began
        assert took_s < made_s + SOON_S + LATE_S
        assert (await rest.ended(jobs["running"]["id"], 20))["outcome"] == "succeeded"

        [device] = {jobs["running"]["owner_id"]}
        again = await rest.run({"id": device}, await rest.script({"id": device}, "true", ttl_s=30))
        assert again["outcome"] == "succeeded"
        shown = (again["timestamp"] - clock.now_ms()) / 1000
        assert abs(shown - by_s) < 60  # records have the new time
        print(f"set by {by_s:+d} s: ends came {took_s - made_s:.1f} s after the last submit")  # noqa: T201
    assert await serve.stop() == 0
    assert "Traceback" not in serve.log


@pytest.mark.check(10)
@pytest.mark.parametrize("by_s", [DAY_S, -DAY_S])
async def test_a_leap_while_stopped_loses_nothing_and_makes_nothing_wait_longer(
    serve: Serve, openssh: SshServer, watch: Watch, by_s: int
) -> None:
    async with Rest(serve) as rest:
        jobs = await waiting(rest, openssh, runs_s=90)
    await serve.kill()
    watch.set(by_s)
    await serve.start()

    began = time.monotonic()
    async with Rest(serve) as rest:
        for name, outcome in DEFINITE.items():
            job = await rest.ended(jobs[name]["id"], SOON_S + LATE_S)
            if name == "life" and job["outcome"] == "succeeded":
                continue  # what it waited behind ended with the kill: it may run before its time is over
            if name == "start" and job["outcome"] == "expired" and by_s > 0:
                continue  # it looks like a day's stop, and a day is how long it had behind its start
            assert job["outcome"] == outcome, (name, job["outcome"], job["error"])
        assert (await rest.ended(jobs["running"]["id"]))["outcome"] == "lost"
    print(f"set by {by_s:+d} s while stopped: all had ended {time.monotonic() - began:.1f} s after the start")  # noqa: T201
    assert ("the clock went back while we were stopped" in serve.log) == (by_s < 0)
    assert await serve.stop() == 0


# --- the clock of a PostgreSQL that several nodes share -------------------------------------------


@pytest.fixture
def server_watch() -> Iterator[Watch]:
    """The clock of a database server, which may not look into a test's own folder."""
    with tempfile.TemporaryDirectory(prefix="iotjobs-watch-") as folder:
        Path(folder).chmod(0o755)
        made = Watch(Path(folder) / "watch")
        made.set(0)
        yield made


@pytest.fixture
def postgres(server_watch: Watch) -> Iterator[PostgresServer]:
    with running_postgres(variables=under(server_watch.file)) as server:
        server.execute("CREATE DATABASE site")
        yield server


@pytest.mark.check(10)
async def test_a_database_clock_that_is_set_buries_nobody_and_hides_no_death(
    make_serve: StartServe,
    start_mosquitto: Callable[..., Mosquitto],
    openssh: SshServer,
    postgres: PostgresServer,
    server_watch: Watch,
) -> None:
    first = make_serve(mqtt_url=f"mqtt://127.0.0.1:{start_mosquitto().port}")
    first.database_url = postgres.url("site")
    second = first.beside("second")
    try:
        await first.start()
        await second.start()
        async with Rest(second) as rest:
            device = await rest.device(openssh)
            long = await rest.script(device, "sleep 8", concurrent=True)
            short = await rest.script(device, "true", concurrent=True)
            later = await rest.execute(device, short, start_at=in_s(3600))
            for by_s in (60, -3600):
                running = [await rest.execute(device, long) for _ in range(6)]
                for job in running:
                    await rest.job_that(job["id"], lambda job: job["status"] == "RUNNING")
                server_watch.set(by_s)
                ends = [await rest.ended(job["id"], 30) for job in running]
                assert {job["outcome"] for job in ends} == {"succeeded"}, by_s
            assert "was declared dead" not in first.log + second.log
            assert [worker["state"] for worker in (await rest.get("/workers"))["items"]] == ["alive"] * 2

            server_watch.set(0)
            await eventually(lambda: leads(rest, first, second), 30)
            await eventually(lambda: follows(rest, device, short), 30, 0.2)
            running = [await rest.execute(device, long) for _ in range(6)]
            await rest.job_that(running[-1]["id"], lambda job: job["status"] == "RUNNING")
            began = time.monotonic()
            await first.kill()  # it leads, or it does not: both have to end
            server_watch.set(-3600)
            ends = [await rest.ended(job["id"], 40) for job in running]
            took_s = time.monotonic() - began
            print(f"ends after a death under a clock set back: {took_s:.1f} s")  # noqa: T201
            assert {job["outcome"] for job in ends} <= {"succeeded", "lost"}
            assert (await rest.run(device, short, wait=30))["outcome"] == "succeeded"
            assert (await rest.job(later["id"]))["status"] == "PENDING"

            soon = await rest.execute(device, short, start_at=in_s(10 - 3600))
            assert soon["pending_reason"] == "start_at"
            await second.kill()
            server_watch.set(-7200)
            began = time.monotonic()
            await second.start()  # nobody leads until the lease of the dead was watched for its whole length
        async with Rest(second) as rest:
            assert (await rest.ended(soon["id"], 30))["outcome"] == "succeeded"
            print(f"a start under a clock set back while all were dead: {time.monotonic() - began:.1f} s")  # noqa: T201
            assert (await rest.job(later["id"]))["status"] == "PENDING"
        assert "the clock went back while we were stopped" in second.log
    finally:
        for node in (first, second):
            await node.kill()
    assert "Traceback" not in first.log + second.log


def in_s(seconds: float) -> str | None:
    return clock.rfc3339(clock.now_ms() + int(seconds * 1000))


async def follows(rest: Rest, device: dict[str, Any], operation: dict[str, Any]) -> bool:
    """Whether the node goes by the clock as it is now: what it makes before would count from another moment."""
    job = await rest.execute(device, operation)
    return abs(job["timestamp"] / 1000 - time.time()) < 10


async def leads(rest: Rest, *nodes: Serve) -> bool:
    """Whether one of them does."""
    workers = (await rest.get("/workers"))["items"]
    pids = {worker["pid"] for worker in workers if "leader" in worker["leases"]}
    return pids <= {node.pid for node in nodes} and bool(pids)
