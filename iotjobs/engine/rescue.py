"""Gives attempts that nobody runs any more their definite end.

Attached attempts end with their worker, by the one decision of `domain.retries`: what had sent
nothing, or may be repeated, gets its next attempt; everything else is lost, and says so. Parked
attempts hold no worker: they just go on. An attempt that our own worker holds by its row and does
not run is a fault of ours: `Strays` finds it while we live, and it is lost. What is lost, or what a
person wanted ended, and may still be on its device, is ended there first, beside everything else: see
`leftovers`. It keeps its lane meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Protocol

from iotjobs import clock
from iotjobs.domain import control, retries
from iotjobs.domain.errors import LeaseLost, StorageFull, StoreUnavailable, TransitionRefused
from iotjobs.domain.jobs import Ending, Job
from iotjobs.domain.statuses import ACTIVE, Outcome, Status
from iotjobs.engine.leases import Always, Standing
from iotjobs.engine.leftovers import WORKER_DIED, Leftovers
from iotjobs.engine.presence import Presence
from iotjobs.engine.services import LoopService
from iotjobs.engine.settle import Settler
from iotjobs.engine.silence import Silence
from iotjobs.store import jobs, nodes, queue
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0


class UnderWay(Protocol):
    """A worker, as far as it tells what it runs."""

    @property
    def worker_id(self) -> str:
        """What stands on its attempts."""

    def under_way(self) -> Container[str]:
        """Ids of the jobs whose attempts have begun, or may begin, and have not ended here."""

    def unsent(self) -> Container[str]:
        """Ids of jobs of which nothing has left here, whatever their rows say."""


_ALWAYS = Always()


async def rescue(
    store: Store, settler: Settler, leftovers: Leftovers, worker_id: str, standing: Standing = _ALWAYS
) -> int:
    """End or repeat every attached attempt of a worker that is neither this one nor alive; how many.

    What has to be ended on its device first is given to `leftovers`, waited for by nobody, and not counted. Not
    those that a person wants ended: see `Leftovers.take_over_all`.

    The embedded process calls it before it takes its first ticket, a leader again and again.
    """
    count = after = 0
    while True:
        found = await store.read(lambda conn: queue.orphans(conn, worker_id, after=after))  # noqa: B023
        if not found:
            return count
        for job in found:
            if not leftovers.has(job.id):
                count += await _rescue_one(store, settler, leftovers, job, standing)
            if not standing.leads:
                return count
        after = found[-1].seq


async def _rescue_one(
    store: Store, settler: Settler, leftovers: Leftovers, found: Job, standing: Standing
) -> bool:
    """Whether it has its end or its next attempt; a fault of ours is one that the others must not suffer from."""

    def item(tx: Transaction) -> Job | None:
        standing.check(tx)
        # Read again: its worker may have woken up and noted that it is about to send.
        job = jobs.locked(tx, found.id)
        if (job.attempt, job.worker_id, job.status) != (found.attempt, found.worker_id, found.status):
            raise LeaseLost(f"job {job.id} is not what it was: attempt {job.attempt}, {job.status}")
        done = _give_up(tx, settler, job, (WORKER_DIED, _lost(job.sent_at is not None)))
        return None if done else job

    try:
        left = await store.write(item)
    except (LeaseLost, TransitionRefused) as error:
        log.info("a rescue came second", extra={"job_id": found.id, "why": str(error)})
        return False
    except (StoreUnavailable, StorageFull):
        raise
    except Exception:
        log.exception("an attempt that nobody runs could not be ended", extra={"job_id": found.id})
        return False
    if left is not None:
        leftovers.take_over(left, _lost(left.sent_at is not None), standing)
    return left is None


def _give_up(tx: Transaction, settler: Settler, job: Job, endings: tuple[Ending, Ending]) -> bool:
    """Give the job its next attempt by the first of the endings, or its end by the second.

    False: nothing was done, since something of it may be on its device, which has to be ended before its job.

    Raises:
        TransitionRefused: nothing of it is under way.
    """
    if job.status not in ACTIVE:
        raise TransitionRefused(job.id, job.status, Status.FINISHED)
    again, end = endings
    plan, now = jobs.plan_of(tx.conn, job.id)[0], clock.now_ms()
    decision = retries.redelivery(sent=job.sent_at is not None, idempotent=bool(plan.get("idempotent")))
    if decision is retries.Redelivery.NEXT_ATTEMPT and job.status is Status.RUNNING:
        settler.again_now(tx, job, again, now)
    elif control.nothing_left(job) is False:
        return False
    else:
        settler.finish(tx, job, end, now)
    return True


def _lost(sent: bool) -> Ending:
    what = "after it was sent; it may have run" if sent else "before it was sent"
    return Ending(
        Outcome.LOST, error_code="workerDied", error_message=f"the process that ran it ended {what}"
    )


class DeadWorkers(LoopService):
    """Watches the others; where it leads, declares silent ones dead, and gives what they held its definite end.

    Who does not lead watches too, so that whoever takes over knows already who is silent.
    """

    name = "dead workers"

    def __init__(
        self, store: Store, settler: Settler, leftovers: Leftovers, presence: Presence, standing: Standing
    ) -> None:
        super().__init__()
        self._store, self._settler, self._leftovers = store, settler, leftovers
        self._presence, self._standing = presence, standing
        self._silence: Silence[int] = Silence(nodes.SILENT_MS / 1000)

    async def _loop(self) -> None:
        while True:
            try:
                await self.look()
            except (StoreUnavailable, LeaseLost) as error:
                log.warning("dead workers were not looked for", extra={"why": str(error)})
            await clock.sleep(LOOK_EVERY_S)

    async def look(self) -> int:
        """Look for them once; how many attempts were ended or given their next try."""
        asked = clock.monotonic()
        silent = self._silence.of(await self._store.read(nodes.beats), asked)
        if not self._standing.leads:
            return 0
        if self._presence.may_judge():
            for worker_id in await self._store.write(lambda tx: self._bury(tx, silent)):
                log.error("a worker is silent and was declared dead", extra={"worker_id": worker_id})
        worker_id, standing = self._presence.worker_id, self._standing
        count = await rescue(self._store, self._settler, self._leftovers, worker_id, standing)
        await self._leftovers.take_over_all(worker_id, standing)
        if count:
            log.warning("attempts of dead workers were ended or given their next try", extra={"count": count})
        return count

    def _bury(self, tx: Transaction, silent: Mapping[str, int]) -> list[str]:
        self._standing.check(tx)
        return nodes.bury_silent(tx, silent)


class Strays:
    """Ends attempts that this process holds and does not run.

    A row is taken for one when two looks in a row found it so, in the same attempt: between a look at
    the rows and one at the worker an attempt may begin or end.

    Attributes:
        ended: how many there were; each is a fault of ours.
    """

    def __init__(self, store: Store, settler: Settler, leftovers: Leftovers, worker: UnderWay) -> None:
        self._store, self._settler, self._leftovers, self._worker = store, settler, leftovers, worker
        self._seen: set[tuple[str, int]] = set()
        self.ended = 0

    async def look(self) -> int:
        """End what the last look found as well; how many it were."""
        held = await self._store.read(lambda conn: queue.held(conn, self._worker.worker_id))
        under_way = self._worker.under_way()
        strays = {
            (job_id, attempt)
            for job_id, attempt in held
            if job_id not in under_way and not self._leftovers.has(job_id)
        }
        twice, self._seen = strays & self._seen, strays
        for job_id, attempt in sorted(twice):
            await self._end(job_id, attempt)
        self.ended += len(twice)
        return len(twice)

    async def _end(self, job_id: str, attempt: int) -> None:
        log.error("a job was held and not run", extra={"job_id": job_id, "attempt": attempt})

        def item(tx: Transaction) -> tuple[Job, Ending] | None:
            row = job = jobs.locked(tx, job_id)
            if job.attempt != attempt:
                raise LeaseLost(f"job {job_id} is at attempt {job.attempt}, not {attempt}")
            if job_id in self._worker.unsent():
                job = replace(job, sent_at=None)
            ending = _forgotten(job.sent_at is not None)
            return None if _give_up(tx, self._settler, job, (ending, ending)) else (row, ending)

        try:
            left = await self._store.write(item)
        except (LeaseLost, TransitionRefused) as error:
            log.info("its end came first", extra={"job_id": job_id, "why": str(error)})
            return
        if left is not None:
            self._leftovers.take_over(*left)


def _forgotten(sent: bool) -> Ending:
    what = "after it was sent; it may have run" if sent else "before it was sent"
    return Ending(
        Outcome.LOST,
        error_code="internalError",
        error_message=f"iotjobs lost track of it {what}, see the log",
    )
