"""Tells who waits for a job that it ended.

A wake-up is a hint, given in this process after the commit, and to the other nodes; whoever waits
also looks into the store now and then, so that a lost hint costs a second and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from iotjobs import clock
from iotjobs.store import jobs
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

POLL_S = 1.0


class Feed:
    """The ends of jobs, as they are committed.

    Attributes:
        tell: called with the id of each job that ended here.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiters: dict[str, set[asyncio.Event]] = {}
        self._over = False
        self.tell: Callable[[str], object] = lambda _: None

    def let_go(self) -> None:
        """The site stops: whoever waits, now or later, is told at once how things stand."""
        self._over = True
        for job_id in self._waiters:
            self.wake(job_id)

    def ended(self, tx: Transaction, job_id: str) -> None:
        """The job ends with this transaction."""

        def tell() -> None:
            self.wake(job_id)
            self.tell(job_id)

        tx.after_commit(tell)

    def wake(self, job_id: str) -> None:
        """The job has ended, maybe on another node."""
        for waiter in self._waiters.get(job_id, ()):
            waiter.set()

    async def wait_for_end(self, job_id: str, within_s: float) -> bool:
        """Whether the job ended within `within_s` seconds, or before the site stopped.

        Raises:
            NotFound: there is no such job, or it was deleted meanwhile.
        """
        deadline = clock.monotonic() + within_s
        waiter = asyncio.Event()
        self._waiters.setdefault(job_id, set()).add(waiter)
        try:
            while True:
                if await self._store.look(lambda conn: jobs.has_ended(conn, job_id)):
                    return True
                left = deadline - clock.monotonic()
                if left <= 0 or self._over:
                    return False
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(left, POLL_S)):
                        await waiter.wait()
        finally:
            waiters = self._waiters[job_id]
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[job_id]
