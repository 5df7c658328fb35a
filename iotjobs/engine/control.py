"""Carries out what people ask of jobs: cancel, stop, resume, another priority, another run.

The row says it first, and the caller is answered then. Who runs the attempt is told after the commit
if it is this process, and gets a hint if it is another; every process also looks each second for what
it holds and is to end, so that a lost word costs a second and not the job.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain import control
from iotjobs.domain.control import Step
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.errors import Conflict, LeaseLost, TransitionRefused
from iotjobs.domain.jobs import Cause, Ending, Job
from iotjobs.domain.rights import Caller, Scope, scope_of
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.intake import Execute, Origin
from iotjobs.engine.leftovers import Leftovers
from iotjobs.engine.services import LoopService
from iotjobs.engine.settle import Settler
from iotjobs.store import attempts, jobs, queue, reads
from iotjobs.store.queue import Tickets
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
# A request meets a change of the same job: it looks again and decides anew.
TRIES = 10


class Running(Protocol):
    """A worker, as far as it can be told to end an attempt."""

    @property
    def worker_id(self) -> str:
        """What stands on its attempts."""

    def end(self, job_id: str, attempt: int) -> None:
        """End this attempt if it is under way here; again changes nothing."""


class Control(LoopService):
    """Requests about jobs, and the look for those that came by another process.

    Every request takes a job's id or seq, and who asks; each raises NotFound where that caller may
    not see the job, and Conflict where the job's status does not admit it.

    Attributes:
        tell: called with the id of another node's worker that is to end something.
    """

    name = "control"

    def __init__(
        self, store: Store, settler: Settler, offers: Tickets, *, leftovers: Leftovers, worker: Running
    ) -> None:
        super().__init__()
        self._store, self._settler, self._offers = store, settler, offers
        self._leftovers, self._worker = leftovers, worker
        self._hint = asyncio.Event()
        self.tell: Callable[[str], object] = lambda _: None

    async def cancel(self, reference: str, caller: Caller, reason: str | None) -> Status:
        """Cancel a job; CANCELED when nothing of it is under way, else CANCELING until that is gone."""

        def item(tx: Transaction, job: Job, now: int) -> Status:
            step = control.cancel(job)
            if step is Step.NONE:
                return job.status
            facts = {"by": caller.user_id, "at": now, "reason": reason, "confirmed": None}
            if step is Step.BY_WORKER:
                jobs.ask(tx, job, Status.CANCELING, now, facts)
                self._tell(tx, job)
                return Status.CANCELING
            self._cancel_at_once(tx, job, facts, now)
            return Status.CANCELED

        return await self._ask(reference, scope_of(caller), item)

    def _cancel_at_once(self, tx: Transaction, job: Job, facts: dict[str, Any], now: int) -> None:
        if job.status is Status.RUNNING:  # parked: the table has no way past CANCELING
            jobs.ask(tx, job, Status.CANCELING, now, facts)
            job = replace(job, status=Status.CANCELING)
        prover = self._leftovers.look_after_commit(tx, job, self._worker.worker_id)
        told = {**facts, "confirmed": None if prover else control.nothing_left(job)}
        self._settler.finish(tx, job, Ending(Outcome.CANCELED), now, cancel=told, worker_id=prover)

    async def stop_job(self, reference: str, caller: Caller) -> Status:
        """Set a job aside: STOPPED when it waits, else STOPPING until its processes are gone."""

        def item(tx: Transaction, job: Job, now: int) -> Status:
            step = control.stop(job)
            if step is Step.NONE:
                return job.status
            jobs.log(tx, job.id, now, "INFO", f"{caller.login} stopped it")
            if step is Step.BY_WORKER:
                jobs.ask(tx, job, Status.STOPPING, now)
                self._tell(tx, job)
                return Status.STOPPING
            prover = self._leftovers.look_after_commit(tx, job, self._worker.worker_id)
            self._settler.set_aside(tx, job, now, worker_id=prover)
            return Status.STOPPED

        return await self._ask(reference, scope_of(caller), item)

    async def resume(self, reference: str, caller: Caller, *, confirmed: bool) -> Status:
        """Let a STOPPED job wait for its next attempt, in which it runs anew."""

        def item(tx: Transaction, job: Job, now: int) -> Status:
            plan = {} if job.operation_id is None else jobs.plan_of(tx.conn, job.id)[0]
            idempotent = bool(plan.get("idempotent"))
            sent = job.sent_at is not None or attempts.any_sent(tx.conn, job.id)
            control.check_resume(job, confirmed=confirmed, idempotent=idempotent, sent=sent)
            jobs.resume(tx, job, now)
            jobs.log(tx, job.id, now, "INFO", f"{caller.login} resumed it")
            if job.start_at is None or job.start_at <= now:
                queue.offer_if_free(tx, job.lane, queue.ticket_of(tx.conn, job), now, self._offers)
            return Status.PENDING

        return await self._ask(reference, scope_of(caller), item)

    async def set_low_priority(self, reference: str, caller: Caller, low: bool) -> Status:
        """Put a job behind everything else, or back: while it waits that changes its place."""

        def item(tx: Transaction, job: Job, now: int) -> Status:
            if job.ended:
                raise Conflict(f"job {job.id} has ended")
            if job.low_priority is not low:
                queue.rank_again(tx, job, low, now, self._offers)
            return job.status

        return await self._ask(reference, scope_of(caller), item)

    async def _ask(
        self, reference: str, scope: Scope, item: Callable[[Transaction, Job, int], Status]
    ) -> Status:
        def decide(tx: Transaction) -> Status:
            return item(tx, reads.job_by_reference(tx.conn, reference, scope), clock.now_ms())

        for _ in range(TRIES):
            try:
                return await self._store.write(decide, reserved=True)
            except (TransitionRefused, LeaseLost) as error:
                log.debug("a request met a change", extra={"job": reference, "why": str(error)})
        raise Conflict("the job is changing all the time: try again")

    def _tell(self, tx: Transaction, job: Job) -> None:
        worker_id = job.worker_id
        if worker_id == self._worker.worker_id:
            tx.after_commit(lambda: self._worker.end(job.id, job.attempt))
        elif worker_id is not None:
            tx.after_commit(lambda: self.tell(worker_id))

    def wake(self, worker_id: str) -> None:
        """Another node has asked a worker to end something."""
        if worker_id == self._worker.worker_id:
            self._hint.set()

    async def _loop(self) -> None:
        while True:
            self._hint.clear()
            await self.look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._hint.wait()

    async def look(self) -> None:
        """Tell our worker what it holds and is to end, and have looked after what we were to prove."""

        def query(conn: Connection) -> tuple[list[Job], list[Job]]:
            worker_id = self._worker.worker_id
            return queue.asked(conn, worker_id), queue.unproven(conn, worker_id, of_the_dead=False)

        asked, unproven = await self._store.look(query)
        for job in unproven:
            self._leftovers.look_after(job)
        for job in asked:
            if job.parked:
                await self._end_parked(job)
            else:
                self._worker.end(job.id, job.attempt)

    async def _end_parked(self, job: Job) -> None:
        """The attempt was parked while the request came: nobody runs it, so nobody ends it either."""
        ending = Ending(Outcome.LOST, error_code=control.NOT_CONFIRMED)

        def item(tx: Transaction) -> None:
            self._settler.end_asked(tx, job, ending, clock.now_ms())

        try:
            await self._store.write(item, reserved=True)
        except (TransitionRefused, LeaseLost) as error:
            log.info("its end came first", extra={"job_id": job.id, "why": str(error)})


def repeat_of(
    job: Job, caller: Caller, given: Mapping[str, Any], *, key: str | None, body_digest: str
) -> Execute:
    """The request for a new job that repeats one: the same arguments and state, the operation as it is now.

    Raises:
        Conflict: it has not ended, or is no run of an operation.
        BadRequest: an erased secret argument is not given again, or something else is.
    """
    args, meta = control.retry_args(job, given), job.process_meta
    origin = None
    if meta is not None:
        origin = Origin(meta=meta, state=meta.get("state"), listener=job.data.get("listenerName"))
    assert job.operation_id is not None, "of an operation, by `retry_args`"
    return Execute(
        owner_type=OwnerType(job.owner_type),
        owner_id=job.owner_id,
        operation_id=job.operation_id,
        caller=caller,
        args=args,
        ask=job.data.get("ask", {}),
        priority=job.priority,
        low_priority=job.low_priority,
        reason=job.data.get("reason"),
        cause=Cause.RETRY,
        origin=origin,
        retry_of=job.id,
        key=key,
        body_digest=body_digest,
    )
