"""Bare PgQueuer and bare procrastinate: they carry the same work, and record nothing of it.

`python -m benchmarks.harness.queue_peers NAME URL` is a worker process of one of them, see `no_op.work_when_told`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from benchmarks.harness.no_op import work_when_told
from iotjobs.serving import loop_factory

AT_ONCE = 200


class BarePgQueuer:
    """PgQueuer 1.6 with the settings of ours, its own enqueue, and a handler that does nothing."""

    def __init__(self, url: str, queries: Any) -> None:
        self.starts: dict[str, float] = {}
        self.worker_command = ["-m", "benchmarks.harness.queue_peers", "pgqueuer", url]
        self._queries = queries
        self._manager: Any = None
        self._running: asyncio.Task[None] | None = None
        self._count = 0

    async def enqueue(self) -> str:
        """One piece of work in a transaction of its own; its name."""
        self._count += 1
        name = str(self._count)
        await self._queries.enqueue("work", name.encode())
        return name

    async def fill(self, count: int) -> None:
        """A backlog, a thousand in a statement."""
        for first in range(0, count, 1000):
            number = min(1000, count - first)
            await self._queries.enqueue(["work"] * number, [b"x"] * number, [0] * number)

    async def take(self) -> None:
        """Begin to take, in this process."""
        from pgqueuer.core.qm import QueueManager

        self._manager = QueueManager(self._queries)

        @self._manager.entrypoint("work")
        async def work(job: Any) -> None:
            self.starts[job.payload.decode()] = time.perf_counter()

        self._running = asyncio.create_task(
            self._manager.run(
                batch_size=100, max_concurrent_tasks=AT_ONCE, dequeue_timeout=timedelta(seconds=2)
            )
        )

    async def left(self) -> int:
        """What has not ended."""
        return sum(row.count for row in await self._queries.queue_size())

    async def any_left(self) -> bool:
        """The same, and cheaper."""
        return bool(await self._queries.driver.fetch("SELECT 1 FROM pgqueuer LIMIT 1"))

    async def stop(self) -> None:
        """Take no more."""
        if self._running is not None:
            self._manager.shutdown.set()
            await self._running


@asynccontextmanager
async def bare_pgqueuer(url: str, *, takes: bool, install: bool = True) -> AsyncIterator[BarePgQueuer]:
    """One that is up."""
    import asyncpg
    from pgqueuer.adapters.drivers.asyncpg import AsyncpgPoolDriver
    from pgqueuer.queries import Queries

    pool = await asyncpg.create_pool(url, min_size=4, max_size=20)
    queries = Queries(AsyncpgPoolDriver(pool))
    if install:
        await queries.install()
    peer = BarePgQueuer(url, queries)
    if takes:
        await peer.take()
    try:
        yield peer
    finally:
        await peer.stop()
        pool.terminate()


class Procrastinate:
    """procrastinate 3, woken by NOTIFY; it deletes what succeeded, as PgQueuer does."""

    def __init__(self, url: str, app: Any) -> None:
        self.starts: dict[str, float] = {}
        self.worker_command = ["-m", "benchmarks.harness.queue_peers", "procrastinate", url]
        self._app = app
        self._running: asyncio.Task[None] | None = None
        self._count = 0

        @app.task(name="work")
        async def work(name: str) -> None:
            self.starts[name] = time.perf_counter()

        self._task = work

    async def enqueue(self) -> str:
        """One piece of work in a transaction of its own; its name."""
        self._count += 1
        name = str(self._count)
        await self._task.defer_async(name=name)
        return name

    async def fill(self, count: int) -> None:
        """A backlog, a thousand in a statement."""
        for first in range(0, count, 1000):
            await self._task.batch_defer_async(*[{"name": "x"}] * min(1000, count - first))

    async def take(self) -> None:
        """Begin to take, in this process."""
        self._running = asyncio.create_task(
            self._app.run_worker_async(
                concurrency=50, install_signal_handlers=False, delete_jobs="successful"
            )
        )

    async def left(self) -> int:
        """What has not ended."""
        query = "SELECT count(*) AS n FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
        return int((await self._app.connector.execute_query_one_async(query))["n"])

    async def any_left(self) -> bool:
        """The same, and cheaper."""
        query = "SELECT 1 AS n FROM procrastinate_jobs WHERE status IN ('todo', 'doing') LIMIT 1"
        return bool(await self._app.connector.execute_query_all_async(query))

    async def stop(self) -> None:
        """Take no more."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)


@asynccontextmanager
async def procrastinate(url: str, *, takes: bool, install: bool = True) -> AsyncIterator[Procrastinate]:
    """One that is up."""
    import procrastinate as library

    app = library.App(connector=library.PsycopgConnector(conninfo=url, max_size=20))
    async with app.open_async():
        if install:
            await app.schema_manager.apply_schema_async()
        peer = Procrastinate(url, app)
        if takes:
            await peer.take()
        try:
            yield peer
        finally:
            await peer.stop()


PEERS: dict[str, Callable[..., Any]] = {"pgqueuer": bare_pgqueuer, "procrastinate": procrastinate}


async def _work(name: str, url: str) -> None:
    async with PEERS[name](url, takes=False, install=False) as peer:
        await work_when_told(peer)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_work(sys.argv[1], sys.argv[2]))
