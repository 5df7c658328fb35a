"""When a condition counts: hours of days of the week, as the clock of a place shows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MS = timedelta(milliseconds=1)
_EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")


@dataclass(frozen=True, slots=True)
class Period:
    """Hours that come again each week.

    A period that ends before it begins passes midnight and belongs to the day that it begins on; one that
    ends when it begins lasts a whole day. An hour that the clock leaves out begins when the clock goes on; one
    that it has twice is meant the first time.

    Attributes:
        days: on which it begins, numbers of `DAYS`.
        begin: of each day.
        end: the first moment that is not of it.
        zone: an IANA name.
    """

    days: frozenset[int] = frozenset(range(7))
    begin: time = time()
    end: time = time()
    zone: str = "UTC"

    def covers(self, now: int) -> bool:
        """Whether a moment (milliseconds) is within."""
        return any(begin <= now < end for begin, end in self._around(now))

    def next_edge(self, now: int) -> int | None:
        """The next moment at which `covers` may change; None for a period that is always or never."""
        edges = [edge for interval in self._around(now) for edge in interval]
        later = [edge for edge in edges if edge > now and self.covers(edge) != self.covers(edge - 1)]
        return min(later, default=None)

    def _around(self, now: int) -> Iterator[tuple[int, int]]:
        """The intervals that begin between yesterday and in eight days."""
        zone = ZoneInfo(self.zone)
        today = (_EPOCH + now * _MS).astimezone(zone).date()
        for ahead in range(-1, 9):
            day = today + timedelta(days=ahead)
            if day.weekday() in self.days:
                last = day if self.end > self.begin else day + timedelta(days=1)
                yield _moment(day, self.begin, zone), _moment(last, self.end, zone)


def _moment(day: date, at: time, zone: ZoneInfo) -> int:
    return (datetime.combine(day, at, zone) - _EPOCH) // _MS
