from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotjobs.domain.jobs import Cause, Delivery, Ending, Job, JobType, PendingReason, Transport
from iotjobs.domain.statuses import Outcome, Status

BORN = 1_795_328_126_916


def a_job(**members: Any) -> Job:
    values: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
    values |= {
        "seq": 7,
        "id": "0" * 32,
        "type": JobType.EXECUTE_ACTION,
        "status": Status.PENDING,
        "timestamp": BORN,
        "attempt": 0,
        "data": {},
    }
    return Job(**{**values, **members})


@pytest.mark.parametrize(
    ("started_at", "ended_at", "now", "waiting", "duration"),
    [
        (None, None, BORN + 500, 500, None),
        (BORN + 12, None, BORN + 500, 12, 488),
        (BORN + 12, BORN + 852, BORN + 9_000, 12, 840),
        (None, BORN + 60, BORN + 9_000, 60, None),
        (BORN, BORN, BORN + 9_000, 0, 0),
    ],
)
def test_waiting_ends_with_the_first_start_and_duration_with_the_end(
    started_at: int | None, ended_at: int | None, now: int, waiting: int, duration: int | None
) -> None:
    job = a_job(started_at=started_at, ended_at=ended_at)

    assert job.waiting_ms(now) == waiting
    assert job.duration_ms(now) == duration


@given(
    started=st.none() | st.integers(BORN - 10_000, BORN + 10_000),
    ended=st.none() | st.integers(BORN - 10_000, BORN + 10_000),
    now=st.integers(BORN - 10_000, BORN + 10_000),
)
def test_a_clock_that_jumped_back_makes_no_time_negative(
    started: int | None, ended: int | None, now: int
) -> None:
    job = a_job(started_at=started, ended_at=ended)

    assert job.waiting_ms(now) >= 0
    assert (job.duration_ms(now) is None) == (started is None)
    assert (job.duration_ms(now) or 0) >= 0


def test_a_job_with_a_deadline_is_parked() -> None:
    attached = a_job(status=Status.RUNNING, attempt=1)

    assert not attached.parked
    assert replace(attached, deadline_at=BORN + 30_000).parked


def test_an_ending_without_words_has_none() -> None:
    assert Ending(Outcome.SUCCEEDED) == Ending(Outcome.SUCCEEDED, None, None, None)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (Cause, "user trigger property schedule rollout retry external"),
        (PendingReason, "lane queue offline window approval start_at retry drained"),
        (Delivery, "queued sent acknowledged taken started ended"),
        (Transport, "ssh mqtt agent local"),
    ],
)
def test_the_words_are_those_of_the_design(words: Any, expected: str) -> None:
    assert [word.value for word in words] == expected.split()
