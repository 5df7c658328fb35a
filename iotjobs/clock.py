"""The one seam for time, sleeping and identifiers.

Everything that asks for the moment asks here, so that a test can move it. The moment goes on steadily
from the system's clock as it was at our start; one that was set meanwhile is followed by `engine.timekeeping`,
together with everything that waits for a moment.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from datetime import UTC, datetime

_ahead_ns = time.time_ns() - time.monotonic_ns()  # of the wall clock


def now_ms() -> int:
    """The wall clock in milliseconds since the epoch: for records, and for moments kept in them."""
    return (time.monotonic_ns() + _ahead_ns) // 1_000_000


def follow(by_ms: int) -> None:
    """Let `now_ms` go on from so many milliseconds later, or earlier."""
    global _ahead_ns
    _ahead_ns += by_ms * 1_000_000


def monotonic() -> float:
    """Seconds on a clock that never jumps: for deadlines and durations."""
    return time.monotonic()


async def sleep(seconds: float) -> None:
    """Let `seconds` pass."""
    await asyncio.sleep(seconds)


def new_id() -> str:
    """A UUIDv7 as 32 hex digits: sorts by its moment of creation (RFC 9562 §5.7)."""
    stamp = now_ms() & (1 << 48) - 1
    tail = secrets.randbits(74)
    value = stamp << 80 | 7 << 76 | (tail >> 62) << 64 | 0b10 << 62 | tail & (1 << 62) - 1
    return f"{value:032x}"


def rfc3339(moment_ms: int | None) -> str | None:
    """A moment as RFC 3339 UTC with exactly three decimals and `Z`; None stays None."""
    if moment_ms is None:
        return None
    seconds, millis = divmod(moment_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{millis:03d}Z"
