"""What holds ready work back beside its lane: a drained site, and full queues. Asked within transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from iotjobs import clock
from iotjobs.domain.jobs import Job, PendingReason
from iotjobs.domain.statuses import ACTIVE
from iotjobs.store import queue, queues
from iotjobs.store.queue import Candidate, Offers, Ticket
from iotjobs.store.writer import Transaction


class Limits:
    """The switch and the queues' concurrency as they were last read; changed by `SiteSwitch` alone."""

    def __init__(self) -> None:
        self.concurrency: Mapping[str, int | None] = queues.BUILT_IN
        self.opened = asyncio.Event()
        self.opened.set()

    def drained(self) -> str | None:
        """Why nothing begins, if nothing does."""
        return None if self.opened.is_set() else "the site is drained: `iotjobs undrain` opens it"

    def of(self, name: str) -> int | None:
        """How many attempts of a queue may be under way; None: no limit."""
        return self.concurrency.get(name)

    def locks_of(self, job: Ticket | Job) -> list[str]:
        """What the begin of a job, and the end of its attempt, stand in line for."""
        limited = [] if self.of(job.queue) is None else [queues.lock_of(job.queue)]
        return limited if job.lane is None else [job.lane, *limited]

    def may_begin(self, tx: Transaction, found: Candidate, offers: Offers) -> bool:
        """Whether the site and the job's queue let it begin now.

        What is remembered of the switch is not asked: it may be older than a drain that has ended.

        If not, it is told what it waits for, and the next of its lane that waits for nothing is offered.
        """
        job, limit = found.job, self.of(found.job.queue)
        if not found.dispatches:
            queues.hold_back(tx, job, PendingReason.DRAINED)
        elif limit is None or queues.has_place(tx, job.queue, limit):
            return True
        else:
            queues.hold_back(tx, job, PendingReason.QUEUE)
            queue.offer_next(tx, job.lane, clock.now_ms(), offers, held_back=False)
        return False

    def left(self, tx: Transaction, job: Job, offers: Offers) -> None:
        """An attempt of the job holds no worker any more: the next of its queue may begin.

        Whoever has just found the queue full, and has not committed yet that it waits, is waited for: its job is
        among those that may be the next. The job's lane, if any, is locked before.
        """
        if self.of(job.queue) is not None:
            if job.status in ACTIVE:
                tx.lock(queues.lock_of(job.queue))
            queues.offer_next_of(tx, job.queue, clock.now_ms(), offers)
