"""Ends on devices what no worker of ours looks after any more, and writes down what could be proven.

Two kinds: the run of a dead worker whose job was to be canceled or stopped, and what an earlier
attempt may have left of a job that was canceled, or expired, while it waited for its next. Each takes as long as
its device does, so it happens beside everything else. The rows say what is to be done until it is: what we do
not get to, the next start does, or the leader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from iotjobs import clock
from iotjobs.domain import control
from iotjobs.domain.errors import IotJobsError, LeaseLost, TransitionRefused
from iotjobs.domain.jobs import Ending, Job
from iotjobs.domain.operations import Plan
from iotjobs.domain.statuses import Outcome
from iotjobs.engine.commands import RAW_LEFT, words_of
from iotjobs.engine.reach import Reach
from iotjobs.engine.sending import RunMark
from iotjobs.engine.settle import Settler, until_taken
from iotjobs.store import jobs, queue
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from iotjobs.transports.base import Gone

log = logging.getLogger(__name__)

DEVICES_AT_ONCE = 50
MOST = 100_000  # far more than one site cancels at once


class Leftovers:
    """A service whose work is given to it. Safe for concurrent use."""

    def __init__(self, store: Store, settler: Settler, reach: Reach) -> None:
        self._store, self._settler, self._reach = store, settler, reach
        self._places = asyncio.Semaphore(DEVICES_AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Nothing to begin: work comes by the calls below, also before the start."""

    async def stop(self) -> None:
        """Leave what is not done."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def take_over_all(self, worker_id: str) -> int:
        """All that other workers than this left of both kinds; how many attempts were under way.

        To be called when those workers are known to be dead. Waits for no device.
        """
        found = await self._store.read(lambda conn: queue.orphans(conn, worker_id, MOST, asked=True))
        for job in found:
            self.take_over(job)
        for job in await self._store.read(lambda conn: queue.unproven(conn, worker_id, of_the_dead=True)):
            self.look_after(job)
        return len(found)

    def take_over(self, job: Job) -> None:
        """End the CANCELING or STOPPING attempt of a worker that is dead; again for the same job: nothing."""
        self._begin(job, self._take_over)

    def look_after(self, job: Job) -> None:
        """End what an earlier attempt of a job may have left on its device, and confirm its cancel; again: nothing."""
        self._begin(job, self._look_after)

    def _begin(self, job: Job, work: Callable[[Job], Awaitable[None]]) -> None:
        if job.id in self._tasks:
            return
        task = asyncio.create_task(self._work(job, work), name=f"leftovers of {job.id}")
        self._tasks[job.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.id, None))

    async def _work(self, job: Job, work: Callable[[Job], Awaitable[None]]) -> None:
        try:
            async with self._places:
                await work(job)
        except (LeaseLost, TransitionRefused) as error:
            log.info("somebody else ended it", extra={"job_id": job.id, "why": str(error)})
        except IotJobsError as error:
            log.warning("what is left on a device was not ended", extra={"job_id": job.id, "why": str(error)})
        except Exception:
            log.exception("ending what is left on a device failed in us", extra={"job_id": job.id})

    async def _take_over(self, job: Job) -> None:
        job, said = await self._end(job)
        what = f"the process that ran it ended; {said}"
        ending = Ending(Outcome.LOST, error_code=control.NOT_CONFIRMED, error_message=what)

        def item(tx: Transaction) -> None:
            row = jobs.locked(tx, job.id)  # a stop may have become a cancel
            if row.sent_at != job.sent_at:  # its worker woke up and sent: the next look begins anew
                raise LeaseLost(f"job {job.id} was sent while its end was prepared")
            now = replace(job, status=row.status, cancel=row.cancel)
            if row.status not in control.ASKED:
                raise TransitionRefused(job.id, row.status, job.status)
            self._settler.end_asked(tx, now, ending, clock.now_ms())

        await until_taken(self._store, item, job.id)

    async def _look_after(self, job: Job) -> None:
        ended, said = await self._end(job)

        def item(tx: Transaction) -> None:
            jobs.confirm_cancel(tx, job, ended.nonce is None)
            jobs.log(tx, job.id, clock.now_ms(), "INFO", f"an earlier attempt: {said}")

        await until_taken(self._store, item, job.id)

    async def _end(self, job: Job) -> tuple[Job, str]:
        """The job with what is known of its device after a kill, and that in words."""
        if control.nothing_left(job) is not False:
            sent = job.sent_at is not None
            return job, "its message had left, and none can be called back" if sent else "nothing was sent"
        stored, _ = await self._store.read(lambda conn: jobs.plan_of(conn, job.id))
        plan = Plan.from_json(stored)
        mark = RunMark.left_by(job, plan)
        if mark is None:
            return job, RAW_LEFT
        proof = await self._reach.kill_first(job, mark, plan.kill_after_s)
        if proof.verdict is Gone.GONE:
            job = replace(job, nonce=None, process_group=None)
        return job, words_of(proof)
