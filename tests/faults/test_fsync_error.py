"""A disk that says that it did not keep what was written: nothing is accepted on its word, and the process ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from iotjobs_sim.sshd import SshServer

from tests.services.programs import require_program
from tests.services.site import Rest, StartServe, eventually
from tests.services.ssh import processes_of

CALLERS = 20


@contextlib.contextmanager
def failing_syncs(pid: int, folder: Path) -> Iterator[Path]:
    """From now on every fdatasync of a process fails with EIO; what strace saw."""
    strace = require_program("strace", package="strace")
    seen, said = folder / "strace", folder / "strace.err"
    command = [strace, "-f", "-p", str(pid), "-o", str(seen)]
    command += ["-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO"]
    with said.open("wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=errors)
    try:
        until = time.monotonic() + 10
        while b"attached" not in said.read_bytes():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < until
        yield seen
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        process.wait(10)


@pytest.mark.check(9)
async def test_what_the_disk_did_not_keep_is_not_accepted_and_the_process_ends(
    make_serve: StartServe, openssh: SshServer, tmp_path: Path
) -> None:
    if os.geteuid() != 0:
        pytest.skip("strace may follow another process only as root here")
    serve = make_serve()
    await serve.start()
    async with Rest(serve) as rest:
        owner = await rest.device(openssh)
        operation = await rest.script(owner, "echo done", concurrent=True)
        long = await rest.script(owner, "echo begun; sleep 60", concurrent=True)
        kept = [await rest.run(owner, operation) for _ in range(3)]
        running = await rest.execute(owner, long)
        await rest.job_that(running["id"], lambda job: job["output"]["bytes"])
        assert serve.process is not None

        with failing_syncs(serve.pid, tmp_path) as seen:
            path = f"/objects/{owner['id']}/operations/{operation['id']}/execute"
            began = time.monotonic()
            answers = await asyncio.gather(
                *(rest.call("POST", path, {}) for _ in range(CALLERS)), return_exceptions=True
            )
            code = await eventually(serve.process.poll, 30)
            took_s = time.monotonic() - began
            assert "EIO" in seen.read_text()
        serve.process = None

    statuses = [answer.status for answer in answers if not isinstance(answer, BaseException)]
    cut = [answer for answer in answers if isinstance(answer, BaseException)]
    assert set(statuses) <= {503}, statuses
    assert all(isinstance(error, httpx2.TransportError) for error in cut), cut
    assert code == 70
    assert serve.log.count("the disk did not keep what was written: stopping") == 1
    assert processes_of(running["id"]) == []  # nobody listens to it any more
    print(f"{len(statuses)} refused, {len(cut)} cut, ended after {took_s:.1f} s")  # noqa: T201

    await serve.start()
    async with Rest(serve) as rest:
        assert (await rest.ended(running["id"]))["outcome"] == "lost"
        jobs = {job["id"]: job for job in await rest.all_jobs()}
        for job in kept:
            assert jobs[job["id"]]["outcome"] == "succeeded"
        assert (await rest.run(owner, operation))["outcome"] == "succeeded"
    assert await serve.stop() == 0
    with contextlib.closing(sqlite3.connect(serve.data / "iotjobs.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
