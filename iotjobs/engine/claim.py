"""Watches that this is still the one process that serves the database.

What holds the claim on PostgreSQL is a session, and a session can be cut off without anybody's
doing. It is taken again then; if another process was quicker, this one has to go: both would
take tickets, and each would end the other's attempts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from iotjobs import clock
from iotjobs.domain.errors import StoreUnavailable
from iotjobs.engine.services import LoopService
from iotjobs.store.session import Store

log = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0


class ClaimWatch(LoopService):
    """Calls `lost` once when another process has the claim."""

    name = "claim"

    def __init__(self, store: Store, lost: Callable[[], None]) -> None:
        super().__init__()
        self._store, self._lost = store, lost

    async def _loop(self) -> None:
        while await self._claimed():
            await clock.sleep(LOOK_EVERY_S)
        log.critical("another process serves this database now: stopping")
        self._lost()

    async def _claimed(self) -> bool:
        try:
            return await self._store.claim()
        except StoreUnavailable as error:
            # Without the database nobody can do anything, and who gets it back first is seen then.
            log.warning("the claim cannot be checked", extra={"why": str(error)})
            return True
