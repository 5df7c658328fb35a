"""The start/stop contract of everything that runs for long.

A service may be started twice, stopped twice, and stopped before it was started. Its loop ends
when it is cancelled; a loop that fails is logged and begun again after a pause, so that one bad
row never ends a service.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Protocol

from iotjobs import clock
from iotjobs.domain.errors import StorageFull, StoreUnavailable

log = logging.getLogger(__name__)

# Long enough not to fill the log, short enough not to be noticed.
RESTART_PAUSE_S = 1.0


class Service(Protocol):
    """Something with a beginning and an end."""

    async def start(self) -> None:
        """Begin; a second call does nothing."""

    async def stop(self) -> None:
        """End and wait for the end; a call without a start does nothing."""


class LoopService:
    """A service that is one loop: subclasses write `_loop`."""

    name = "service"

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """See `Service`."""
        if self._task is None:
            self._task = asyncio.create_task(self._supervise(), name=self.name)

    async def stop(self) -> None:
        """See `Service`."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def _supervise(self) -> None:
        while True:
            try:
                await self._loop()
                return
            except (StoreUnavailable, StorageFull) as error:
                log.warning("a service waits for the store", extra={"service": self.name, "why": str(error)})
                await clock.sleep(RESTART_PAUSE_S)
            except Exception:
                log.exception("a service failed and is begun again", extra={"service": self.name})
                await clock.sleep(RESTART_PAUSE_S)

    async def _loop(self) -> None:
        raise AssertionError("a subclass writes its loop")
