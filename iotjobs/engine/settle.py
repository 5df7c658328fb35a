"""Ends attempts: another try, or the job's end, with everything that follows in one transaction.

What follows: the last output, the event, the erased secrets, the next job of the lane, the
wake-up of who waits.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from iotjobs import clock
from iotjobs.domain import control, retries
from iotjobs.domain.errors import LeaseLost, StorageFull, StoreUnavailable, TransitionRefused
from iotjobs.domain.jobs import Delivery, Ending, Job
from iotjobs.domain.operations import Plan
from iotjobs.domain.statuses import ACTIVE, Outcome, Status
from iotjobs.engine.feed import Feed
from iotjobs.engine.limits import Limits
from iotjobs.engine.sending import Begun
from iotjobs.store import attempts, jobs, output, queue
from iotjobs.store.output import Chunk
from iotjobs.store.queue import Offers
from iotjobs.store.session import Store
from iotjobs.store.writer import Item, Transaction, complete

log = logging.getLogger(__name__)

STORE_RETRY_S = 1.0
TAKEN = Ending(Outcome.SUCCEEDED)


@dataclass(frozen=True, slots=True)
class OutputEnd:
    """The last of an attempt's output, for the settling transaction; `total_bytes` is of all attempts."""

    chunks: tuple[Chunk, ...] = ()
    total_bytes: int = 0
    truncated: bool = False


def delivery_of(plan: Plan) -> Delivery:
    """How far a message came that the broker took."""
    return Delivery.ACKNOWLEDGED if plan.qos else Delivery.SENT


def _keep_output(tx: Transaction, job: Job, end: OutputEnd | None) -> dict[str, Any]:
    """Append the last output; the columns of the job that tell about all of it."""
    if end is None:
        return {}
    output.append(tx, job.id, job.attempt, end.chunks)
    return {"output_bytes": end.total_bytes, "output_truncated": end.truncated}


async def until_taken(
    store: Store, item: Item[None], job_id: str, *, size: int = 0, locks: Sequence[str] | None = None
) -> None:
    """Write what must not be lost: an end that nobody wrote down leaves its job running for ever.

    See `Store.write` for the arguments.

    Raises:
        Whatever the item raises; a store that is away or full is waited for.
    """
    while True:
        try:
            return await store.write(item, size=size, locks=locks, reserved=True)
        except (StoreUnavailable, StorageFull) as error:
            log.warning("the store cannot take this yet", extra={"job_id": job_id, "why": str(error)})
            await clock.sleep(STORE_RETRY_S)


class Settler:
    """Writes the ends of attempts. Safe for concurrent use; a second end is refused by the store."""

    def __init__(self, store: Store, offers: Offers, feed: Feed, limits: Limits) -> None:
        self._store, self._offers, self._feed, self._limits = store, offers, feed, limits

    async def end_attempt(
        self, job: Job, plan: Plan, ending: Ending, *, end: OutputEnd | None = None, **facts: Any
    ) -> None:
        """End the attempt that this process ran, by another try or for good.

        An attempt that another worker took over meanwhile writes nothing but a log entry.
        """

        def item(tx: Transaction) -> None:
            facts.update(_keep_output(tx, job, end))
            self.conclude(tx, job, plan, ending, clock.now_ms(), **facts)

        await self._write(job, ending, item, end, facts)

    def conclude(self, tx: Transaction, job: Job, plan: Plan, ending: Ending, now: int, **facts: Any) -> None:
        """End an attempt inside a transaction: by another try where its operation says so, or for good.

        A job that waits for its next try already goes on waiting for it.

        Raises:
            TransitionRefused, LeaseLost: somebody else was first.
        """
        again = retries.after_ending(
            plan.retry, ending, attempt=job.attempt, idempotent=plan.idempotent, jitter=random.random()
        )
        if again is None or job.status not in (Status.RUNNING, Status.PENDING):
            self.finish(tx, job, ending, now, **facts)
        elif job.status is Status.RUNNING:
            jobs.log(tx, job.id, now, "INFO", f"attempt {job.attempt}: {ending.error_message}; tried again")
            if again.after_s is None:
                self.again_now(tx, job, ending, now, **facts)
            else:
                jobs.try_again(tx, job, ending, now, now + int(again.after_s * 1000), **facts)
                queue.offer_next(tx, job.lane, now, self._offers)
                self._limits.left(tx, job, self._offers)

    async def end_messages(self, messages: Sequence[Begun]) -> None:
        """End jobs whose messages the broker took, all of them or none.

        Raises:
            EngineError, TransitionRefused, LeaseLost: one of them is not as it was read.
        """

        def item(tx: Transaction) -> None:
            part, now = tx if len(messages) == 1 else tx.part(), clock.now_ms()
            for begun in messages:
                self.finish(part, begun.job, TAKEN, now, delivery=delivery_of(begun.plan))
            if part is not tx:
                complete(tx.conn, [part])

        locks = {name for begun in messages for name in self._limits.locks_of(begun.job)}
        await until_taken(self._store, item, messages[0].job.id, locks=sorted(locks))

    async def hand_over(self, job: Job, plan: Plan, ending: Ending, end: OutputEnd) -> None:
        """End an attempt that our own stop cut short: the next process repeats what may be repeated."""
        decision = retries.redelivery(sent=job.sent_at is not None, idempotent=plan.idempotent)

        def item(tx: Transaction) -> None:
            facts = _keep_output(tx, job, end)
            if decision is retries.Redelivery.NEXT_ATTEMPT:
                self.again_now(tx, job, ending, clock.now_ms(), **facts)
            else:
                self.finish(tx, job, ending, clock.now_ms(), **facts)

        await self._write(job, ending, item, end, {})

    async def _write(
        self, job: Job, ending: Ending, item: Item[None], end: OutputEnd | None, facts: dict[str, Any]
    ) -> None:
        """Write an end; of a job that a person wants ended meanwhile, what that makes of it."""
        tried = [ending]

        def asked(tx: Transaction) -> None:
            row = jobs.get(tx.conn, job.id)
            if row.status not in control.ASKED:  # it has been written, and the answer to that was lost
                raise TransitionRefused(job.id, row.status, Status.FINISHED)
            job_now = replace(job, status=row.status, cancel=row.cancel)
            facts.update(_keep_output(tx, job, end))
            tried.append(self.end_asked(tx, job_now, ending, clock.now_ms(), **facts))

        size = sum(len(chunk.data) for chunk in end.chunks) if end is not None else 0
        while True:
            try:
                locks = self._limits.locks_of(job)
                await until_taken(self._store, item, job.id, size=size, locks=locks)
            except TransitionRefused as error:
                if error.actual in control.ASKED:
                    item = asked  # also when a stop became a cancel between the look and the write
                    continue
                await self.refused(job, tried, error)
            except LeaseLost as error:
                await self.refused(job, tried, error)
            return

    def end_asked(self, tx: Transaction, job: Job, ending: Ending, now: int, **facts: Any) -> Ending:
        """End, inside a transaction, an attempt whose job is CANCELING or STOPPING; how it ended.

        Args:
            tx: the transaction.
            job: the row, with what is known of its device (`sent_at`, `nonce`).
            ending: what its worker or its rescuer saw.
            now: milliseconds.
            facts: further columns.

        Raises:
            TransitionRefused, LeaseLost: somebody else was first.
        """
        gone = control.nothing_left(job)
        final = control.ending_when_asked(job.status, ending, gone=gone)
        if final is None:
            self.set_aside(tx, job, now, **facts)
        else:
            if final.outcome is Outcome.CANCELED:
                facts["cancel"] = {**(job.cancel or {}), "confirmed": gone}
            self.finish(tx, job, final, now, **facts)
        if final is not ending and ending.error_message is not None:
            asked = "cancel" if job.status is Status.CANCELING else "stop"
            jobs.log(tx, job.id, now, "INFO", f"attempt {job.attempt}, {asked}: {ending.error_message}")
        return final or jobs.STOPPED

    def finish(self, tx: Transaction, job: Job, ending: Ending, now: int, **facts: Any) -> None:
        """End a job for good inside a transaction.

        Raises:
            TransitionRefused, LeaseLost: somebody else was first.
        """
        follows = self._limits.of(job.queue) is not None or not self._is_last(tx, job, now)
        jobs.settle(tx, job, ending, now, last=not follows, **facts)
        if follows:
            queue.offer_next(tx, job.lane, now, self._offers)
            self._limits.left(tx, job, self._offers)
        self._feed.ended(tx, job.id)

    @staticmethod
    def _is_last(tx: Transaction, job: Job, now: int) -> bool:
        """Whether nobody waits behind an attempt under way: its lane is ours until we commit."""
        if job.lane is not None:
            tx.lock(job.lane)
        return job.status in ACTIVE and queue.nobody_waits(tx.conn, job.lane, now)

    def set_aside(self, tx: Transaction, job: Job, now: int, **facts: Any) -> None:
        """Stop a job inside a transaction: it waits for its resume, and what it kept waiting goes on.

        Raises:
            TransitionRefused, LeaseLost: the job is not as it was read.
        """
        jobs.set_aside(tx, job, now, **facts)
        queue.offer_next(tx, job.lane, now, self._offers)
        self._limits.left(tx, job, self._offers)

    def parked(self, tx: Transaction, job: Job) -> None:
        """An attempt waits for its device from now on and holds no worker: inside a transaction."""
        self._limits.left(tx, job, self._offers)

    def again_now(self, tx: Transaction, job: Job, ending: Ending, now: int, **facts: Any) -> None:
        """Give a job its next attempt at once, inside a transaction."""
        jobs.try_again(tx, job, ending, now, now, **facts)
        queue.offer_again(tx, job, now, self._offers)
        self._limits.left(tx, job, self._offers)

    async def refused(self, job: Job, tried: Sequence[Ending], error: Exception) -> None:
        """A late write: what it would have said is kept as a log entry, unless it has been said.

        Args:
            job: whose attempt ended.
            tried: what may be on disk, since the answer to its COMMIT was lost; first what was seen.
            error: why it was refused.
        """
        outcome = tried[0].outcome
        said = f"attempt {job.attempt} ended {outcome} after it was no longer the newest: {error}"
        told = {"job_id": job.id, "attempt": job.attempt, "why": str(error)}

        def item(tx: Transaction) -> None:
            if attempts.ended_as(tx.conn, job, tried):
                return
            jobs.log(tx, job.id, clock.now_ms(), "INFO", said)
            tx.after_commit(lambda: log.warning("a late end was refused", extra=told))

        await until_taken(self._store, item, job.id)
