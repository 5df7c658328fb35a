"""The places for messages that the broker has not acknowledged: MQTT 5's flow control (§4.9), our side."""

from __future__ import annotations

import asyncio
from collections import deque

from iotjobs.transports.mqtt_address import ConnectionEnded


class Window:
    """How many messages may be unacknowledged at once; ends with its connection."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False

    @property
    def free(self) -> int:
        """Places that `enter` gives without waiting."""
        return 0 if self._closed else self._free

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._waiting)

    async def enter(self, *, soon: bool = False) -> None:
        """Wait for a place; every `enter` needs one `leave`.

        Args:
            soon: wait behind one of the others only: the caller stands for many.

        Raises:
            ConnectionEnded: there will be none.
        """
        if self._closed:
            raise ConnectionEnded("the connection has ended")
        if self._free > 0:
            self._free -= 1
            return
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.insert(1 if soon else len(self._waiting), place)
        try:
            await place
        except asyncio.CancelledError:
            # The place can have been given in the very turn in which we were cancelled.
            if place.done() and not place.cancelled() and place.exception() is None:
                self.leave()
            raise

    def leave(self) -> None:
        """Give the place to the next who waits."""
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1

    def close(self) -> None:
        """Send everyone away who waits."""
        self._closed = True
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_exception(ConnectionEnded("the connection has ended"))
