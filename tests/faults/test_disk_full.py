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
async def test_cancels_work_and_ends_are_recorded_while_new_work_is_refused(
    serve: Serve, openssh: SshServer, tmp_path: Path
) -> None:
    disk, go = Disk(serve), tmp_path / "go"
    async with Rest(serve) as rest:
        owner = await rest.device(openssh)
        wait = f"echo begun; while ! [ -e {go} ]; do sleep 0.05; done"
        quiet = await rest.script(owner, f"{wait}; echo over", concurrent=True)
        loud = await rest.script(owner, f"{wait}; head -c 3000000 /dev/zero", concurrent=True)
        later = await rest.script(owner, "echo later", concurrent=True)
        in_lane = await rest.script(owner, wait)
        to_cancel, to_stop, *to_end = [
            await rest.execute(owner, operation) for operation in (quiet, quiet, quiet, loud, in_lane)
        ]
        for job in (to_cancel, to_stop, *to_end):
            await rest.job_that(job["id"], lambda job: job["output"]["bytes"])
        behind = await rest.execute(owner, in_lane)
        waits = await rest.execute(owner, later, start_at="2033-01-01T00:00:00Z")
        disk.fill()
        await refused(rest, owner, later)

        asked = await rest.call("POST", f"/jobs/{to_cancel['id']}/cancel", {"reason": "full"})
        assert asked.status == 202, asked.body
        canceled = await rest.ended(to_cancel["id"])
        assert (canceled["status"], canceled["cancel"]["confirmed"]) == ("CANCELED", True)
        assert (await rest.call("POST", f"/jobs/{to_stop['id']}/stop")).status == 202
        await rest.job_that(to_stop["id"], lambda job: job["status"] == "STOPPED")
        assert (await rest.call("POST", f"/jobs/{waits['id']}/cancel", {})).body["status"] == "CANCELED"
        go.touch()
        said, loudly, _ = [await rest.ended(job["id"]) for job in to_end]
        assert (said["outcome"], said["description"]["stdout"]) == ("succeeded", "begun\nover\n")
        assert (loudly["outcome"], loudly["output"]) == ("succeeded", {"bytes": 3000006, "truncated": True})

        execute = f"/objects/{owner['id']}/operations/{later['id']}/execute"
        for method, path, body in (
            ("POST", execute, {}),
            ("POST", "/objects", {"name": "another"}),
            ("PATCH", f"/jobs/{said['id']}/results", {"any": "object"}),
            ("POST", f"/objects/{owner['id']}/report", {"temperature": 5}),
        ):
            await rest.refused(method, path, body, status=507, code="storageFull")
        assert "is full" in (await rest.get("/readyz"))["reasons"]["disk"]
        assert (await rest.job(behind["id"]))["status"] == "PENDING"

        disk.free()

        async def recovered() -> bool:  # by itself, without a word of anybody
            return "disk" not in (await rest.get("/readyz"))["reasons"]

        await eventually(recovered, RECOVERED_WITHIN_S)
        assert (await rest.run(owner, later))["outcome"] == "succeeded"
        assert (await rest.ended(behind["id"]))["outcome"] == "succeeded"
    with sqlite3.connect(disk.folder / "iotjobs.db") as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    database.close()
    assert await serve.stop() == 0
    assert "Traceback" not in serve.log


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

        disk.fill()  # with what was kept for ends too
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
