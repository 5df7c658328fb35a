"""The dispatcher of several nodes: PgQueuer on the PostgreSQL that holds the jobs.

PgQueuer picks rows (SKIP LOCKED, woken by NOTIFY), keeps what it picked by heartbeats, and picks
again what a dead node held. Its handler here only carries: it puts the ticket on this process's
heap and ends when the worker is done with it, so that what a node has picked and what it runs are
one number, which PgQueuer bounds.

It goes deaf when its listener is lost, for as long as its longest job runs: so its manager is left
to end by itself then, and a new one begins beside it.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from asyncpg import InterfaceError, PostgresError
from pgqueuer.adapters.drivers.asyncpg import AsyncpgPoolDriver
from pgqueuer.adapters.persistence import qb
from pgqueuer.core.qm import QueueManager
from pgqueuer.domain.errors import RetryRequested
from pgqueuer.domain.models import Job as Row
from pgqueuer.domain.settings import DBSettings
from pgqueuer.domain.types import Channel, QueueEntrypoint
from pgqueuer.ports.driver import NotifyCallback
from pgqueuer.queries import Queries

from iotjobs import clock
from iotjobs.domain.errors import IotJobsError
from iotjobs.engine.services import LoopService
from iotjobs.store import tickets
from iotjobs.store.queue import Ticket
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

if TYPE_CHECKING:
    import asyncpg

log = logging.getLogger(__name__)

# A dead node is seen after both together: it beats each half of the first, and is looked for each second.
HEARTBEAT_S, LOOK_S = 8.0, 2.0
BATCH = 100
# A ticket that no worker of this node takes is another node's chance after this long.
HOLD_S, HOLD_LOOK_S = 5.0, 0.5
BACK_FOR = timedelta(seconds=1)
AGAIN_AFTER_S = 1.0
END_WITHIN_S = 3.0
PRUNE_EVERY_S = 60.0

_NAMES = {
    "channel": tickets.CHANNEL,
    "function": f"{tickets.PREFIX}fn_pgqueuer_changed",
    "statistics_table": f"{tickets.PREFIX}pgqueuer_statistics",
    "queue_status_type": f"{tickets.PREFIX}pgqueuer_status",
    "queue_table": f"{tickets.PREFIX}pgqueuer",
    "queue_table_log": f"{tickets.PREFIX}pgqueuer_log",
    "trigger": f"{tickets.PREFIX}tg_pgqueuer_changed",
    "schedules_table": f"{tickets.PREFIX}pgqueuer_schedules",
}


def queue_settings() -> DBSettings:
    """PgQueuer's names, all of them given: what is not it would read from the environment."""
    given: dict[str, Any] = {"db_schema": tickets.SCHEMA, "prefix": tickets.PREFIX, **_NAMES}
    return DBSettings(**given)


class _Driver(AsyncpgPoolDriver):
    """Says when the database failed it, or when its listener was cut off."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        super().__init__(pool)
        self.broken = asyncio.Event()

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        try:
            return await super().fetch(query, *args)
        except Exception:
            self.broken.set()
            raise

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        await super().add_listener(channel, callback)
        assert self._listener_connection is not None
        self._listener_connection.add_termination_listener(lambda _: self.broken.set())


@dataclass(slots=True, eq=False)
class _Held:
    """A ticket that this process has picked; `settled` is True when it is done, False to give it back.

    Attributes:
        row: PgQueuer's number of it. An equal ticket that was offered anew, while the taker of this one is not
            done with it yet, has another.
    """

    row: int
    ticket: Ticket
    settled: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    taken: bool = False
    since: float = field(default_factory=clock.monotonic)

    def settle(self, done: bool) -> None:
        if not self.settled.done():
            self.settled.set_result(done)


class PgQueuerDispatcher(LoopService):
    """See `Dispatcher`.

    Args:
        store: where tickets are offered.
        url: of its database, for PgQueuer's own connections.
        at_once: how many tickets this node holds at most; at least two.
        may_publish: whether mqtt jobs are for this node.
    """

    name = "dispatcher"

    def __init__(
        self, store: Store, url: str, *, at_once: int, may_publish: Callable[[], bool] = lambda: True
    ) -> None:
        super().__init__()
        self._may_publish = may_publish
        self._store, self._url, self._at_once = store, url, max(2, at_once)
        self._heap: list[tuple[Ticket, int, _Held]] = []
        self._held: dict[int, _Held] = {}  # by its row
        self._taken: dict[int, _Held] = {}  # by the identity of its ticket
        self._count = 0
        self._arrived = asyncio.Event()
        self._carriers: set[_Carrier] = set()
        self._giving_back = False
        self._unwanted = False  # nobody took what was held here last, and nobody has asked since

    # --- the seam -------------------------------------------------------------------------

    def offer(self, tx: Transaction, ticket: Ticket) -> None:
        """See `Dispatcher`."""
        tx.gather(tickets.offering, ticket)

    async def offer_again(self, offered: list[Ticket]) -> int:
        """See `Dispatcher`."""
        if not offered:
            return 0
        return await self._store.write(lambda tx: tickets.offer(tx, offered))

    def withdraw(self, tx: Transaction, ticket: Ticket) -> None:
        """See `Dispatcher`."""
        tickets.withdraw(tx, ticket)

    async def take(self) -> Ticket:
        """See `Dispatcher`."""
        self._unwanted = False
        while True:
            while not self._heap:
                self._arrived.clear()
                await self._arrived.wait()
            ticket, _, held = heapq.heappop(self._heap)
            if not held.settled.done():
                held.taken = True
                self._taken[id(ticket)] = held
                return ticket

    def done(self, ticket: Ticket) -> None:
        """See `Dispatcher`."""
        held = self._taken.pop(id(ticket), None)
        if held is not None:
            self._forget(held)
            held.settle(True)

    def give_back(self) -> None:
        """See `Dispatcher`."""
        self._giving_back = True
        for carrier in self._carriers:
            carrier.end()
        for held in list(self._held.values()):
            if not held.taken:
                self._let_go(held)

    # --- PgQueuer -------------------------------------------------------------------------

    async def start(self) -> None:
        """See `Dispatcher`."""
        self._giving_back = False
        await super().start()

    async def stop(self) -> None:
        """See `Dispatcher`."""
        await super().stop()
        self.give_back()
        for held in list(self._held.values()):
            held.settle(False)
        await asyncio.gather(*(carrier.ended(END_WITHIN_S) for carrier in self._carriers))
        self._carriers.clear()
        self._held.clear()
        self._taken.clear()

    async def _loop(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_carrying(), name="tickets")
            group.create_task(self._keep_letting_go(), name="tickets that nobody takes")
            group.create_task(self._keep_pruning(), name="tickets' log")

    async def _keep_carrying(self) -> None:
        while not self._giving_back:
            await self._carry_once()
            await clock.sleep(AGAIN_AFTER_S)

    async def _carry_once(self) -> None:
        carrier = _Carrier(self._carry, self._names, self._at_once)
        try:
            await carrier.run(self._url, self._carriers)
        except (OSError, TimeoutError, PostgresError, InterfaceError, IotJobsError) as error:
            log.warning("no tickets can be taken", extra={"why": str(error) or repr(error)})
        finally:
            carrier.end()
        if not self._giving_back:
            log.warning("the way to the tickets was cut: making another one")

    async def _keep_letting_go(self) -> None:
        while True:
            await clock.sleep(HOLD_LOOK_S)
            before = clock.monotonic() - HOLD_S
            for held in [held for held in self._held.values() if not held.taken and held.since < before]:
                self._unwanted = True
                self._let_go(held)

    def _names(self) -> tuple[str, ...]:
        """Of what is picked here now: nothing while nobody here would take it."""
        if self._unwanted:
            return ()
        return (tickets.RUN, tickets.PUBLISH) if self._may_publish() else (tickets.RUN,)

    async def _keep_pruning(self) -> None:
        while True:
            await clock.sleep(PRUNE_EVERY_S)
            try:
                await self._store.write(lambda tx: tickets.prune(tx.conn))
            except IotJobsError as error:
                log.warning("the tickets' log was not pruned", extra={"why": str(error)})

    async def _carry(self, row: Row) -> None:
        """PgQueuer's handler: returns when the ticket is done, and raises only to give it back."""
        ticket = tickets.ticket_of_row(row.id, row.priority, row.payload)
        held = self._held.get(row.id)
        if held is None:  # else a new manager has picked what an old one still holds here
            held = self._held[row.id] = _Held(row.id, ticket)
            self._count += 1
            heapq.heappush(self._heap, (ticket, self._count, held))
            self._arrived.set()
        if self._giving_back:
            self._let_go(held)
        if not await asyncio.shield(held.settled):  # an old manager may still wait for it too
            raise RetryRequested(delay=timedelta(0) if self._giving_back else BACK_FOR, reason="not taken")

    def _forget(self, held: _Held) -> None:
        if self._held.get(held.row) is held:
            del self._held[held.row]

    def _let_go(self, held: _Held) -> None:
        self._forget(held)
        held.settle(False)
        self._heap = [entry for entry in self._heap if entry[2] is not held]
        heapq.heapify(self._heap)


class _Manager(QueueManager):
    """Picks what this node would take: or of two nodes it might be the idle one that never gets it."""

    handler: Callable[[Row], Awaitable[None]]
    names: Callable[[], tuple[str, ...]]

    def entrypoints_below_capacity_limits(self) -> set[QueueEntrypoint]:
        """Makes a name known only when it is first picked by: PgQueuer looks all the time while one has work."""
        picked = {QueueEntrypoint(name) for name in self.names()}
        for name in picked - self.entrypoint_registry.keys():
            self.entrypoint(name, accepts_context=False)(self.handler)
        return picked


class _Carrier:
    """One manager of PgQueuer with its own connections, until it has ended."""

    def __init__(
        self,
        handler: Callable[[Row], Awaitable[None]],
        names: Callable[[], tuple[str, ...]],
        at_once: int,
    ) -> None:
        self._handler, self._names, self._at_once = handler, names, at_once
        self._manager: QueueManager | None = None
        self._task: asyncio.Task[None] | None = None
        self._pool: asyncpg.Pool | None = None
        self._clearing: asyncio.Task[None] | None = None

    async def run(self, url: str, among: set[_Carrier]) -> None:
        """Carry until the database or the listener fails; it then ends by itself, and leaves `among`."""
        pool = self._pool = await tickets.open_pool(url)
        driver, names = _Driver(pool), queue_settings()
        queries = Queries(
            driver,
            qbe=qb.QueryBuilderEnvironment(names),
            qbq=qb.QueryQueueBuilder(names),
            qbs=qb.QuerySchedulerBuilder(names),
        )
        manager = self._manager = _Manager(queries, channel=Channel(tickets.CHANNEL))
        manager.handler, manager.names = self._handler, self._names
        manager.entrypoint(tickets.RUN, accepts_context=False)(self._handler)
        self._task = asyncio.create_task(
            manager.run(
                dequeue_timeout=timedelta(seconds=LOOK_S),
                batch_size=min(BATCH, self._at_once // 2),
                max_concurrent_tasks=self._at_once,
                shutdown_on_listener_failure=True,
                heartbeat_timeout=timedelta(seconds=HEARTBEAT_S),
                log_aggregation_interval=timedelta(0),  # nobody reads its statistics
            ),
            name="pgqueuer",
        )
        among.add(self)
        self._clearing = asyncio.create_task(self._clear(self._task, pool, among), name="pgqueuer's end")
        waits = [asyncio.create_task(event.wait()) for event in (driver.broken, manager.shutdown)]
        try:
            await asyncio.wait({self._task, *waits}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def end(self) -> None:
        """Pick no more; what is picked goes on to its end."""
        if self._manager is not None:
            self._manager.shutdown.set()
        elif self._pool is not None:
            self._pool.terminate()

    async def ended(self, within_s: float) -> None:
        """Wait for the end of all that it picked, and cut it off when that does not come."""
        if self._task is None or self._clearing is None:
            return
        for _ in range(2):  # the first cancellation of PgQueuer's run still waits for its handlers
            await asyncio.wait({self._clearing}, timeout=within_s)
            if self._clearing.done():
                return
            self._task.cancel()
        await self._clearing

    async def _clear(self, task: asyncio.Task[None], pool: asyncpg.Pool, among: set[_Carrier]) -> None:
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("pgqueuer ended", extra={"why": str(error) or repr(error)})
        pool.terminate()
        among.discard(self)
