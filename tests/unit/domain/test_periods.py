from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotjobs.domain.periods import Period

MINUTE = 60_000
OFFICE = Period(frozenset(range(5)), time(8), time(17, 30), "Europe/Berlin")
NIGHT = Period(frozenset({4}), time(22), time(6), "America/New_York")


def ms(text: str, zone: str = "UTC") -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


@pytest.mark.parametrize(
    ("period", "at", "covered", "edge"),
    [
        (OFFICE, "2026-11-27 08:00", True, "2026-11-27 17:30"),  # a Friday
        (OFFICE, "2026-11-27 07:59", False, "2026-11-27 08:00"),
        (OFFICE, "2026-11-27 17:30", False, "2026-11-30 08:00"),
        (OFFICE, "2026-11-28 12:00", False, "2026-11-30 08:00"),
        (NIGHT, "2026-11-27 23:00", True, "2026-11-28 06:00"),
        (NIGHT, "2026-11-28 05:59", True, "2026-11-28 06:00"),
        (NIGHT, "2026-11-28 06:00", False, "2026-12-04 22:00"),
        # Berlin's clock went from 02:00 to 03:00, and from 03:00 back to 02:00.
        (
            Period(begin=time(2, 30), end=time(4), zone="Europe/Berlin"),
            "2026-03-29 03:29",
            False,
            "2026-03-29 03:30",
        ),
        (
            Period(begin=time(1), end=time(2, 30), zone="Europe/Berlin"),
            "2026-10-25 01:00",
            True,
            "2026-10-25 02:30",
        ),
    ],
)
def test_hours_are_those_of_the_place(period: Period, at: str, covered: bool, edge: str) -> None:
    now = ms(at, period.zone)
    assert period.covers(now) is covered
    assert period.next_edge(now) == ms(edge, period.zone)


def test_a_period_of_every_hour_has_no_edge_and_one_of_no_day_is_never() -> None:
    assert (Period().covers(0), Period().next_edge(0)) == (True, None)
    assert (Period(frozenset()).covers(0), Period(frozenset()).next_edge(0)) == (False, None)


def test_two_days_that_touch_are_one_period() -> None:
    weekend = Period(frozenset({5, 6}))
    friday = ms("2026-11-27 12:00")
    begin = weekend.next_edge(friday)
    assert begin == ms("2026-11-28 00:00")
    assert weekend.next_edge(begin) == ms("2026-11-30 00:00")


@given(
    days=st.frozensets(st.integers(0, 6)),
    begin=st.times(),
    end=st.times(),
    zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
    at=st.integers(ms("2026-01-01"), ms("2027-12-31")),
)
def test_nothing_changes_before_the_next_edge(
    days: frozenset[int], begin: time, end: time, zone: str, at: int
) -> None:
    period = Period(days, begin.replace(microsecond=0), end.replace(microsecond=0), zone)
    edge = period.next_edge(at)
    until = at + 8 * 1440 * MINUTE if edge is None else edge
    assert {period.covers(at + (until - at) * part // 97) for part in range(97)} == {period.covers(at)}
    if edge is not None:
        assert period.covers(edge) is not period.covers(at)


def around(period: Period, now: int) -> Iterator[tuple[int, int]]:
    """Its intervals near a moment, counted out anew."""
    zone = ZoneInfo(period.zone)
    today = (EPOCH + timedelta(milliseconds=now)).astimezone(zone).date()
    for ahead in range(-1, 9):
        day = today + timedelta(days=ahead)
        if day.weekday() in period.days:
            last = day if period.end > period.begin else day + timedelta(days=1)
            begin, end = (
                datetime.combine(on, at, zone) for on, at in ((day, period.begin), (last, period.end))
            )
            yield (begin - EPOCH) // timedelta(milliseconds=1), (end - EPOCH) // timedelta(milliseconds=1)


def covers(period: Period, now: int) -> bool:
    return any(begin <= now < end for begin, end in around(period, now))


def next_edge(period: Period, now: int) -> int | None:
    edges = [edge for interval in around(period, now) for edge in interval]
    later = [edge for edge in edges if edge > now and covers(period, edge) != covers(period, edge - 1)]
    return min(later, default=None)


EPOCH = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
# Each with a day on which its clock was set: by an hour, half an hour, at midnight, by a whole day.
SET = [
    ("Europe/Berlin", "2026-03-29 02:00"),
    ("Europe/Berlin", "2026-10-25 02:00"),
    ("America/New_York", "2026-11-01 01:30"),
    ("Australia/Lord_Howe", "2026-10-04 02:00"),
    ("America/Sao_Paulo", "2018-11-04 00:00"),
    ("Pacific/Apia", "2011-12-31 00:00"),
    ("Asia/Kathmandu", "2026-05-01 12:00"),
]
half_hours = st.integers(0, 47).map(lambda half: time(half // 2, 30 * (half % 2)))


@given(
    st.sampled_from(SET),
    st.frozensets(st.integers(0, 6)),
    half_hours,
    half_hours,
    st.integers(-3 * 48, 3 * 48),
    st.sampled_from([-1, 0, 1, 600_000]),
)
def test_what_is_kept_of_a_period_is_what_counting_it_out_says(
    at: tuple[str, str], days: frozenset[int], begin: time, end: time, halves: int, beside: int
) -> None:
    period = Period(days, begin, end, at[0])
    now = ms(at[1], at[0]) + halves * 30 * MINUTE + beside
    assert (period.covers(now), period.next_edge(now)) == (covers(period, now), next_edge(period, now))
