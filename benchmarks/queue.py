"""Enqueue to start, and the draining of a backlog, with every job recorded durably.

Attempts do nothing, so what is measured is the queue: the insert of the job with its plan and
event, its ticket, the begin and the end of its attempt. Beside it, on the same PostgreSQL server in the
same run, bare PgQueuer and procrastinate carry the same number of tickets and record nothing of them.

- Latency: one enqueue (its own transaction) after the other at a fixed rate, by the process that also
  runs the jobs; from the call to the start of the work. Rates that a contender cannot keep are told as such.
- Drain: a backlog is made first, then one or two worker processes take it.
- Beside a stuck lane: the same latency while thousands of jobs wait for one lane that is held.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

from benchmarks.harness.figures import QUICK, finish, median, percentile, table
from benchmarks.harness.no_op import NoOpSite
from benchmarks.harness.peer import ROOT
from benchmarks.harness.postgres import postgres

RATES = (20, 500) if QUICK else (20, 500, 1000)
SECONDS = 2.0 if QUICK else 5.0
BACKLOG = 1_000 if QUICK else 10_000
RUNS = 1 if QUICK else 3
WITHIN_S = 180.0


class Contender(Protocol):
    """Something that carries work from `enqueue` to a start that it notes."""

    starts: dict[str, float]

    async def enqueue(self) -> str:
        """Enqueue one piece of work durably; its id."""


class Ours:
    """iotjobs on one database."""

    def __init__(self, site: NoOpSite) -> None:
        self.site, self.starts = site, site.starts.at

    async def enqueue(self) -> str:
        """See `Contender`."""
        return await self.site.submit()


@asynccontextmanager
async def ours(url: str) -> AsyncIterator[Ours]:
    site = NoOpSite(url)
    await site.start()
    try:
        yield Ours(site)
    finally:
        await site.stop()


class BarePgQueuer:
    """PgQueuer 1.6 with the settings of ours, its own enqueue, and a handler that does nothing."""

    def __init__(self) -> None:
        self.starts: dict[str, float] = {}
        self._queries: Any = None
        self._count = 0

    async def enqueue(self) -> str:
        """See `Contender`."""
        self._count += 1
        name = str(self._count)
        await self._queries.enqueue("work", name.encode())
        return name

    @asynccontextmanager
    async def running(self, dsn: str) -> AsyncIterator[BarePgQueuer]:
        """Install its tables and take what comes."""
        import asyncpg
        from pgqueuer.adapters.drivers.asyncpg import AsyncpgPoolDriver
        from pgqueuer.core.qm import QueueManager
        from pgqueuer.queries import Queries

        pool = await asyncpg.create_pool(dsn, min_size=4, max_size=20)
        driver = AsyncpgPoolDriver(pool)
        self._queries = Queries(driver)
        await self._queries.install()
        manager = QueueManager(self._queries)

        @manager.entrypoint("work")
        async def work(job: Any) -> None:
            self.starts[job.payload.decode()] = time.perf_counter()

        from datetime import timedelta

        running = asyncio.create_task(
            manager.run(batch_size=100, max_concurrent_tasks=400, dequeue_timeout=timedelta(seconds=2))
        )
        try:
            yield self
        finally:
            manager.shutdown.set()
            await running
            await pool.close()


class Procrastinate:
    """procrastinate 3 with one worker, woken by NOTIFY."""

    def __init__(self) -> None:
        self.starts: dict[str, float] = {}
        self._task: Any = None
        self._count = 0

    async def enqueue(self) -> str:
        """See `Contender`."""
        self._count += 1
        name = str(self._count)
        await self._task.defer_async(name=name)
        return name

    @asynccontextmanager
    async def running(self, dsn: str) -> AsyncIterator[Procrastinate]:
        """Install its tables and take what comes."""
        import procrastinate

        app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, max_size=20))
        async with app.open_async():
            await app.schema_manager.apply_schema_async()

            @app.task(name="work")
            async def work(name: str) -> None:
                self.starts[name] = time.perf_counter()

            self._task = work
            running = asyncio.create_task(
                app.run_worker_async(concurrency=50, install_signal_handlers=False, delete_jobs="successful")
            )
            try:
                yield self
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)


async def latencies(contender: Contender, rate: int) -> list[float] | None:
    """Milliseconds from enqueue to start, one a piece of work; None when the rate could not be kept."""
    count = int(rate * SECONDS)
    asked: dict[str, float] = {}
    began = time.perf_counter()

    async def one() -> None:
        at = time.perf_counter()
        asked[await contender.enqueue()] = at

    pending = set()
    for number in range(count):
        due = began + number / rate
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(one())
        pending.add(task)
        task.add_done_callback(pending.discard)
    await asyncio.gather(*pending)
    late = time.perf_counter() - began > 1.2 * SECONDS
    until = time.perf_counter() + 60
    while not asked.keys() <= contender.starts.keys():
        if time.perf_counter() > until:
            raise RuntimeError(f"{len(asked.keys() - contender.starts.keys())} did not start")
        await asyncio.sleep(0.01)
    return None if late else [1000 * (contender.starts[name] - at) for name, at in asked.items()]


async def drain(url: str, workers: int) -> float:
    """Jobs a second out of a backlog, by so many worker processes."""
    site = NoOpSite(url)
    await site.start(takes=False)
    await site.fill(BACKLOG)
    command = ["-m", "benchmarks.harness.no_op", url]
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(sys.executable, *command, stdin=pipe, stdout=pipe, cwd=ROOT)
        for _ in range(workers)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            await process.stdout.readline()  # it takes from now on, so what it took before is left out
        count, began = await site.left(), time.perf_counter()
        await all_ended(site)
        return count / (time.perf_counter() - began)
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
        await site.stop()


async def all_ended(site: NoOpSite) -> None:
    """Wait until no job is left."""
    async with asyncio.timeout(WITHIN_S):
        while await site.left():  # noqa: ASYNC110 - another process ends them
            await asyncio.sleep(0.05)


async def drain_embedded(url: str) -> float:
    """The same in one process, as `iotjobs serve` is."""
    site = NoOpSite(url)
    await site.start(takes=False)
    try:
        await site.fill(BACKLOG)
        began = time.perf_counter()
        await site.worker.start()
        await all_ended(site)
        return BACKLOG / (time.perf_counter() - began)
    finally:
        await site.stop()


async def measure_latency(make: dict[str, Callable[[], Any]]) -> dict[str, dict[int, list[list[float]]]]:
    """All contenders by turns: name → rate → the runs' samples."""
    found: dict[str, dict[int, list[list[float]]]] = {name: {rate: [] for rate in RATES} for name in make}
    names = list(make)
    for run in range(RUNS):
        for name in names[run % len(names) :] + names[: run % len(names)]:
            async with make[name]() as contender:
                await latencies(contender, 20)  # connections, caches
                for rate in RATES:
                    samples = await latencies(contender, rate)
                    if samples is not None:
                        found[name][rate].append(samples)
            print(f"  run {run + 1}: {name}", file=sys.stderr, flush=True)
    return found


def report(found: dict[str, dict[int, list[list[float]]]]) -> dict[str, Any]:
    """Print the table of latencies; the figures."""
    rows, figures = [], {}
    for name, rates in found.items():
        row: list[Any] = [name]
        for rate, runs in rates.items():
            p50 = median([statistics.median(samples) for samples in runs]) if runs else None
            p99 = median([percentile(samples, 0.99) for samples in runs]) if runs else None
            row += [p50, p99]
            figures[f"{name} at {rate}/s"] = {"p50_ms": p50, "p99_ms": p99, "runs": len(runs)}
        rows.append(row)
    head = [""] + [f"{what} at {rate}/s" for rate in RATES for what in ("p50 ms", "p99")]
    table(head, rows)
    return figures


async def main() -> None:
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

        def file() -> str:
            return f"sqlite:///{folder}/bench{next(numbers)}.db"

        found = await measure_latency(
            {
                "iotjobs, SQLite": lambda: ours(file()),
                "iotjobs, PostgreSQL": lambda: ours(database()),
                "bare PgQueuer": lambda: BarePgQueuer().running(database()),
                "procrastinate": lambda: Procrastinate().running(database()),
            }
        )
        figures = report(found)
        drained: dict[str, list[float]] = {}
        for _ in range(RUNS):
            drained.setdefault("SQLite, 1 process", []).append(await drain_embedded(file()))
            for workers in (1, 2):
                key = f"PostgreSQL, {workers} worker{'s' if workers > 1 else ''}"
                drained.setdefault(key, []).append(await drain(database(), workers))
        table([f"a backlog of {BACKLOG}", "jobs/s"], [[key, median(runs)] for key, runs in drained.items()])
        finish("queue", {"latency": figures, "drain": drained})


if __name__ == "__main__":
    asyncio.run(main())
