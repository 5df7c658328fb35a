"""Moves jobs by the clock: starts that have come, lives that have ended, answers that did not come.

And the sweep: whatever is ready and has no live ticket gets one, so that a lost ticket costs
seconds and not the job; and what stands as running and is not run by our worker gets its end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from iotjobs import clock
from iotjobs.domain.errors import AnswerTimeout, LeaseLost, StorageFull, StoreUnavailable, TransitionRefused
from iotjobs.domain.jobs import Ending, Job, JobType
from iotjobs.domain.operations import Plan
from iotjobs.domain.states import Heard
from iotjobs.domain.statuses import Outcome
from iotjobs.engine.dispatch import Dispatcher
from iotjobs.engine.leases import Always, Standing
from iotjobs.engine.leftovers import Leftovers
from iotjobs.engine.rescue import Strays, UnderWay
from iotjobs.engine.services import LoopService
from iotjobs.engine.settle import Settler
from iotjobs.engine.timekeeping import Timekeeper
from iotjobs.store import jobs, queue
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
SWEEP_EVERY_S = 5.0
SWEEP_TICKETS = 10_000
_NO_ANSWER = "the device did not answer in time"
_STILL_RUNS = "jobs still run; the site stays drained, and this is waited for no longer"


_ALWAYS = Always()


class Deadlines(LoopService):
    """The clock's part in the life of jobs; also counts what only the sweep saved.

    Of several nodes the leader does it; each looks for strays of its own.

    Args:
        heard: how far it is known, at a moment, what devices have said: an answer that may wait at the
            broker is not late.
    """

    name = "deadlines"

    def __init__(
        self,
        store: Store,
        dispatcher: Dispatcher,
        settler: Settler,
        worker: UnderWay,
        leftovers: Leftovers,
        *,
        standing: Standing = _ALWAYS,
        heard: Callable[[int], Heard] = Heard.all_until,
    ) -> None:
        super().__init__()
        self._store, self._dispatcher, self._settler = store, dispatcher, settler
        self._worker, self._leftovers, self._standing, self._heard = worker, leftovers, standing, heard
        self.timekeeper = Timekeeper(store, standing)
        self.strays = Strays(store, settler, leftovers, worker)
        self.swept = 0

    async def _loop(self) -> None:
        next_sweep = clock.monotonic() + SWEEP_EVERY_S
        while True:
            await self.timekeeper.look()
            if self._standing.leads:
                await self.look()
            if clock.monotonic() >= next_sweep:
                if self._standing.leads:
                    self.swept += await self.sweep()
                await self.strays.look()
                next_sweep = clock.monotonic() + SWEEP_EVERY_S
            await clock.sleep(LOOK_EVERY_S)

    async def sweep(self) -> int:
        """Offer what is ready; how many had no ticket."""
        now = clock.now_ms()
        return await self._dispatcher.offer_again(
            await self._store.read(lambda conn: queue.ready(conn, now, SWEEP_TICKETS))
        )

    async def look(self) -> None:
        """Move every job whose moment has come."""
        moves: tuple[tuple[str, Callable[[Transaction, Job, int], None]], ...] = (
            ("start_at", self._begin),
            ("expires_at", self._expire),
            ("deadline_at", self._unanswered),
        )
        for moment, move in moves:
            now = clock.now_ms()
            by = self._heard(now).until if moment == "deadline_at" else now
            for job in await self._due(moment, by):
                await self._move(job, move)

    async def _due(self, moment: str, now: int) -> list[Job]:
        return await self._store.look(lambda conn: queue.due(conn, moment, now))

    async def _move(self, job: Job, move: Callable[[Transaction, Job, int], None]) -> None:
        def item(tx: Transaction) -> None:
            self._standing.check(tx)
            move(tx, job, clock.now_ms())

        try:
            await self._store.write(item)
        except (TransitionRefused, LeaseLost) as error:
            log.debug("the clock came second", extra={"job_id": job.id, "why": str(error)})
        except (StoreUnavailable, StorageFull):
            raise
        except Exception:  # of one job, and the others' moments come too
            log.exception("a job could not be moved by the clock", extra={"job_id": job.id})

    def _begin(self, tx: Transaction, job: Job, now: int) -> None:
        queue.begin_waiting(tx, job, now, self._dispatcher)

    def _expire(self, tx: Transaction, job: Job, now: int) -> None:
        waited = f"still {job.status} when its time to live ended"
        reason = f" (waiting: {job.pending_reason})" if job.pending_reason else ""
        prover = self._leftovers.look_after_commit(tx, job, self._worker.worker_id)
        if prover is not None:
            reason += f"; attempt {job.attempt} may still run on the device, see the log"
        ending = Ending(Outcome.EXPIRED, error_code="expired", error_message=waited + reason)
        self._settler.finish(tx, job, ending, now, worker_id=prover)

    def _unanswered(self, tx: Transaction, job: Job, now: int) -> None:
        ending = Ending(Outcome.TIMED_OUT, error_code=AnswerTimeout.code, error_message=_NO_ANSWER)
        if job.type is JobType.STOP_APP:
            self._settler.finish(tx, job, replace(ending, error_message=_STILL_RUNS), now)
        else:
            plan = Plan.from_json(jobs.plan_of(tx.conn, job.id)[0])
            self._settler.conclude(tx, job, plan, ending, now)
