"""Somebody sets the clock by a day, under a real server: running and stopped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from iotjobs_sim.sshd import SshServer

from iotjobs import clock
from tests.services.mosquitto import Mosquitto
from tests.services.programs import missing
from tests.services.site import Rest, Serve, StartServe, pause

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
    made.variables = {
        "LD_PRELOAD": libfaketime(),
        "FAKETIME_TIMESTAMP_FILE": str(watch.file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }
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
