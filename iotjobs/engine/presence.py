"""This process among the workers: it beats, and knows whether the others still count on it.

A worker that was silent for ten seconds is declared dead, and what it held is given to others. So
it must send nothing that it began before: `Presence.is_fresh` says whether the last beat is young
enough that nobody can have done so, and `confirm` asks. A process that wakes up dead goes on under
a new id.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain.errors import IotJobsError, LeaseLost
from iotjobs.engine.services import LoopService
from iotjobs.store import facts, nodes
from iotjobs.store.nodes import Node, WorkerState
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

log = logging.getLogger(__name__)

BEAT_EVERY_S = 3.0
# With what may pass between the look at it and the first byte (`execution.SEND_WITHIN_S`) it is still
# less than what a worker is declared dead after.
FRESH_S = nodes.SILENT_MS / 1000 / 2
# A beat that comes later than this after the one before it has missed some.
GAP_S = 2 * BEAT_EVERY_S
# A node with a broker that is started again is back sooner than this; who has one itself waits no longer
# than it takes to know of the others.
BROKER_AWAITED_S = 60.0
OTHERS_AWAITED_S = GAP_S


class Membership(Protocol):
    """What the engine asks of this process's place among the workers."""

    @property
    def worker_id(self) -> str:
        """Written on every attempt that begins here."""

    def is_fresh(self) -> bool:
        """Whether nobody can have declared us dead within the next seconds."""

    async def be_fresh(self) -> None:
        """Come back to life, if need be under another id, before something is begun."""

    def confirm(self, tx: Transaction) -> None:
        """Beat within this transaction.

        Raises:
            LeaseLost: we were declared dead.
        """

    def confirmed(self, since: float) -> None:
        """That transaction is committed; it was begun at this moment of the monotonic clock."""

    def roster(self, conn: Connection) -> list[WorkerState]:
        """Every worker of the site."""


class Alone:
    """The embedded side: one process, which the data directory's lock has made sure of."""

    def __init__(self, worker_id: str, node: Node | None = None) -> None:
        self.worker_id, self._node = worker_id, node or Node("", 0, "", (), 0)
        self._since = clock.now_ms()
        self.running: Callable[[], int] = lambda: 0
        self.connected: Callable[[], bool] = lambda: False

    def is_fresh(self) -> bool:
        """See `Membership`."""
        return True

    async def be_fresh(self) -> None:
        """See `Membership`."""

    def confirm(self, tx: Transaction) -> None:
        """See `Membership`."""

    def confirmed(self, since: float) -> None:
        """See `Membership`."""

    def roster(self, conn: Connection) -> list[WorkerState]:  # noqa: ARG002 - the seam's
        """See `Membership`."""
        leases = (LEADER, INGEST)
        now, running = clock.now_ms(), self.running()
        return [WorkerState(self.worker_id, self._node, running, self._since, now, None, leases)]


# What one process at a time does.
LEADER, INGEST = "leader", "ingest"


class Presence(LoopService):
    """See `Membership`; one of several nodes on PostgreSQL.

    Args:
        store: where the worker rows are.
        node: what this process says of itself.
        remember: told of each id that it takes, so that the next process in its place knows it.
    """

    name = "presence"

    def __init__(self, store: Store, node: Node, remember: Callable[[str], None]) -> None:
        super().__init__()
        self._store, self._node, self._remember = store, node, remember
        self.worker_id = ""
        self.running: Callable[[], int] = lambda: 0
        self.connected: Callable[[], bool] = lambda: False
        self._seen = self._in_touch_since = float("-inf")
        self._nobody_since: float | None = float("-inf")  # has been connected to a broker
        self._beating = asyncio.Lock()

    async def enter(self, former: str | None) -> None:
        """Be alive from now on.

        Args:
            former: the worker whose place this is; it is known to be dead.
        """
        worker_id, began = clock.new_id(), clock.monotonic()
        self._remember(worker_id)

        def item(tx: Transaction) -> None:
            if former is not None:
                nodes.bury(tx, former)
            nodes.register(tx, worker_id, self._node)
            self._note_broker(nodes.any_broker(tx.conn) or facts.known(tx.conn, facts.MQTT_CLIENT_ID))

        await self._store.write(item)
        self.worker_id = worker_id
        self.confirmed(began)

    async def stop(self) -> None:
        """See `Service`; what is left under way is given to others at once."""
        await super().stop()
        worker_id, self.worker_id = self.worker_id, ""
        if worker_id:
            try:
                await self._store.write(lambda tx: nodes.leave(tx, worker_id))
            except IotJobsError as error:
                log.warning("the others were not told of the end", extra={"why": str(error)})

    async def _loop(self) -> None:
        while True:
            try:
                await self._beat()
            except IotJobsError as error:
                log.warning("no heartbeat", extra={"worker_id": self.worker_id, "why": str(error)})
            await clock.sleep(BEAT_EVERY_S)

    async def _beat(self) -> None:
        async with self._beating:
            began, worker_id, running = clock.monotonic(), self.worker_id, self.running()

            def item(tx: Transaction) -> bool:
                alive = nodes.beat(tx, worker_id, running, connected=self.connected())
                self._note_broker(nodes.any_broker(tx.conn))
                return alive

            if await self._store.write(item):
                self.confirmed(began)
                return
            log.error(
                "this worker was declared dead: what it holds is others' now, it goes on under a new id",
                extra={"worker_id": worker_id, "running": running},
            )
            await self.enter(None)

    def _note_broker(self, there_is_one: bool) -> None:
        if there_is_one:
            self._nobody_since = None
        elif self._nobody_since is None:
            self._nobody_since = clock.monotonic()

    def may_publish(self) -> bool:
        """Whether mqtt jobs are ours to take: we are connected to the broker, or for some time nobody has been."""
        if self.connected() or self._nobody_since is None:
            return self.connected()
        awaited_s = OTHERS_AWAITED_S if self._node.mqtt else BROKER_AWAITED_S
        return clock.monotonic() - self._nobody_since > awaited_s

    def is_fresh(self) -> bool:
        """See `Membership`."""
        return clock.monotonic() - self._seen < FRESH_S

    async def be_fresh(self) -> None:
        """See `Membership`."""
        if not self.is_fresh():
            await self._beat()

    def confirm(self, tx: Transaction) -> None:
        """See `Membership`."""
        if not nodes.beat(tx, self.worker_id, self.running(), connected=self.connected()):
            raise LeaseLost(f"worker {self.worker_id} was declared dead")

    def confirmed(self, since: float) -> None:
        """See `Membership`."""
        if since - self._seen > GAP_S:
            self._in_touch_since = since
        self._seen = max(self._seen, since)

    def may_judge(self) -> bool:
        """Whether we were in touch with the database so long that a worker's silence is its own."""
        now = clock.monotonic()
        in_touch = now - self._seen <= GAP_S
        return in_touch and now - self._in_touch_since > nodes.SILENT_MS / 1000

    def roster(self, conn: Connection) -> list[WorkerState]:
        """See `Membership`."""
        return nodes.listing(conn)
