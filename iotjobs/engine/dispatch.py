"""The dispatcher's seam, and the embedded one: tickets in memory, the job table as the truth.

A ticket says that a job may run now. It is offered in the transaction that makes the job ready
and becomes visible with its commit. Losing one costs time only: the sweep offers again.
"""

from __future__ import annotations

import asyncio
import heapq
from functools import partial
from typing import Protocol

from iotjobs.store.queue import Ticket
from iotjobs.store.writer import Transaction


class Dispatcher(Protocol):
    """Carries tickets to workers; at most one live ticket a job."""

    def offer(self, tx: Transaction, ticket: Ticket) -> None:
        """Make a ticket takeable with the commit of this transaction, or not at all."""

    def offer_again(self, tickets: list[Ticket]) -> int:
        """What the sweep found ready; those that have a live ticket are ignored. How many were new."""

    async def take(self) -> Ticket:
        """The first ticket by priority and age; waits for one."""

    def done(self, ticket: Ticket) -> None:
        """The taker needs the ticket no more: the job was settled, parked, or is not ready."""


class InProcessDispatcher:
    """The embedded dispatcher: one process, a heap."""

    def __init__(self) -> None:
        self._heap: list[Ticket] = []
        self._live: set[str] = set()
        self._waiting: asyncio.Event = asyncio.Event()

    def offer(self, tx: Transaction, ticket: Ticket) -> None:
        """See `Dispatcher`."""
        tx.after_commit(partial(self._push, ticket))

    def offer_again(self, tickets: list[Ticket]) -> int:
        """See `Dispatcher`."""
        return sum(self._push(ticket) for ticket in tickets)

    def _push(self, ticket: Ticket) -> bool:
        if ticket.job_id in self._live:
            return False
        self._live.add(ticket.job_id)
        heapq.heappush(self._heap, ticket)
        self._waiting.set()
        return True

    async def take(self) -> Ticket:
        """See `Dispatcher`."""
        while not self._heap:
            self._waiting.clear()
            await self._waiting.wait()
        return heapq.heappop(self._heap)

    def done(self, ticket: Ticket) -> None:
        """See `Dispatcher`."""
        self._live.discard(ticket.job_id)
