"""A connection that breaks under a run: the job is lost, and what ran is ended on the device."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from iotjobs_sim.sshd import SshServer, start_openssh

from tests.services.site import Rest, StartServe, eventually
from tests.services.ssh import processes_of

# The parent of what sshd runs is the process of its connection.
BEGUN = "echo $PPID $$; "


async def begun(rest: Rest, job: dict[str, Any]) -> int:
    """The process of the connection of a run that told it."""
    await rest.job_that(job["id"], lambda job: job["output"]["bytes"])
    output = await rest.call("GET", f"/jobs/{job['id']}/output")
    return int(output.body.split()[0])


@pytest.mark.check(4)
@pytest.mark.parametrize("text", ["sleep 77", "trap '' TERM; (setsid sleep 77 & sleep 77 & wait)"])
async def test_what_ran_over_a_cut_connection_is_killed_and_the_record_says_so(
    make_serve: StartServe, openssh: SshServer, text: str
) -> None:
    serve = make_serve()
    await serve.start()
    async with Rest(serve) as rest:
        owner = await rest.device(openssh)
        job = await rest.execute(owner, await rest.script(owner, BEGUN + text, kill_after_s=0.5))
        connection = await begun(rest, job)
        assert processes_of(job["id"])
        os.kill(connection, signal.SIGKILL)

        job = await rest.ended(job["id"])

    assert processes_of(job["id"]) == []
    assert (job["outcome"], job["error"]["code"]) == ("lost", "linkLost")
    assert job["error"]["message"].endswith("; its processes were killed and are gone")


@pytest.mark.check(4)
async def test_what_is_tried_again_after_a_cut_runs_alone(
    make_serve: StartServe, openssh: SshServer, tmp_path: Path
) -> None:
    serve = make_serve()
    await serve.start()
    runs = f"grep -q '^State:.[^ZX]' /proc/$(cat {tmp_path}/pid)/status 2>/dev/null"
    again = f"if {runs}; then echo both; else echo alone; fi"
    text = f"if mkdir {tmp_path}/first; then echo $$ >{tmp_path}/pid; {BEGUN} sleep 77; else {again}; fi"
    retry = {"attempts": 2, "on": ["lost"], "backoff_s": 0.1}
    async with Rest(serve) as rest:
        owner = await rest.device(openssh)
        operation = await rest.script(owner, text, idempotent=True, retry=retry, kill_after_s=0.5)
        job = await rest.execute(owner, operation)
        os.kill(await begun(rest, job), signal.SIGKILL)

        job = await rest.ended(job["id"])

    assert (job["outcome"], job["attempt"], job["description"]["stdout"]) == ("succeeded", 2, "alone\n")


@pytest.mark.check(3)
@pytest.mark.check(22)
@pytest.mark.parametrize(
    ("timeout_s", "outcome", "within_s"), [(1.5, "timed_out", 1.5 + 2), (60, "lost", 4 * 1 + 2)]
)
async def test_a_frozen_device_ends_its_job_in_time_and_the_record_says_what_nobody_knows(
    make_serve: StartServe, tmp_path: Path, timeout_s: float, outcome: str, within_s: float
) -> None:
    serve = make_serve(ssh_keepalive_s="1")
    await serve.start()
    with start_openssh(tmp_path / "frozen") as server:
        async with Rest(serve) as rest:
            owner = await rest.device(server)
            operation = await rest.script(owner, BEGUN + "sleep 77", timeout_s=timeout_s, kill_after_s=0.5)
            began = time.monotonic()
            job = await rest.execute(owner, operation)
            if outcome == "lost":
                await begun(rest, job)
                began = time.monotonic()
            else:
                await eventually(lambda: processes_of(job["id"]))
            server.freeze()

            job = await rest.ended(job["id"])

            assert time.monotonic() - began <= within_s
        server.thaw()
    assert job["outcome"] == outcome
    assert "could not confirm that its processes are gone" in job["error"]["message"]
    for path in processes_of(job["id"]):
        os.kill(int(path.parent.name), signal.SIGKILL)
