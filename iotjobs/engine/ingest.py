"""One node consumes what devices send: the holder of the ingest lease is connected, nobody else.

Who has lost the lease and taken it again begins anew, on a new connection: what it could not commit
between, and did not acknowledge, comes again there and in its order.
"""

from __future__ import annotations

from iotjobs import clock
from iotjobs.engine.leases import Standing
from iotjobs.engine.services import LoopService, Service

LOOK_EVERY_S = 0.5


class Ingest(LoopService):
    """Starts and stops the consumer, and what works through its messages, as the lease comes and goes.

    Args:
        standing: whether this node is the one.
        services: in the order of their start.
    """

    name = "ingest"

    def __init__(self, standing: Standing, *services: Service) -> None:
        super().__init__()
        self._standing, self._services = standing, services
        self._epoch: int | None = None  # of the lease under which they were started

    async def _loop(self) -> None:
        while True:
            epoch = self._standing.epoch if self._standing.leads else None
            if epoch != self._epoch:
                await self._end()
            if epoch is not None:
                for service in self._services:
                    await service.start()
            self._epoch = epoch
            await clock.sleep(LOOK_EVERY_S)

    async def stop(self) -> None:
        """See `Service`."""
        await super().stop()
        await self._end()

    async def _end(self) -> None:
        for service in reversed(self._services):
            await service.stop()
