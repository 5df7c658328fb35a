"""Enqueue to start, and the draining of a backlog, with every job recorded durably.

Attempts do nothing, so what is measured is the queue: the insert of the job with its plan and
event, its ticket, the begin and the end of its attempt. Beside it, on the same PostgreSQL server in the
same run, bare PgQueuer and procrastinate carry the same number of tickets and record nothing of them.

- Latency: one enqueue (its own transaction) after the other at a fixed rate, by the process that also
  runs the jobs; from the call to the start of the work. Rates that a contender cannot keep are told as such.
- Drain: a backlog is made first, then one or two worker processes take it. The embedded side is one process.
- Drain of work that waits: each attempt waits half a second, as for a device, two hundred at once in a
  process: what a second process brings when the processors are not what is short.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.harness.figures import QUICK, finish, median, percentile, ratio, table
from benchmarks.harness.no_op import no_op_site
from benchmarks.harness.peer import ROOT
from benchmarks.harness.postgres import postgres, postgres_cpu_s
from benchmarks.harness.queue_peers import bare_pgqueuer, procrastinate
from benchmarks.harness.server import cpu_s
from iotjobs.serving import loop_factory

WITHIN_S = 180.0
WAITS_S = 0.5
SQLITE, POSTGRES = "iotjobs, SQLite", "iotjobs, PostgreSQL"
PGQUEUER, PROCRASTINATE = "bare PgQueuer", "procrastinate"


@dataclass(frozen=True, slots=True)
class Size:
    """How much is measured."""

    jobs: int
    rates: tuple[int, ...]
    seconds: float
    runs: int


class Contender(Protocol):
    """Something that carries work from `enqueue` to a start that it notes."""

    starts: dict[str, float]
    worker_command: list[str]

    async def enqueue(self) -> str:
        """Enqueue one piece of work durably; its id."""

    async def fill(self, count: int) -> None:
        """Make a backlog."""

    async def take(self) -> None:
        """Begin to take, in this process."""

    async def left(self) -> int:
        """What has not ended."""

    async def any_left(self) -> bool:
        """Whether there is anything that has not ended."""


# Opens one on a database of its own; it takes from the beginning, or not.
Open = Callable[[bool], AbstractAsyncContextManager[Contender]]


async def latencies(contender: Contender, rate: int, seconds: float) -> list[float] | None:
    """Milliseconds from enqueue to start, one a piece of work; None when the rate could not be kept."""
    asked: dict[str, float] = {}
    began = time.perf_counter()

    async def one() -> None:
        at = time.perf_counter()
        asked[await contender.enqueue()] = at

    pending = set()
    for number in range(int(rate * seconds)):
        due = began + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one())
        pending.add(task)
        task.add_done_callback(pending.discard)
    await asyncio.gather(*pending)
    late = time.perf_counter() - began > 1.2 * seconds
    until = time.perf_counter() + 60
    while not asked.keys() <= contender.starts.keys():
        if time.perf_counter() > until:
            raise RuntimeError(f"{len(asked.keys() - contender.starts.keys())} did not start")
        await asyncio.sleep(0.01)
    return None if late else [1000 * (contender.starts[name] - at) for name, at in asked.items()]


@asynccontextmanager
async def worker_processes(command: list[str], count: int) -> AsyncIterator[list[int]]:
    """So many of them, which have just begun to take; their process ids."""
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, *command, stdin=pipe, stdout=pipe, cwd=ROOT)
        for _ in range(count)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            await process.stdout.readline()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()


@dataclass(slots=True)
class Drained:
    """The runs of one contender: jobs a second, and processor milliseconds a job of its processes and the server."""

    rate: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    server_ms: list[float] = field(default_factory=list)

    async def measure(
        self, contender: Contender, count: int, pids: list[int], server_s: Callable[[], float]
    ) -> None:
        """From now on until nothing of so many is left."""
        began = time.perf_counter()
        cpu, server = sum(map(cpu_s, pids)), server_s()
        async with asyncio.timeout(WITHIN_S):
            while await contender.any_left():  # noqa: ASYNC110 - another process ends them
                await asyncio.sleep(0.05)
        self.rate.append(count / (time.perf_counter() - began))
        self.cpu_ms.append(1000 * (sum(map(cpu_s, pids)) - cpu) / count)
        self.server_ms.append(1000 * (server_s() - server) / count)

    @property
    def row(self) -> list[Any]:
        """For the table."""
        return [median(self.rate), median(self.cpu_ms), median(self.server_ms) or None]


async def drain(
    into: Drained, open_: Open, jobs: int, workers: int, server_s: Callable[[], float], *waits: str
) -> None:
    """A backlog, then so many worker processes; none: this process."""
    async with open_(False) as contender:
        await contender.fill(jobs)
        if not workers:
            await contender.take()
            await into.measure(contender, jobs, [os.getpid()], lambda: 0.0)
            return
        async with worker_processes([*contender.worker_command, *waits], workers) as pids:
            await into.measure(contender, jobs, pids, server_s)


async def measure_latency(make: dict[str, Open], size: Size) -> dict[str, dict[int, list[list[float]]]]:
    """All contenders by turns: name → rate → the runs' samples."""
    found: dict[str, dict[int, list[list[float]]]] = {
        name: {rate: [] for rate in size.rates} for name in make
    }
    for run in range(size.runs):
        for name in turned(list(make), run):
            async with make[name](True) as contender:
                await latencies(contender, 20, 1.0)  # connections, caches
                for rate in size.rates:
                    samples = await latencies(contender, rate, size.seconds)
                    if samples is not None:
                        found[name][rate].append(samples)
            told(run, name)
    return found


async def measure_drain(
    make: dict[str, Open], size: Size, server_s: Callable[[], float]
) -> dict[str, Drained]:
    """All contenders by turns, with one worker process and with two."""
    plans: dict[str, tuple[str, int, int, tuple[str, ...]]] = {SQLITE: (SQLITE, size.jobs, 0, ())}
    for workers, with_ in ((1, "1 worker"), (2, "2 workers")):
        for name in (POSTGRES, PGQUEUER, PROCRASTINATE):
            plans[f"{name}, {with_}"] = (name, size.jobs, workers, ())
        plans[f"{POSTGRES}, work that waits, {with_}"] = (POSTGRES, size.jobs // 2, workers, (str(WAITS_S),))
    found = {key: Drained() for key in plans}
    for run in range(size.runs):
        for key in turned(list(plans), run):
            name, jobs, workers, waits = plans[key]
            await drain(found[key], make[name], jobs, workers, server_s, *waits)
            told(run, key)
    return found


def turned(names: list[str], run: int) -> list[str]:
    """Another one begins each time."""
    at = run % len(names)
    return names[at:] + names[:at]


def told(run: int, what: str) -> None:
    """Say on stderr how far it is."""
    print(f"  run {run + 1}: {what}", file=sys.stderr, flush=True)


def report_latency(found: dict[str, dict[int, list[list[float]]]]) -> dict[str, Any]:
    """Print the table of latencies; the figures."""
    rows, figures = [], {}
    rates = list(next(iter(found.values())))
    for name, by_rate in found.items():
        row: list[Any] = [name]
        for rate, runs in by_rate.items():
            p50 = median([statistics.median(samples) for samples in runs]) if runs else None
            p99 = median([percentile(samples, 0.99) for samples in runs]) if runs else None
            row += [p50, p99]
            figures[f"{name} at {rate}/s"] = {"p50_ms": p50, "p99_ms": p99, "runs": len(runs)}
        rows.append(row)
    table(
        ["enqueue to start"] + [f"{what} at {rate}/s" for rate in rates for what in ("p50 ms", "p99")], rows
    )
    return figures


def report_drain(found: dict[str, Drained], size: Size) -> dict[str, Any]:
    """Print the table of drains and the ratios; the figures."""
    head = [f"a backlog of {size.jobs}", "jobs/s", "CPU ms a job", "PostgreSQL's"]
    table(head, [[key, *drained.row] for key, drained in found.items()])
    rates = {key: median(drained.rate) for key, drained in found.items()}
    ours = rates[f"{POSTGRES}, 1 worker"]
    waits = f"{POSTGRES}, work that waits"
    ratios = {
        "÷ bare PgQueuer, 1 worker": ratio(ours, rates[f"{PGQUEUER}, 1 worker"]),
        "÷ procrastinate, 1 worker": ratio(ours, rates[f"{PROCRASTINATE}, 1 worker"]),
        "2 workers ÷ 1": ratio(rates[f"{POSTGRES}, 2 workers"], ours),
        "2 workers ÷ 1, work that waits": ratio(rates[f"{waits}, 2 workers"], rates[f"{waits}, 1 worker"]),
        "2 workers ÷ 1, bare PgQueuer": ratio(
            rates[f"{PGQUEUER}, 2 workers"], rates[f"{PGQUEUER}, 1 worker"]
        ),
    }
    table(["iotjobs on PostgreSQL", "ratio"], [[name, value] for name, value in ratios.items()])
    runs = {
        key: {"jobs_s": drained.rate, "cpu_ms": drained.cpu_ms, "server_ms": drained.server_ms}
        for key, drained in found.items()
    }
    return {"runs": runs, "ratios": ratios}


def asked_size() -> Size:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description="Enqueue to start, and a backlog drained.")
    parser.add_argument("--jobs", type=int, default=1_000 if QUICK else 10_000, help="in the backlog")
    parser.add_argument("--rates", default="20,500" if QUICK else "20,500,1000", help="enqueues a second")
    parser.add_argument("--seconds", type=float, default=2.0 if QUICK else 5.0, help="at each rate")
    parser.add_argument("--runs", type=int, default=1 if QUICK else 3, help="of which the median counts")
    given = parser.parse_args()
    return Size(given.jobs, tuple(map(int, given.rates.split(","))), given.seconds, given.runs)


async def main(size: Size) -> None:
    numbers = iter(range(1000))
    async with AsyncExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="ij", ignore_cleanup_errors=True))
        )
        os.chmod(folder, 0o755)
        server = stack.enter_context(postgres(folder / "postgres"))

        def database() -> str:
            name = f"bench{next(numbers)}"
            subprocess.run(
                ["psql", "-q", f"{server}/postgres", "-c", f"CREATE DATABASE {name}"], check=True, timeout=30
            )
            return f"{server}/{name}"

        make: dict[str, Open] = {
            SQLITE: lambda takes: no_op_site(f"sqlite:///{folder}/bench{next(numbers)}.db", takes=takes),
            POSTGRES: lambda takes: no_op_site(database(), takes=takes),
            PGQUEUER: lambda takes: bare_pgqueuer(database(), takes=takes),
            PROCRASTINATE: lambda takes: procrastinate(database(), takes=takes),
        }
        latency = report_latency(await measure_latency(make, size))
        server_s = lambda: postgres_cpu_s(folder / "postgres")  # noqa: E731
        drained = report_drain(await measure_drain(make, size, server_s), size)
        finish("queue", {"latency": latency, "drain": drained})


if __name__ == "__main__":
    asked = asked_size()
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(main(asked))
