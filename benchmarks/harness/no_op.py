"""The engine around attempts that succeed at once: what is measured is the queue and the record.

`python -m benchmarks.harness.no_op URL` is one more worker on a database, until its stdin closes.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

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
from iotjobs.store import jobs, queue, reads
from iotjobs.store.migrations.migrate import migrate
from iotjobs.store.secrets import Secrets
from iotjobs.store.session import Store, open_store
from iotjobs.store.writer import Transaction

AT_ONCE = 200
PLAN = Plan(OperationType.SCRIPT, 60.0, script="true")


class _Starts:
    """Stands for the executor; notes when each attempt began."""

    def __init__(self, settler: Settler) -> None:
        self._settler = settler
        self.at: dict[str, float] = {}

    def ready_to_send(self, _job: Job) -> bool:
        return True

    async def run(self, begun: Begun) -> None:
        self.at[begun.job.id] = time.perf_counter()
        await self._settler.end_attempt(begun.job, begun.plan, Ending(Outcome.SUCCEEDED, exit_code=0))


class NoOpSite:
    """One node's store, dispatcher and worker."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.store: Store = open_store(url)
        self.dispatcher = _dispatcher(self.store, url)
        self.limits = Limits()
        self.settler = Settler(self.store, self.dispatcher, Feed(self.store), self.limits)
        self.starts = _Starts(self.settler)
        self.worker = Worker(
            self.store,
            Secrets(b"k" * 32),
            self.dispatcher,
            self.starts,  # type: ignore[arg-type]
            limits=self.limits,
            presence=Alone(clock.new_id()),
            at_once=AT_ONCE,
        )

    async def start(self, *, takes: bool = True) -> None:
        """Migrate, open, and begin to take unless told otherwise."""
        await asyncio.to_thread(migrate, self.url)
        await self.store.start()
        await self.dispatcher.start()
        if takes:
            await self.worker.start()

    async def stop(self) -> None:
        """End everything."""
        await self.worker.drain(5.0)
        await self.dispatcher.stop()
        await self.store.stop()

    async def submit(self) -> str:
        """Insert a job and offer it, as intake does; its id, once it is on disk."""
        row = self._row()

        def item(tx: Transaction) -> None:
            seq = jobs.insert_job(tx, row, PLAN, None)
            ticket = queue.ticket_of(tx.conn, jobs.inserted(row, seq))
            queue.offer_if_free(tx, None, ticket, row["timestamp"], self.dispatcher)

        await self.store.write(item)
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

    async def left(self) -> int:
        """Jobs that have not ended."""
        counts = await self.store.read(reads.counts)
        return int(counts.get("PENDING", 0) + counts.get("RUNNING", 0))

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


async def _work(url: str) -> None:
    site = NoOpSite(url)
    await site.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await site.stop()


if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1]))
