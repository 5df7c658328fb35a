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
# Messages that wait with one report: what is not acknowledged takes places of all devices.
EARLIER = 16
_MOST = 10_000  # buckets, before those that are full again are let go of

Who = tuple[str, str]  # `thing` or `external_id`, and its value


@dataclass(slots=True)
class Held:
    """A report that waits for its token.

    Attributes:
        message: the newest that went into it.
        earlier: those before that have values which no later one has.
    """

    message: Received
    reported: Reported
    earlier: list[Received] = field(default_factory=list)

    def add(self, message: Received, reported: Reported) -> None:
        """Merge a later one into it; messages that then have no effect any more are acknowledged."""
        before = self.reported
        self.earlier.append(self.message)
        if before.values.keys() <= reported.values.keys():
            for superseded in self.earlier:
                superseded.ack()
            self.earlier.clear()
        self.message = message
        self.reported = Reported(
            {**before.values, **reported.values},
            reported.report_id,
            reported.job_id,
            superseded=before.superseded + 1,
            earlier_ids=before.earlier_ids
            if before.report_id is None
            else (*before.earlier_ids, before.report_id),
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
    _most: int = 0

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
        for who in [
            who for who, held in self.held.items() if len(held.earlier) >= EARLIER or self._take(who, now)
        ]:
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
            if len(self._buckets) >= max(_MOST, self._most):
                self._let_go(now)
            bucket = self._buckets[who] = _Bucket(burst, now)
        bucket.tokens = min(burst, bucket.tokens + (now - bucket.at) * self.per_s)
        bucket.at = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def _let_go(self, now: float) -> None:
        """Forget the buckets that are full again: anybody may make up names."""
        self._buckets = {who: bucket for who, bucket in self._buckets.items() if now - bucket.at < BURST_S}
        self._most = 2 * len(self._buckets)  # not at each new name, when there are many at once
