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
_last_step = 0


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


def new_step() -> int:
    """Milliseconds and 4096ths of one: those of a process, and of its ids, are all different, and in their order.

    As long as the clock is not set back by a second or more.
    """
    global _last_step
    step = now_ms() << 12 | (time.monotonic_ns() + _ahead_ns) % 1_000_000 * 4096 // 1_000_000
    if step <= _last_step < step + (1000 << 12):
        step = _last_step + 1
    _last_step = step
    return step


def new_id() -> str:
    """A UUIDv7 as 32 hex digits: sorts by its moment of creation (RFC 9562 §5.7).

    Those of one process sort in their order, also within a millisecond (§6.2, method 3); see `new_step`.
    """
    step = new_step()
    stamp, fraction = step >> 12 & (1 << 48) - 1, step & 0xFFF
    return f"{stamp << 80 | 7 << 76 | fraction << 64 | 0b10 << 62 | secrets.randbits(62):032x}"


def step_of(new_id: str) -> int:
    """The step at which an id was made."""
    return int(new_id[:12], 16) << 12 | int(new_id[13:16], 16)


def rfc3339(moment_ms: int | None) -> str | None:
    """A moment as RFC 3339 UTC with exactly three decimals and `Z`; None stays None."""
    if moment_ms is None:
        return None
    seconds, millis = divmod(moment_ms, 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{millis:03d}Z"
