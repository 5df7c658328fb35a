"""The engine around attempts that succeed at once: what is measured is the queue and the record.

`python -m benchmarks.harness.no_op URL [SECONDS]` is one more worker on a database; its attempts wait for
so long, as for a device, and do nothing. See `work_when_told`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import func, select

from iotjobs import clock
from iotjobs.domain.jobs import Ending, Job
from iotjobs.domain.operations import OperationType, Plan
from iotjobs.domain.statuses import Outcome
from iotjobs.engine.dispatch import Dispatcher, InProcessDispatcher
from iotjobs.engine.execution import Begun
from iotjobs.engine.feed import Feed
from iotjobs.engine.limits import Limits
from iotjobs.engine.presence import Alone
from iotjobs.engine.settle import Settler
from iotjobs.engine.worker import Worker
from iotjobs.serving import loop_factory
from iotjobs.store import jobs, queue, tables
from iotjobs.store.drawn import draw
from iotjobs.store.migrations.migrate import migrate
from iotjobs.store.secrets import Secrets
from iotjobs.store.session import Store, open_store
from iotjobs.store.writer import Transaction

AT_ONCE = 200
_ANY_LEFT = select(tables.jobs.c.seq).where(tables.jobs.c.status.in_(["PENDING", "RUNNING"])).limit(1)
PLAN = Plan(OperationType.SCRIPT, 60.0, script="true")


class _Starts:
    """Stands for the executor; notes when each attempt began."""

    def __init__(self, settler: Settler, wait_s: float) -> None:
        self._settler, self._wait_s = settler, wait_s
        self.at: dict[str, float] = {}

    def open_way(self, _job: Job) -> str | None:
        """It goes nowhere."""
        return None

    def ready_to_send(self, _job: Job) -> bool:
        return True

    def forget(self, _job_id: str) -> None:
        """Nothing is kept for a job."""

    async def run(self, begun: Begun) -> None:
        self.at[begun.job.id] = time.perf_counter()
        if self._wait_s:
            await asyncio.sleep(self._wait_s)
        await self._settler.end_attempt(begun.job, begun.plan, Ending(Outcome.SUCCEEDED, exit_code=0))


class NoOpSite:
    """One node's store, dispatcher and worker. `starts` has the moment at which each job's attempt began.

    On PostgreSQL, `worker_command` starts another process that takes from the same database.
    """

    def __init__(self, url: str, *, wait_s: float = 0.0) -> None:
        self.url = url
        self.store: Store = open_store(url)
        self.dispatcher = _dispatcher(self.store, url)
        self.limits = Limits()
        self.settler = Settler(self.store, self.dispatcher, Feed(self.store), self.limits)
        executor = _Starts(self.settler, wait_s)
        self.starts = executor.at
        self.worker_command = ["-m", "benchmarks.harness.no_op", url]
        self.worker = Worker(
            self.store,
            Secrets(b"k" * 32),
            self.dispatcher,
            executor,  # type: ignore[arg-type]
            limits=self.limits,
            presence=Alone(clock.new_id()),
            at_once=AT_ONCE,
        )

    async def start(self, *, takes: bool = True) -> None:
        """Migrate, open, and begin to take unless told otherwise."""
        await asyncio.to_thread(migrate, self.url)
        await self.store.start()
        if takes:
            await self.take()

    async def stop(self) -> None:
        """End everything."""
        await self.worker.drain(5.0)
        await self.dispatcher.stop()
        await self.store.stop()

    async def enqueue(self) -> str:
        """Insert a job and offer it, as intake does; its id, once it is on disk."""
        row = self._row()

        def item(tx: Transaction) -> None:
            seq = jobs.insert_job(tx, row, PLAN, None)
            ticket = queue.ticket_of(tx.conn, jobs.inserted(row, seq))
            queue.offer_if_free(tx, None, ticket, row["timestamp"], self.dispatcher)

        await self.store.write(item, locks=(), ahead=(draw, (row["id"], row["operation_id"])))
        return str(row["id"])

    async def fill(self, count: int) -> None:
        """Insert a backlog, a thousand in a transaction, offered with it."""

        def item(tx: Transaction) -> None:
            for _ in range(min(1000, count)):
                row = self._row()
                seq = jobs.insert_job(tx, row, PLAN, None)
                ticket = queue.ticket_of(tx.conn, jobs.inserted(row, seq))
                self.dispatcher.offer(tx, ticket)

        for _ in range(max(1, count // 1000)):
            await self.store.write(item)

    async def take(self) -> None:
        """Begin to take, in this process."""
        await self.dispatcher.start()
        await self.worker.start()

    async def left(self) -> int:
        """Jobs that have not ended."""
        status = tables.jobs.c.status
        query = select(func.count()).where(status.in_(("PENDING", "RUNNING")))
        return await self.store.read(lambda conn: int(conn.execute(query).scalar_one()))

    async def any_left(self) -> bool:
        """The same, and cheaper."""
        return await self.store.read(lambda conn: conn.execute(_ANY_LEFT).first() is not None)

    @staticmethod
    def _row() -> dict[str, Any]:
        return {
            "id": clock.new_id(),
            "type": "EXECUTE_ACTION",
            "label": "run on device-1",
            "operation_id": "1" * 32,
            "operation_name": "run",
            "operation_type": "script",
            "operation_version": 1,
            "transport": "ssh",
            "owner_id": "2" * 32,
            "owner_type": 1,
            "owner_name": "device-1",
            "target_id": "2" * 32,
            "cause": "user",
            "timestamp": clock.now_ms(),
            "data": {"args": {}, "entityName": "device-1", "actionName": "run"},
        }


def _dispatcher(store: Store, url: str) -> Dispatcher:
    if url.startswith("sqlite"):
        return InProcessDispatcher()
    from iotjobs.engine.dispatch_postgres import PgQueuerDispatcher

    return PgQueuerDispatcher(store, url, at_once=AT_ONCE)


@asynccontextmanager
async def no_op_site(url: str, *, takes: bool, wait_s: float = 0.0) -> AsyncIterator[NoOpSite]:
    """One that is up."""
    site = NoOpSite(url, wait_s=wait_s)
    await site.start(takes=takes)
    try:
        yield site
    finally:
        await site.stop()


async def work_when_told(site: Any) -> None:
    """Say that it is ready, take from the first line on stdin on, until stdin closes."""
    loop = asyncio.get_running_loop()
    await site.left()  # connections are open
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if await loop.run_in_executor(None, sys.stdin.readline):
        await site.take()
        await loop.run_in_executor(None, sys.stdin.read)


async def _work(url: str, wait_s: float) -> None:
    async with no_op_site(url, takes=False, wait_s=wait_s) as site:
        await work_when_told(site)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_work(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 0.0))
