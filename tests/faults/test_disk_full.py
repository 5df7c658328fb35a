"""A disk that is full: new work is refused, everything else goes on, and freed space is enough to recover."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from iotjobs_sim.sshd import SshServer

from tests.services.programs import missing
from tests.services.site import Rest, Serve, StartServe, ended, eventually

DISK = "24m"
RECOVERED_WITHIN_S = 10.0


class Disk:
    """The disk that a site has for itself, seen from outside its mount namespace."""

    def __init__(self, serve: Serve) -> None:
        self.folder = Path(f"/proc/{serve.pid}/root{serve.data}")
        self._filler = self.folder / "filler"

    def fill(self) -> None:
        """Take every byte that is left."""
        with self._filler.open("ab", buffering=0) as filler:
            for size in (1 << 20, 4096, 512, 1):
                with contextlib.suppress(OSError):  # no space left
                    while True:
                        filler.write(b"x" * size)

    def free(self) -> None:
        """Give it back."""
        self._filler.unlink()


@pytest.fixture
async def serve(make_serve: StartServe) -> Serve:
    """A site on a small disk of its own, its broker too."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        missing("a disk of one's own needs root and unshare (util-linux)")
    made = make_serve()
    made.data.mkdir(parents=True)
    mount = f'mount -t tmpfs -o size={DISK},mode=0700 tmpfs "$0" && exec "$@"'
    made.prefix = ("unshare", "--mount", "--propagation", "private", "sh", "-c", mount, str(made.data))
    await made.start()
    return made


async def refused(rest: Rest, owner: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any]:
    """Submit until there is no room for one more; the refusal."""
    path = f"/objects/{owner['id']}/operations/{operation['id']}/execute"
    for _ in range(2000):  # pages that SQLite has already are used up first
        answer = await rest.call("POST", path, {})
        if answer.status != 202:
            assert answer.headers["content-type"].startswith("application/problem+json")
            refusal: dict[str, Any] = answer.body
            return refusal
    raise AssertionError("there is still room")


@pytest.mark.check(8)
async def test_new_work_is_refused_reads_go_on_and_it_recovers_by_itself(
    serve: Serve, openssh: SshServer, tmp_path: Path
) -> None:
    disk, go = Disk(serve), tmp_path / "go"
    async with Rest(serve) as rest:
        owner = await rest.device(openssh)
        wait = f"while ! [ -e {go} ]; do sleep 0.05; done"
        quiet = await rest.script(owner, f"echo begun; {wait}; echo over", concurrent=True)
        loud = await rest.script(
            owner, f"echo begun; {wait}; dd if=/dev/zero bs=65536 count=40 2>/dev/null", concurrent=True
        )
        later = await rest.script(owner, "echo later", concurrent=True)
        running = [await rest.execute(owner, operation) for operation in (quiet, loud)]
        for job in running:
            await rest.job_that(job["id"], lambda job: job["output"]["bytes"])
        to_come = await rest.execute(owner, later, start_at="2033-01-01T00:00:00Z")

        disk.fill()
        refusal = await refused(rest, owner, later)
        assert (refusal["status"], refusal["code"]) == (507, "storageFull")
        assert (await rest.call("GET", "/jobs")).status == 200
        assert (await rest.job(to_come["id"]))["status"] == "PENDING"
        ready = await rest.call("GET", "/readyz")
        assert (ready.status, ready.body["status"]) == (200, "degraded")
        assert "is full" in ready.body["reasons"]["disk"]
        accepted = {job["id"] for job in await rest.all_jobs()}

        go.touch()  # the running ones end now, with nothing to write it on
        await eventually(lambda: "the store cannot take this yet" in serve.log)
        assert (await rest.call("GET", "/jobs")).status == 200
        await refused(rest, owner, later)

        disk.free()
        began = time.monotonic()
        ends = await asyncio.gather(*(rest.ended(job["id"], RECOVERED_WITHIN_S) for job in running))
        after = await rest.run(owner, later)
        took_s = time.monotonic() - began
        assert took_s < RECOVERED_WITHIN_S
        assert after["outcome"] == "succeeded"
        for job in ends:
            assert (job["outcome"], job["output"]["bytes"] > 0) == ("succeeded", True), job
        for job_id in accepted - {to_come["id"]}:
            assert ended(await rest.ended(job_id, 20)), job_id
        ready = await rest.call("GET", "/readyz")
        assert "disk" not in ready.body["reasons"]
        print(f"recovered {took_s:.1f} s after space was freed, {len(accepted)} jobs were on record")  # noqa: T201
    with sqlite3.connect(disk.folder / "iotjobs.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()
    assert await serve.stop() == 0
    assert "Traceback" not in serve.log
