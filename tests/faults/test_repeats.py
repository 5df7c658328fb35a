"""An idempotent job whose server died is repeated, and never beside the copy that still runs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from iotjobs_sim.sshd import SshServer, start_openssh

from tests.services.site import Rest, StartServe
from tests.services.ssh import processes_of


def first_hangs(folder: Path) -> str:
    """A script whose first run does not end, and whose next ones tell whether that still runs."""
    runs = f"grep -q '^State:.[^ZX]' /proc/$(cat {folder}/pid)/status 2>/dev/null"
    alone = f"if {runs}; then echo both; else echo alone; fi"
    return f"if mkdir {folder}/first; then echo $$ >{folder}/pid; echo begun; sleep 77; else {alone}; fi"


@pytest.mark.parametrize("stubborn", [False, True])
async def test_the_copy_that_a_dead_server_left_is_gone_before_the_next_runs(
    make_serve: StartServe, openssh: SshServer, tmp_path: Path, stubborn: bool
) -> None:
    serve = make_serve()
    await serve.start()
    text = ("trap '' TERM; " if stubborn else "") + first_hangs(tmp_path)
    async with Rest(serve) as rest:
        owner = await rest.device(openssh)
        operation = await rest.script(owner, text, idempotent=True, kill_after_s=0.5)
        job = await rest.execute(owner, operation)
        await rest.job_that(job["id"], lambda job: job["output"]["bytes"])

    await serve.restart()

    async with Rest(serve) as rest:
        job = await rest.ended(job["id"])
    assert (job["outcome"], job["attempt"], job["description"]["stdout"]) == ("succeeded", 2, "alone\n")
    assert processes_of(job["id"]) == []


async def test_a_device_that_is_gone_after_the_death_ends_its_job_lost_and_holds_nobody_up(
    make_serve: StartServe, openssh: SshServer, tmp_path: Path
) -> None:
    serve = make_serve()
    await serve.start()
    with start_openssh(tmp_path / "gone") as gone:
        async with Rest(serve) as rest:
            owner, other = await rest.device(gone), await rest.device(openssh)
            operation = await rest.script(owner, first_hangs(tmp_path), idempotent=True, kill_after_s=0.5)
            lost = await rest.execute(owner, operation)
            await rest.job_that(lost["id"], lambda job: job["output"]["bytes"])
            await serve.kill()
            gone.freeze()  # it takes connections and says nothing
            began = time.monotonic()
            await serve.start()
            assert time.monotonic() - began < 10
        async with Rest(serve) as rest:
            assert (await rest.run(other, await rest.script(other, "echo up")))["outcome"] == "succeeded"
            assert (await rest.job(lost["id"]))["status"] == "RUNNING"
            lost = await rest.ended(lost["id"], 20)
        gone.thaw()
    assert (lost["outcome"], lost["attempt"], lost["error"]["code"]) == ("lost", 2, "earlierNotEnded")
    assert lost["error"]["message"].startswith("could not confirm that the processes of an earlier attempt")
    assert lost["description"] is None, "nothing of the second attempt ran"
    for path in processes_of(lost["id"]):
        os.kill(int(path.parent.name), signal.SIGKILL)
