"""How often a device may report: a bucket of tokens each, and what becomes of reports above it.

Above the rate the last value wins: a report waits for its token, and one that comes meanwhile is merged
into it. So a device that floods us costs the others nothing and loses nothing but values that were old.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from iotjobs.engine.reactions import Reported
from iotjobs.transports.mqtt_messages import Received

BURST_S = 5  # of the rate

Who = tuple[str, str]  # `thing` or `external_id`, and its value


@dataclass(slots=True)
class Held:
    """A report that waits for its token; `message` is the newest that went into it."""

    message: Received
    reported: Reported

    def add(self, message: Received, reported: Reported) -> None:
        """Merge a later one into it; the message before has no effect of its own any more."""
        self.message.ack()
        before = self.reported
        self.message = message
        self.reported = Reported(
            {**before.values, **reported.values},
            reported.report_id,
            reported.job_id,
            superseded=before.superseded + 1,
        )


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at: float


@dataclass(slots=True)
class Rates:
    """The buckets of all devices, by what names them.

    Attributes:
        per_s: reports a second, of each; 0 is any number.
        held: what waits.
    """

    per_s: float
    held: dict[Who, Held] = field(default_factory=dict)
    _buckets: dict[Who, _Bucket] = field(default_factory=dict)

    def admit(self, who: Who, message: Received, reported: Reported, now: float) -> bool:
        """Whether a report may have its effect now; else it is held. `now`: of the monotonic clock, seconds."""
        waiting = self.held.get(who)
        if waiting is not None:
            waiting.add(message, reported)
            return False
        if self._take(who, now):
            return True
        self.held[who] = Held(message, reported)
        return False

    def due(self, now: float) -> Iterator[tuple[Who, Held]]:
        """Those that have got their token."""
        for who in [who for who in self.held if self._take(who, now)]:
            yield who, self.held.pop(who)

    def wait_s(self) -> float | None:
        """When to look for those that are due; None while nothing is held."""
        return 1 / self.per_s if self.held else None

    def _take(self, who: Who, now: float) -> bool:
        if not self.per_s:
            return True
        burst = self.per_s * BURST_S
        bucket = self._buckets.get(who)
        if bucket is None:
            bucket = self._buckets[who] = _Bucket(burst, now)
        bucket.tokens = min(burst, bucket.tokens + (now - bucket.at) * self.per_s)
        bucket.at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True
