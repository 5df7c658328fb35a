"""Recorded SSH jobs per second, beside what runs the same command on the same fleet and records nothing.

One fan-out runs one command on every device and waits until all have ended; for us, until all are
FINISHED in the store. In each run every contender gets a fresh process: its first fan-out opens the
connections (cold), the ones after it use them (warm). Contenders take turns, so that a busy moment
of the machine hits all of them; the figures are medians over the runs.

- `iotjobs serve` is the real server, asked through REST by this process over 16 connections.
- `iotjobs, in process` submits through the engine, without HTTP, in the process that runs the jobs.

Both write every job to SQLite with synchronous=FULL.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.harness.figures import QUICK, finish, median, ratio, table
from benchmarks.harness.fleet import Fleet, fleet_of
from benchmarks.harness.http import Client
from benchmarks.harness.server import JobTable, Server, cpu_s, define_fleet, rss_mb

ROOT = Path(__file__).resolve().parents[1]
PEERS = ROOT / "benchmarks" / "peers"
PEER_PYTHON = ROOT / ".benchmark-env" / "bin" / "python"

DEVICES = (20,) if QUICK else (100, 500)
RUNS = 1 if QUICK else 3
WARM_JOBS = 60 if QUICK else 2000
COMMAND = "true"
FAN_OUT_WITHIN_S = 300.0
ALL_WITHIN_S = 3000.0


@dataclass(frozen=True, slots=True)
class Took:
    """One fan-out: seconds, and processor seconds of the contender's own process."""

    seconds: float
    cpu_s: float


class Contender(Protocol):
    """Runs fan-outs; one process from `start` to `stop`."""

    name: str
    warm_fan_outs: int

    async def start(self) -> None:
        """Bring the process up; no connection is open."""

    async def fan_out(self) -> Took:
        """Run the command on every device.

        Raises:
            RuntimeError: a job failed.
        """

    async def stop(self) -> None:
        """End the process, and with it its connections."""

    def rss_mb(self) -> float:
        """Resident memory now."""


class Served:
    """`iotjobs serve` and REST."""

    name = "iotjobs serve (REST)"

    def __init__(self, folder: Path, paths: list[str], warm_fan_outs: int) -> None:
        self.warm_fan_outs = warm_fan_outs
        self._folder, self._paths = folder, paths
        self._requests: list[bytes] = []
        self._server: Server | None = None
        self._client: Client | None = None
        self._table: JobTable | None = None

    async def start(self) -> None:
        """See `Contender`."""
        self._server = Server(self._folder).start()
        self._client = self._server.client()
        await self._client.open()
        self._requests = [self._client.request("POST", path, {}) for path in self._paths]
        self._table = JobTable(self._server.data)

    async def fan_out(self) -> Took:
        """See `Contender`."""
        assert self._server
        assert self._client
        assert self._table
        after, cpu = self._table.newest(), cpu_s(self._server.pid)
        began = time.monotonic()
        answers = await self._client.send_all(self._requests)
        refused = [answer for status, answer in answers if status != 202]
        if refused:
            raise RuntimeError(f"{len(refused)} executes were refused: {refused[0].decode()}")
        await self._table.all_ended(after, len(self._requests), FAN_OUT_WITHIN_S)
        return Took(time.monotonic() - began, cpu_s(self._server.pid) - cpu)

    def rss_mb(self) -> float:
        """See `Contender`."""
        assert self._server
        return rss_mb(self._server.pid)

    async def stop(self) -> None:
        """See `Contender`."""
        assert self._server
        assert self._client
        assert self._table
        self._client.close()
        self._table.close()
        self._server.stop()


@dataclass(slots=True)
class Peer:
    """A process that speaks the protocol of `peers/fan_out.py`."""

    name: str
    command: list[str]
    warm_fan_outs: int
    settings: dict[str, str] = field(default_factory=dict)
    devices: int = 0
    _process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """See `Contender`."""
        self._process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"BENCH_COMMAND": COMMAND} | self.settings,
            cwd=ROOT,
        )
        await self._line()

    async def _line(self) -> dict[str, Any]:
        assert self._process
        assert self._process.stdout
        async with asyncio.timeout(FAN_OUT_WITHIN_S):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended: its complaint is above")
        found: dict[str, Any] = json.loads(line)
        return found

    async def fan_out(self) -> Took:
        """See `Contender`."""
        assert self._process
        assert self._process.stdin
        self._process.stdin.write(b"go\n")
        took = await self._line()
        if took["failed"]:
            raise RuntimeError(f"{self.name}: {took['failed']} of {self.devices} failed")
        return Took(took["seconds"], took["cpu_s"])

    def rss_mb(self) -> float:
        """See `Contender`."""
        assert self._process
        return rss_mb(self._process.pid)

    async def stop(self) -> None:
        """See `Contender`."""
        assert self._process
        assert self._process.stdin
        self._process.stdin.close()
        async with asyncio.timeout(60):
            await self._process.wait()


@dataclass(slots=True)
class Measured:
    """What the runs of one contender told."""

    cold: list[float] = field(default_factory=list)  # jobs/s
    warm: list[float] = field(default_factory=list)
    cold_cpu_ms: list[float] = field(default_factory=list)  # a job
    warm_cpu_ms: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)


async def define(folder: Path, fleet: Fleet) -> list[str]:
    """Make a data directory that knows the fleet; the paths that execute the operation."""
    with Server(folder) as server:
        client = server.client(1)
        paths = await define_fleet(client, fleet, COMMAND)
        client.close()
    return paths


async def contenders_of(folder: Path, fleet: Fleet) -> list[Contender]:
    """All that can run here; who is not installed is left out, with a word."""
    paths = await define(folder / "site", fleet)
    shutil.copytree(folder / "site" / "data", folder / "engine")
    (folder / "paths.json").write_text(json.dumps(paths))
    saved = str(fleet.save(folder / "fleet.json"))
    warm, count = max(1, WARM_JOBS // len(fleet.devices)), len(fleet.devices)
    here = [sys.executable, "-m", "benchmarks.harness.in_process", str(folder / "engine")]
    found: list[Contender] = [
        Served(folder / "site", paths, warm),
        Peer("iotjobs, in process", [*here, str(folder / "paths.json")], warm, devices=count),
        Peer("bare asyncssh", [sys.executable, str(PEERS / "bare_asyncssh.py"), saved], warm, devices=count),
    ]
    if not PEER_PYTHON.exists():
        print("parallel-ssh and Ansible are left out: run `sh benchmarks/setup.sh`", file=sys.stderr)
        return found
    python = str(PEER_PYTHON)
    ansible = [python, str(PEERS / "ansible_raw.py"), saved]
    return [
        *found,
        Peer("parallel-ssh", [python, str(PEERS / "parallel_ssh.py"), saved], warm, devices=count),
        Peer("Ansible raw, ControlPersist", ansible, 1, {"BENCH_PERSIST": "1"}, devices=count),
        Peer("Ansible raw", ansible, 0, {"BENCH_PERSIST": "0"}, devices=count),
    ]


async def run_once(contender: Contender, into: Measured, devices: int) -> None:
    """One run: a fresh process, one cold fan-out, then warm ones."""
    await contender.start()
    try:
        first = await contender.fan_out()
        into.cold.append(devices / first.seconds)
        into.cold_cpu_ms.append(1000 * first.cpu_s / devices)
        took = [await contender.fan_out() for _ in range(contender.warm_fan_outs)]
        if took:
            jobs = devices * len(took)
            into.warm.append(jobs / sum(one.seconds for one in took))
            into.warm_cpu_ms.append(1000 * sum(one.cpu_s for one in took) / jobs)
        into.rss_mb.append(contender.rss_mb())
    finally:
        await contender.stop()


async def measure(devices: int, folder: Path) -> dict[str, Measured]:
    """All contenders, by turns."""
    with fleet_of(devices, folder / "fleet") as fleet:
        contenders = await contenders_of(folder, fleet)
        measured = {contender.name: Measured() for contender in contenders}
        for number in range(RUNS):
            for contender in contenders[number:] + contenders[:number]:
                await run_once(contender, measured[contender.name], devices)
                print(f"  {devices} devices, run {number + 1}: {contender.name}", file=sys.stderr, flush=True)
    return measured


def report(devices: int, measured: dict[str, Measured]) -> dict[str, Any]:
    """Print the tables of one size; its figures."""
    rows = [
        [
            name,
            median(one.cold),
            median(one.warm) or None,
            median(one.cold_cpu_ms),
            median(one.warm_cpu_ms) or None,
            median(one.rss_mb),
        ]
        for name, one in measured.items()
    ]
    print(f"{devices} devices, medians of {RUNS} runs\n")
    table(["", "cold jobs/s", "warm jobs/s", "CPU ms/cold job", "CPU ms/warm job", "RSS MB"], rows)
    ratios = {
        ours: {
            f"{heat} ÷ {theirs}": ratio(median(getattr(measured[ours], heat)), median(getattr(other, at)))
            for heat in ("cold", "warm")
            for theirs, other in measured.items()
            if not theirs.startswith("iotjobs")
            # Without ControlPersist Ansible has no warm connection: each of its fan-outs is cold.
            for at in [heat if other.warm else "cold"]
        }
        for ours in measured
        if ours.startswith("iotjobs")
    }
    names = list(next(iter(ratios.values())))
    table(["ratio", *ratios], [[name, *(ratios[ours][name] for ours in ratios)] for name in names])
    figures = {
        name: {
            "cold_per_s": round(median(one.cold), 1),
            "warm_per_s": round(median(one.warm), 1),
            "cold_cpu_ms": round(median(one.cold_cpu_ms), 2),
            "warm_cpu_ms": round(median(one.warm_cpu_ms), 3),
            "rss_mb": round(median(one.rss_mb), 1),
            "warm_runs_per_s": [round(value, 1) for value in one.warm],
        }
        for name, one in measured.items()
    }
    return {"devices": devices, "contenders": figures, "ratios": ratios}


async def main() -> None:
    figures = []
    async with asyncio.timeout(ALL_WITHIN_S):
        for devices in DEVICES:
            with tempfile.TemporaryDirectory(prefix="ij", ignore_cleanup_errors=True) as folder:
                figures.append(report(devices, await measure(devices, Path(folder))))
    finish("ssh_fanout", {"command": COMMAND, "runs": RUNS, "sizes": figures})


if __name__ == "__main__":
    asyncio.run(main())
