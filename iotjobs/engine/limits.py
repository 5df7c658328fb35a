"""What holds ready work back beside its lane: a drained site, and full queues. Asked within transactions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from iotjobs import clock
from iotjobs.domain.jobs import Job, PendingReason
from iotjobs.store import queues
from iotjobs.store.queue import Offers
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

    def of(self, queue: str) -> int | None:
        """How many attempts of a queue may be under way; None: no limit."""
        return self.concurrency.get(queue)

    def may_begin(self, tx: Transaction, job: Job) -> bool:
        """Whether the site and the job's queue let it begin now; it is told what it waits for."""
        if not self.opened.is_set():
            queues.hold_back(tx, job, PendingReason.DRAINED)
            return False
        limit = self.of(job.queue)
        if limit is None or queues.has_place(tx.conn, job.queue, limit):
            return True
        queues.hold_back(tx, job, PendingReason.QUEUE)
        return False

    def left(self, tx: Transaction, job: Job, offers: Offers) -> None:
        """An attempt of the job holds no worker any more: the next of its queue may begin."""
        if self.of(job.queue) is not None:
            queues.offer_next_of(tx, job.queue, clock.now_ms(), offers)
