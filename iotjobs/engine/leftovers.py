"""Ends on devices what no worker of ours looks after any more, and writes down what could be proven.

Two kinds: an attempt under way that nobody runs any more and that may still be on its device, and what an
earlier attempt may have left of a job that was canceled, stopped, or expired while it waited for its next.
The first keeps its lane until it is ended. Each takes as long as its device does, which is bounded, so it happens
beside everything else. The rows say what is to be done until it is: what we do not get to, the next start
does, or the leader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from iotjobs import clock
from iotjobs.domain import control
from iotjobs.domain.errors import IotJobsError, LeaseLost, StoreUnavailable, TransitionRefused
from iotjobs.domain.jobs import Ending, Job
from iotjobs.domain.operations import Plan
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.commands import RAW_LEFT, words_of
from iotjobs.engine.leases import Always, Standing
from iotjobs.engine.reach import Reach
from iotjobs.engine.sending import RunMark
from iotjobs.engine.settle import STORE_RETRY_S, Settler, until_taken
from iotjobs.store import attempts, jobs, queue
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from iotjobs.transports.base import Gone

log = logging.getLogger(__name__)

DEVICES_AT_ONCE = 50
MOST = 100_000  # far more than one site cancels at once
WORKER_DIED = Ending(Outcome.LOST, error_code="workerDied", error_message="the process that ran it ended")
FAULT_LEFT = "could not confirm that its processes are gone (an error of ours, see the log)"
_ALWAYS = Always()


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

    async def take_over_all(self, worker_id: str, standing: Standing = _ALWAYS) -> int:
        """What other workers than this were asked to end, and what is to be looked after; how many were under way.

        To be called when those workers are known to be dead. Waits for no device. For attempts that nobody
        has asked to end see `rescue`.

        Args:
            worker_id: this one.
            standing: lets this process, and no other, write what comes of it.
        """
        found = await self._store.read(lambda conn: queue.orphans(conn, worker_id, limit=MOST, asked=True))
        for job in found:
            self.take_over(job, standing=standing)
        for job in await self._store.read(lambda conn: queue.unproven(conn, worker_id, of_the_dead=True)):
            self.look_after(job, standing)
        return len(found)

    def has(self, job_id: str) -> bool:
        """Whether it is at work on a job."""
        return job_id in self._tasks

    def take_over(self, job: Job, lost: Ending = WORKER_DIED, standing: Standing = _ALWAYS) -> None:
        """End an attempt under way on its device, and then its job; again for the same job: nothing.

        Args:
            job: the row, of a worker that is dead or does not run it.
            lost: its end, unless a person has asked for another; its words go before those on the proof.
            standing: see `take_over_all`.
        """
        self._begin(job, lambda: self._take_over(job, lost, standing))

    def look_after(self, job: Job, standing: Standing = _ALWAYS) -> None:
        """End what an earlier attempt of a job may have left on its device, and write it down; again: nothing."""
        self._begin(job, lambda: self._look_after(job, standing))

    def look_after_commit(self, tx: Transaction, job: Job, worker_id: str) -> str | None:
        """Look after a job that nobody runs, with this commit, if anything of it may be left.

        Returns:
            Who is to find out what is left, to be written on its row: this `worker_id`; None: nothing is.
        """
        if control.nothing_left(job) is not False:
            return None
        tx.after_commit(lambda: self.look_after(job))
        return worker_id

    def _begin(self, job: Job, work: Callable[[], Awaitable[None]]) -> None:
        if job.id in self._tasks:
            return
        task = asyncio.create_task(self._work(job, work), name=f"leftovers of {job.id}")
        self._tasks[job.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(job.id, None))

    async def _work(self, job: Job, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await self._worked(job, work)
        except (LeaseLost, TransitionRefused) as error:
            log.info("somebody else ended it", extra={"job_id": job.id, "why": str(error)})
        except IotJobsError as error:
            log.warning("what is left on a device was not ended", extra={"job_id": job.id, "why": str(error)})
        except Exception:
            log.exception("what is left on a device could not be written down", extra={"job_id": job.id})

    async def _worked(self, job: Job, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                async with self._places:
                    return await work()
            except StoreUnavailable as error:  # alone, nobody else comes to look for it
                told = {"job_id": job.id, "why": str(error)}
                log.warning("what is left on a device waits for the store", extra=told)
            await clock.sleep(STORE_RETRY_S)

    async def _take_over(self, job: Job, lost: Ending, standing: Standing) -> None:
        ended, said = await self._end(job)
        lost = replace(lost, error_message=f"{lost.error_message}; {said}")
        unconfirmed = replace(lost, error_code=control.NOT_CONFIRMED)

        def item(tx: Transaction) -> None:
            standing.check(tx)
            row = jobs.locked(tx, job.id)  # a person may have asked for its end, or for another
            if (row.attempt, row.worker_id, row.sent_at) != (job.attempt, job.worker_id, job.sent_at):
                raise LeaseLost(f"job {job.id} went on while its end was prepared: the next look begins anew")
            now = replace(ended, status=row.status, cancel=row.cancel)
            if row.status in control.ASKED:
                self._settler.end_asked(tx, now, unconfirmed, clock.now_ms())
            elif row.status is Status.RUNNING:
                self._settler.finish(tx, now, lost, clock.now_ms())
            else:
                raise TransitionRefused(job.id, row.status, Status.FINISHED)

        await until_taken(self._store, item, job.id)

    async def _look_after(self, job: Job, standing: Standing) -> None:
        ended, said = await self._end(job)

        def item(tx: Transaction) -> None:
            standing.check(tx)
            attempts.prove(tx, job, gone=ended.nonce is None)
            jobs.log(tx, job.id, clock.now_ms(), "INFO", f"an earlier attempt: {said}")

        await until_taken(self._store, item, job.id)

    async def _end(self, job: Job) -> tuple[Job, str]:
        """The job with what is known of its device after a kill, and that in words."""
        if control.nothing_left(job) is not False:
            sent = job.sent_at is not None
            return job, "its message had left, and none can be called back" if sent else "nothing was sent"
        try:
            return await self._killed(job)
        except IotJobsError:
            raise
        except Exception:  # its lane must not wait for the next version
            log.exception("ending what is left on a device failed in us", extra={"job_id": job.id})
            return job, FAULT_LEFT

    async def _killed(self, job: Job) -> tuple[Job, str]:
        stored, _ = await self._store.read(lambda conn: jobs.plan_of(conn, job.id))
        plan = Plan.from_json(stored)
        mark = RunMark.left_by(job, plan)
        if mark is None:
            return job, RAW_LEFT
        proof = await self._reach.kill_first(job, mark, plan.kill_after_s)
        if proof.verdict is Gone.GONE:
            job = replace(job, nonce=None, process_group=None)
        return job, words_of(proof)
