"""How long an attempt may go on, and who ends it before that: the clock, silence, a person, our own stop."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from types import TracebackType


class Why(StrEnum):
    """Why an attempt was ended before it ended by itself."""

    TIMED_OUT = "timed out"
    STALLED = "stalled"
    SERVER_STOPS = "server stops"
    ASKED = "asked"  # a cancel or a stop: the job's row says which


class Watch:
    """Ends what runs inside `async with`, which then raises TimeoutError. Used once.

    Attributes:
        why: the first reason that came, also before the start; None while there is none. What comes
            after the end of the block changes nothing.
    """

    def __init__(self, within_s: float, silent_s: float | None = None) -> None:
        """Nothing runs yet.

        Args:
            within_s: from the start of the block.
            silent_s: the longest silence, from the first `heard` on.
        """
        self.why: Why | None = None
        self._within_s, self._silent_s = within_s, silent_s
        self._deadline: asyncio.Timeout | None = None
        self._over = False
        self._heard = 0.0
        self._busy = False
        self._timer: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Watch:
        """Start the clock; who was asked to end before runs to its first wait only."""
        self._deadline = asyncio.timeout(self._within_s if self.why is None else 0)
        await self._deadline.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise TimeoutError when it was ended."""
        assert self._deadline is not None
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
        if self.why is None and self._deadline.expired():
            self.why = Why.TIMED_OUT
        await self._deadline.__aexit__(kind, error, trace)

    def end(self, why: Why) -> None:
        """End it now; one that is ending already goes on with that."""
        if self._over or self.why is not None:
            return
        if self._deadline is None:
            self.why = why
        elif not self._deadline.expired():
            self.why = why
            self._deadline.reschedule(asyncio.get_running_loop().time())

    def heard(self, *, busy: bool = False) -> None:
        """Something came of it; `busy`: we are at work on that, so nothing more can come until we are done."""
        if self._silent_s is None:
            return
        loop = asyncio.get_running_loop()
        self._heard, self._busy = loop.time(), busy
        if self._timer is None and not self._over:
            self._timer = loop.call_later(self._silent_s, self._look)

    def _look(self) -> None:
        assert self._silent_s is not None
        loop = asyncio.get_running_loop()
        left_s = self._silent_s if self._busy else self._heard + self._silent_s - loop.time()
        if left_s <= 0:
            self.end(Why.STALLED)
        elif not self._over:
            self._timer = loop.call_later(left_s, self._look)
