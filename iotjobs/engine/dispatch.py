"""The dispatcher's seam, and the embedded one: tickets in memory, the job table as the truth.

A ticket says that a job may run now. It is offered in the transaction that makes the job ready
and becomes visible with its commit. Losing one costs time only: the sweep offers again. The other
side of the seam is `dispatch_postgres`; `tests/contract/test_dispatcher.py` holds both to the same.
"""

from __future__ import annotations

import asyncio
import heapq
from functools import partial
from typing import Protocol

from iotjobs.store.queue import Ticket
from iotjobs.store.writer import Transaction


class Dispatcher(Protocol):
    """Carries tickets to workers; at most one live ticket a job and attempt.

    A ticket is live from its offer to `done` or `withdraw`. That of a taker that dies comes to
    somebody else within ten seconds, unless its job has no more use for it: beats that keep it are
    the dispatcher's own business.
    """

    async def start(self) -> None:
        """Begin to carry; a second call does nothing."""

    async def stop(self) -> None:
        """End; what nobody took is somebody else's at once. A call without a start does nothing."""

    def offer(self, tx: Transaction, ticket: Ticket) -> None:
        """Make a ticket takeable with the commit of this transaction, or not at all."""

    async def offer_again(self, tickets: list[Ticket]) -> int:
        """What the sweep found ready; those that have a live ticket are ignored. How many were new."""

    def withdraw(self, tx: Transaction, ticket: Ticket) -> None:
        """The job is not ready: the ticket, taken or not, is live no more with this commit.

        An offer in a later transaction is a new one. Whoever has taken it already still calls `done`.
        """

    async def take(self) -> Ticket:
        """The first ticket by rank, turn and seq; waits for one."""

    def done(self, ticket: Ticket) -> None:
        """The taker needs this very ticket, as `take` gave it, no more: its job was settled, parked, or is not ready."""

    def give_back(self) -> None:
        """This process stops taking: let go of every ticket that waits here for a taker."""


class InProcessDispatcher:
    """The embedded dispatcher: one process, a heap."""

    def __init__(self) -> None:
        self._heap: list[Ticket] = []
        self._live: dict[str, Ticket] = {}
        self._waiting: asyncio.Event = asyncio.Event()

    @property
    def live(self) -> set[str]:
        """Ids of the jobs that have a live ticket."""
        return {ticket.job_id for ticket in self._live.values()}

    async def start(self) -> None:
        """See `Dispatcher`."""

    async def stop(self) -> None:
        """See `Dispatcher`; the table is read again at the next start."""

    def offer(self, tx: Transaction, ticket: Ticket) -> None:
        """See `Dispatcher`."""
        tx.after_commit(partial(self._push, ticket))

    async def offer_again(self, tickets: list[Ticket]) -> int:
        """See `Dispatcher`."""
        return sum(self._push(ticket) for ticket in tickets)

    def withdraw(self, tx: Transaction, ticket: Ticket) -> None:
        """See `Dispatcher`."""
        tx.after_commit(lambda: self._live.pop(ticket.key, None))

    def _push(self, ticket: Ticket) -> bool:
        if ticket.key in self._live:
            return False
        self._live[ticket.key] = ticket
        heapq.heappush(self._heap, ticket)
        self._waiting.set()
        return True

    async def take(self) -> Ticket:
        """See `Dispatcher`."""
        while True:
            while not self._heap:
                self._waiting.clear()
                await self._waiting.wait()
            ticket = heapq.heappop(self._heap)
            if self._live.get(ticket.key) is ticket:  # else it was withdrawn
                return ticket

    def done(self, ticket: Ticket) -> None:
        """See `Dispatcher`."""
        if self._live.get(ticket.key) is ticket:  # else the job has got another one meanwhile
            del self._live[ticket.key]

    def give_back(self) -> None:
        """See `Dispatcher`; there is nobody else to take them."""
