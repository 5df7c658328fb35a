"""One node consumes what devices send: the holder of the ingest lease is connected, nobody else.

It writes down whether it does (`facts.LISTENS`), so that nobody takes what waits at the broker for what was not
said. And a holder that cannot reach the broker is no use: it lets go of the lease, and who reaches
none does not seek it.

Who has lost the lease and taken it again begins anew, on a new connection: what it could not commit
between, and did not acknowledge, comes again there and in its order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from iotjobs import clock
from iotjobs.domain.errors import IotJobsError
from iotjobs.engine.leases import Standing
from iotjobs.engine.services import LoopService, Service
from iotjobs.store import facts
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
# A holder without a connection for so long lets another one try; its first one may take longer.
DEAF_S = 5.0
FIRST_WITHIN_S = 20.0


class Inbox(Service, Protocol):
    """What works through messages."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits in it."""

    @property
    def is_stuck(self) -> bool:
        """Whether it has not got on with what it took for a while."""


class Link(Service, Protocol):
    """A connection to the broker that comes back by itself."""

    @property
    def connected(self) -> bool:
        """Whether it is up."""


class Ingest(LoopService):
    """Starts and stops the consumer, and its inbox, as the lease comes and goes.

    Args:
        store: where it is written down who listens.
        standing: whether this node is the one.
        inbox: takes what the consumer gets.
        consumer: connected by the holder only.
        publisher: tells whether the broker can be reached from here.
        worker_id: gives the id of this process's worker.
    """

    name = "ingest"

    def __init__(
        self,
        store: Store,
        standing: Standing,
        inbox: Inbox,
        consumer: Link,
        *,
        publisher: Link,
        worker_id: Callable[[], str],
    ) -> None:
        super().__init__()
        self._store, self._standing, self._worker_id = store, standing, worker_id
        self._inbox, self._consumer, self._publisher = inbox, consumer, publisher
        self._epoch: int | None = None  # of the lease under which they were started
        self._told: str | None = None  # who listens, as we have written it down; None: others may have
        self._stands: str | None = None  # as whom we may stand there as the one who listens
        self._fit_at = 0.0  # when it could listen last

    def is_fit(self) -> bool:
        """Whether the ingest lease is to be sought, or kept."""
        now = clock.monotonic()
        if not self._standing.leads:
            self._fit_at = now + FIRST_WITHIN_S - DEAF_S
            return self._publisher.connected
        if self._consumer.connected:
            self._fit_at = now
        return now - self._fit_at < DEAF_S

    async def _loop(self) -> None:
        while True:
            epoch = self._standing.epoch if self._standing.leads else None
            if epoch != self._epoch:
                await self._end()
            if epoch is not None:
                await self._inbox.start()
                await self._consumer.start()
                await self._tell()
            elif self._stands is not None:
                await self._take_back(self._stands)
            self._epoch = epoch
            await clock.sleep(LOOK_EVERY_S)

    async def stop(self) -> None:
        """See `Service`."""
        await super().stop()
        await self._end()

    async def _end(self) -> None:
        self._told = None
        await self._consumer.stop()
        await self._inbox.stop()

    async def _tell(self) -> None:
        """Write down that we listen, once what had waited at the broker is worked through, or that nobody does.

        Who cannot write down what it hears does not listen either: answers wait with it as they do at the broker.
        """
        caught_up = bool(self._told) or self._inbox.is_empty
        listens = self._consumer.connected and caught_up and not self._inbox.is_stuck
        who = self._worker_id() if listens else ""
        if who == self._told:
            return

        def item(tx: Transaction) -> None:
            self._standing.check(tx)
            facts.put(tx, facts.LISTENS, who)

        self._stands = who or self._stands
        try:
            await self._store.write(item, reserved=True)
        except IotJobsError as error:
            log.warning("it was not written down who listens", extra={"who": who, "why": str(error)})
        else:
            self._told, self._stands = who, who or None

    async def _take_back(self, who: str) -> None:
        """Without the lease we listen no more; that is said when the store is there again, unless another one does."""
        try:
            await self._store.write(lambda tx: facts.replace(tx, facts.LISTENS, who, ""), reserved=True)
        except IotJobsError as error:
            log.info("it stands there still that we listen", extra={"why": str(error)})
        else:
            self._stands = None
