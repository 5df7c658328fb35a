from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotjobs.domain.statuses import ENDED, TRANSITIONS, Outcome, Status, has_errors, may_become

# As the design's table has them, written down a second time on purpose.
ALLOWED = {
    "PENDING": {"RUNNING", "STOPPED", "CANCELED", "FINISHED"},
    "RUNNING": {"PENDING", "STOPPING", "CANCELING", "FINISHED"},
    "STOPPING": {"STOPPED", "CANCELING", "FINISHED"},
    "CANCELING": {"CANCELED", "FINISHED"},
    "STOPPED": {"PENDING", "CANCELED", "FINISHED"},
    "CANCELED": set(),
    "FINISHED": set(),
}


@pytest.mark.parametrize("wanted", list(Status))
@pytest.mark.parametrize("actual", list(Status))
def test_every_pair_of_statuses_is_decided_as_the_design_says(actual: Status, wanted: Status) -> None:
    assert may_become(actual, wanted) is (wanted.value in ALLOWED[actual.value])


def test_every_status_is_in_the_table_and_only_the_ends_lead_nowhere() -> None:
    assert set(TRANSITIONS) == set(Status)
    assert {status for status, following in TRANSITIONS.items() if not following} == ENDED


@given(choices=st.lists(st.integers(0, 3), min_size=1, max_size=60))
def test_a_random_walk_ends_only_in_an_end_and_never_leaves_it(choices: list[int]) -> None:
    status = Status.PENDING
    walked = [status]
    for choice in choices:
        following = sorted(TRANSITIONS[status])
        if not following:
            break
        status = following[choice % len(following)]
        walked.append(status)

    assert all(may_become(before, after) for before, after in itertools.pairwise(walked))
    assert not ENDED & set(walked[:-1])
    assert not any(may_become(status, other) for other in Status if status in ENDED)


@given(start=st.sampled_from(sorted(set(Status) - ENDED)))
def test_from_every_status_an_end_can_be_reached(start: Status) -> None:
    reached, waiting = {start}, [start]
    while waiting:
        found = TRANSITIONS[waiting.pop()] - reached
        reached |= found
        waiting += found

    assert reached >= ENDED


@pytest.mark.parametrize(
    ("outcome", "counts"),
    [
        (None, False),
        (Outcome.SUCCEEDED, False),
        (Outcome.CANCELED, False),
        (Outcome.FAILED, True),
        (Outcome.TIMED_OUT, True),
        (Outcome.REJECTED, True),
        (Outcome.EXPIRED, True),
        (Outcome.LOST, True),
    ],
)
def test_what_counts_as_an_error(outcome: Outcome | None, counts: bool) -> None:
    assert has_errors(outcome) is counts


def test_statuses_and_outcomes_are_stored_by_the_words_of_the_record() -> None:
    assert [status.value for status in Status] == [
        "PENDING",
        "RUNNING",
        "STOPPING",
        "STOPPED",
        "CANCELING",
        "CANCELED",
        "FINISHED",
    ]
    assert {outcome.value for outcome in Outcome} == {
        "succeeded",
        "failed",
        "timed_out",
        "rejected",
        "expired",
        "lost",
        "canceled",
    }
