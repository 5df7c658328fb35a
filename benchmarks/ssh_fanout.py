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
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.harness.figures import QUICK, finish, median, ratio, table
from benchmarks.harness.fleet import Fleet, fleet_of
from benchmarks.harness.http import Client
from benchmarks.harness.peer import PEERS, Peer, Took
from benchmarks.harness.server import JobTable, Server, cpu_s, define_fleet, machine_cpu_s, rss_mb

DEVICES = [int(count) for count in os.environ.get("DEVICES", "20" if QUICK else "100 500").split()]
RUNS = 1 if QUICK else 3
WARM_JOBS = 60 if QUICK else 2000
COMMAND = "true"
FAN_OUT_WITHIN_S = 300.0
ALL_WITHIN_S = 3000.0


class Served:
    """`iotjobs serve` and REST."""

    name = "iotjobs serve (REST)"

    def __init__(self, folder: Path, paths: list[str]) -> None:
        self._folder, self._paths = folder, paths
        self._requests: list[bytes] = []
        self._server: Server | None = None
        self._client: Client | None = None
        self._table: JobTable | None = None

    async def start(self) -> None:
        """See `Peer`."""
        self._server = Server(self._folder).start()
        self._client = self._server.client()
        await self._client.open()
        self._requests = [self._client.request("POST", path, {}) for path in self._paths]
        self._table = JobTable(self._server.data)

    async def fan_out(self) -> Took:
        """See `Peer`."""
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
        """See `Peer`."""
        assert self._server
        return rss_mb(self._server.pid)

    async def stop(self) -> None:
        """See `Peer`."""
        if self._client is not None:
            self._client.close()
        if self._table is not None:
            self._table.close()
        if self._server is not None:
            self._server.stop()


@dataclass(slots=True)
class Entry:
    """A contender, how many warm fan-outs it gets in a run, and what its runs told."""

    contender: Served | Peer
    warm_fan_outs: int

    cold: list[float] = field(default_factory=list)  # jobs/s
    warm: list[float] = field(default_factory=list)
    cold_cpu_ms: list[float] = field(default_factory=list)  # a job
    warm_cpu_ms: list[float] = field(default_factory=list)
    cold_all_ms: list[float] = field(default_factory=list)  # of the whole machine: the devices are on it
    warm_all_ms: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)


async def define(folder: Path, fleet: Fleet) -> list[str]:
    """Make a data directory that knows the fleet; the paths that execute the operation."""
    with Server(folder) as server:
        client = server.client(1)
        paths = await define_fleet(client, fleet, COMMAND)
        client.close()
    return paths


async def entries_of(folder: Path, fleet: Fleet) -> list[Entry]:
    """All that can run here; who is not installed is left out, with a word."""
    paths = await define(folder / "site", fleet)
    shutil.copytree(folder / "site" / "data", folder / "engine")
    (folder / "paths.json").write_text(json.dumps(paths))
    saved = str(fleet.save(folder / "fleet.json"))
    many = max(1, WARM_JOBS // len(fleet.devices))
    same = {"BENCH_COMMAND": COMMAND}
    in_process = ["-m", "benchmarks.harness.in_process", str(folder / "engine"), str(folder / "paths.json")]
    found = [
        Entry(Served(folder / "site", paths), many),
        Entry(Peer("iotjobs, in process", [sys.executable, *in_process]), many),
        Entry(Peer("bare asyncssh", [sys.executable, str(PEERS / "bare_asyncssh.py"), saved], same), many),
    ]
    if find_spec("pssh") is None:
        print("parallel-ssh and Ansible are left out: run with `make bench`", file=sys.stderr)
        return found
    python = sys.executable
    ansible = [python, str(PEERS / "ansible_raw.py"), saved]
    return [
        *found,
        Entry(Peer("parallel-ssh", [python, str(PEERS / "parallel_ssh.py"), saved], same), many),
        Entry(Peer("Ansible raw, ControlPersist", ansible, same | {"BENCH_PERSIST": "1"}, is_whole=False), 1),
        Entry(Peer("Ansible raw", ansible, same | {"BENCH_PERSIST": "0"}, is_whole=False), 0),
    ]


async def run_once(entry: Entry, devices: int) -> None:
    """One run: a fresh process, one cold fan-out, then warm ones."""
    contender = entry.contender
    try:
        await contender.start()
        before = machine_cpu_s()
        first = await contender.fan_out()
        entry.cold_all_ms.append(1000 * (machine_cpu_s() - before) / devices)
        entry.cold.append(devices / first.seconds)
        entry.cold_cpu_ms.append(1000 * first.cpu_s / devices)
        before = machine_cpu_s()
        took = [await contender.fan_out() for _ in range(entry.warm_fan_outs)]
        if took:
            jobs = devices * len(took)
            entry.warm_all_ms.append(1000 * (machine_cpu_s() - before) / jobs)
            entry.warm.append(jobs / sum(one.seconds for one in took))
            entry.warm_cpu_ms.append(1000 * sum(one.cpu_s for one in took) / jobs)
        entry.rss_mb.append(contender.rss_mb())
    finally:
        await contender.stop()


async def measure(devices: int, folder: Path) -> dict[str, Entry]:
    """All contenders, by turns."""
    with fleet_of(devices, folder / "fleet") as fleet:
        entries = await entries_of(folder, fleet)
        for number in range(RUNS):
            for entry in entries[number:] + entries[:number]:
                await run_once(entry, devices)
                name = entry.contender.name
                print(f"  {devices} devices, run {number + 1}: {name}", file=sys.stderr, flush=True)
    return {entry.contender.name: entry for entry in entries}


def report(devices: int, measured: dict[str, Entry]) -> dict[str, Any]:
    """Print the tables of one size; its figures."""
    rows = [
        [
            name,
            median(one.cold),
            median(one.warm) or None,
            median(one.cold_cpu_ms),
            median(one.warm_cpu_ms) or None,
            median(one.cold_all_ms),
            median(one.warm_all_ms) or None,
            median(one.rss_mb) or None,
        ]
        for name, one in measured.items()
    ]
    print(f"{devices} devices, medians of {RUNS} runs\n")
    print("CPU ms a job, of the contender and of the whole machine, devices included\n")
    table(
        ["", "cold jobs/s", "warm jobs/s", "CPU cold", "CPU warm", "machine cold", "machine warm", "RSS MB"],
        rows,
    )
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
