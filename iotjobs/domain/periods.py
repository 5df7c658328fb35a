"""When a condition counts: hours of days of the week, as the clock of a place shows them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
# Zones and days are counted out once a day for each period, at the cost of a hundred conditions.
_DAYS_KEPT = 4096
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
        return any(begin <= now < end for begin, end in _around(self, self._day_of(now)))

    def next_edge(self, now: int) -> int | None:
        """The next moment at which `covers` may change; None for a period that is always or never."""
        return next((edge for edge in _edges(self, self._day_of(now)) if edge > now), None)

    def _day_of(self, now: int) -> date:
        return (_EPOCH + now * _MS).astimezone(ZoneInfo(self.zone)).date()


@lru_cache(_DAYS_KEPT)
def _around(period: Period, today: date) -> tuple[tuple[int, int], ...]:
    """The intervals that begin between yesterday and in eight days."""
    zone, found = ZoneInfo(period.zone), []
    for ahead in range(-1, 9):
        day = today + timedelta(days=ahead)
        if day.weekday() in period.days:
            last = day if period.end > period.begin else day + timedelta(days=1)
            found.append((_moment(day, period.begin, zone), _moment(last, period.end, zone)))
    return tuple(found)


@lru_cache(_DAYS_KEPT)
def _edges(period: Period, today: date) -> tuple[int, ...]:
    """Those of their ends at which `covers` changes, in order: where one follows another at once it does not."""
    ends = sorted({end for interval in _around(period, today) for end in interval})
    return tuple(end for end in ends if period.covers(end) != period.covers(end - 1))


def _moment(day: date, at: time, zone: ZoneInfo) -> int:
    return (datetime.combine(day, at, zone) - _EPOCH) // _MS
