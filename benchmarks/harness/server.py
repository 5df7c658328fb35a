"""A real `iotjobs serve` in a process and a data directory of its own, and what it costs."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from benchmarks.harness.fleet import Fleet
from benchmarks.harness.http import Client

TOKEN = "1-" + "b" * 40
READY_WITHIN_S = 30.0
STOP_WITHIN_S = 60.0


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_s(pid: int) -> float:
    """Seconds of processor time that a process's threads used so far, children left out."""
    # The scheduler's own nanoseconds: /proc/PID/stat counts in ticks of 10 ms.
    tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def machine_cpu_s() -> float:
    """Seconds of processor time that the whole machine used since its start, whoever for."""
    user, nice, system, _idle, _waiting, *interrupts = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + sum(interrupts[:2])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Resident memory of a process in megabytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError("every process has a VmRSS")


class Server:
    """`iotjobs serve`; `start` returns when `/readyz` answers 200. Ended by its own process id."""

    def __init__(self, folder: Path, *, settings: dict[str, str] | None = None) -> None:
        self.folder, self.data = folder, folder / "data"
        self.port, self.mqtt_port = free_port(), free_port()
        self.ready_s = 0.0
        self._settings = settings or {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Of the server."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> Server:
        """Start it and wait until it is ready.

        Raises:
            RuntimeError: it ended, or is not ready in time.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "iotjobs", "serve", "--data", str(self.data)]
        command += ["--port", str(self.port), "--mqtt-port", str(self.mqtt_port)]
        given = {"IOTJOBS_ADMIN_TOKEN": TOKEN, "IOTJOBS_LOG_LEVEL": "warning"}
        environment = os.environ | given | self._settings
        # An installed server has its byte code; with this every start compiles all of it again.
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        started = time.monotonic()
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() - started > READY_WITHIN_S:
                self.stop()
                raise RuntimeError(f"the server did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.005)
        self.ready_s = time.monotonic() - started
        return self

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        """End it. Calling it twice is safe."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def client(self, connections: int = 16) -> Client:
        """A client with the administrator's token."""
        return Client(self.port, TOKEN, connections=connections)


class JobTable:
    """Looks into the server's SQLite file from outside, read-only."""

    def __init__(self, data: Path) -> None:
        self._db = sqlite3.connect(f"file:{data / 'iotjobs.db'}?mode=ro", uri=True, isolation_level=None)

    def newest(self) -> int:
        """The `seq` of the newest job; 0 without one."""
        return int(self._db.execute("SELECT coalesce(max(seq), 0) FROM job").fetchone()[0])

    async def all_ended(self, after: int, count: int, within_s: float) -> None:
        """Wait until `count` jobs behind a `seq` are FINISHED on disk, and all of them succeeded.

        Raises:
            RuntimeError: not in time, or not all succeeded.
        """
        deadline = time.monotonic() + within_s
        ended = "SELECT count(*) FROM job WHERE seq > ? AND status = 'FINISHED'"
        open_ = "SELECT count(*) FROM job WHERE status IN ('PENDING', 'RUNNING', 'STOPPING', 'CANCELING')"
        # The first question is answered from an index that is all but empty when the answer is 0.
        while (
            self._db.execute(open_).fetchone()[0] or self._db.execute(ended, (after,)).fetchone()[0] < count
        ):
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"not all of {count} jobs ended within {within_s:g} s: {self.outcomes(after)}"
                )
            await asyncio.sleep(0.01)
        if self.outcomes(after) != {"succeeded": count}:
            raise RuntimeError(f"{count} jobs should have succeeded: {self.outcomes(after)}")

    def outcomes(self, after: int) -> dict[str, int]:
        """How many jobs behind a `seq` have each outcome."""
        rows = self._db.execute("SELECT outcome, count(*) FROM job WHERE seq > ? GROUP BY outcome", (after,))
        return {str(outcome): count for outcome, count in rows}

    def close(self) -> None:
        """Close the file."""
        self._db.close()


async def define_fleet(client: Client, fleet: Fleet, script: str) -> list[str]:
    """An object for each device, and the operation `run` of their class; the paths to execute it."""
    api = "/api/v1"
    credential = await client.call(
        "POST",
        f"{api}/credentials",
        {"name": "fleet", "kind": "ssh_key", "username": fleet.username, "private_key": fleet.key},
    )
    kind = await client.call("POST", f"{api}/classes", {"name": "device"})
    operation = await client.call(
        "POST",
        f"{api}/classes/{kind['id']}/operations",
        {"name": "run", "type": "script", "parameters": {"text": script}},
    )
    paths = []
    for number, device in enumerate(fleet.devices):
        ssh = {
            "host": device.host,
            "port": device.port,
            "credential_id": credential["id"],
            "host_key": device.host_key,
        }
        made = await client.call(
            "POST", f"{api}/objects", {"name": f"device-{number}", "class_id": kind["id"], "ssh": ssh}
        )
        paths.append(f"{api}/objects/{made['id']}/operations/{operation['id']}/execute")
    return paths
