from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotjobs.domain import retries
from iotjobs.domain.errors import (
    AnswerTimeout,
    BadAnswer,
    CredentialsRefused,
    DeliveryError,
    DeviceUnreachable,
    HostKeyChanged,
    HostKeyUnknown,
    LinkLost,
    NotRecorded,
)
from iotjobs.domain.jobs import Ending
from iotjobs.domain.retries import Redelivery, RetryPolicy, TryAgain
from iotjobs.domain.statuses import Outcome

ALL = ("unreachable", "failed", "timed_out", "lost")
UNREACHABLE = Ending(Outcome.FAILED, error_code="unreachable")


def again(policy: RetryPolicy, ending: Ending, *, attempt: int = 1, idempotent: bool = False) -> bool:
    decided = retries.after_ending(policy, ending, attempt=attempt, idempotent=idempotent, jitter=0.5)
    return decided is not None


@pytest.mark.parametrize("idempotent", [False, True])
@pytest.mark.parametrize("outcome", list(Outcome))
def test_what_may_have_run_is_repeated_only_when_idempotent(outcome: Outcome, idempotent: bool) -> None:
    repeatable = {Outcome.FAILED, Outcome.TIMED_OUT, Outcome.LOST}

    decided = again(RetryPolicy(attempts=9, on=ALL), Ending(outcome, 1, "exitCode"), idempotent=idempotent)

    assert decided is (idempotent and outcome in repeatable)


@pytest.mark.parametrize("idempotent", [False, True])
def test_what_never_left_us_is_repeated_in_any_case(idempotent: bool) -> None:
    assert again(RetryPolicy(attempts=2), UNREACHABLE, idempotent=idempotent)
    assert not again(RetryPolicy(attempts=2, on=("failed",)), UNREACHABLE, idempotent=True)


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("reason", ALL[1:])
def test_each_word_of_on_stands_for_one_outcome(reason: str, outcome: Outcome) -> None:
    policy = RetryPolicy(attempts=2, on=(reason,))

    assert again(policy, Ending(outcome), idempotent=True) is (reason == outcome.value)


@given(attempts=st.integers(1, 100), attempt=st.integers(1, 200))
def test_attempts_counts_all_tries(attempts: int, attempt: int) -> None:
    assert again(RetryPolicy(attempts=attempts), UNREACHABLE, attempt=attempt) is (attempt < attempts)


def test_one_try_is_the_default() -> None:
    assert not again(RetryPolicy(), UNREACHABLE)


@given(
    base=st.floats(0, 86_400),
    most=st.floats(0, 86_400),
    attempt=st.integers(1, 10_000),
    jitter=st.floats(0, 1),
)
def test_a_backoff_is_between_half_and_all_of_its_length_and_never_over_the_most(
    base: float, most: float, attempt: int, jitter: float
) -> None:
    policy = RetryPolicy(backoff_s=base, max_backoff_s=most)
    full = retries.backoff_s(policy, attempt, 1.0)

    waited = retries.backoff_s(policy, attempt, jitter)

    assert full / 2 <= waited <= full <= most


def test_a_backoff_doubles_up_to_the_most() -> None:
    policy = RetryPolicy(backoff_s=2, max_backoff_s=300)

    assert [retries.backoff_s(policy, attempt, 1.0) for attempt in range(1, 10)] == [
        2,
        4,
        8,
        16,
        32,
        64,
        128,
        256,
        300,
    ]
    assert retries.after_ending(
        RetryPolicy(attempts=3, backoff_s=2), UNREACHABLE, attempt=2, idempotent=False, jitter=0
    ) == TryAgain(2.0)


def test_what_our_own_store_kept_from_being_sent_is_always_repeated_at_once() -> None:
    ending = retries.ending_of(NotRecorded("away"))

    assert retries.after_ending(RetryPolicy(), ending, attempt=9, idempotent=False, jitter=0) == TryAgain(
        None
    )


@pytest.mark.parametrize(
    ("error", "outcome", "code"),
    [
        (DeviceUnreachable("x"), Outcome.FAILED, "unreachable"),
        (CredentialsRefused("x"), Outcome.FAILED, "credentialsRefused"),
        (HostKeyUnknown("x"), Outcome.REJECTED, "hostKeyUnknown"),
        (HostKeyChanged("x"), Outcome.REJECTED, "hostKeyChanged"),
        (LinkLost("x"), Outcome.LOST, "linkLost"),
        (LinkLost("x", maybe_executed=False), Outcome.FAILED, "linkLost"),
        (AnswerTimeout("x"), Outcome.LOST, "noAnswer"),
        (BadAnswer("x"), Outcome.LOST, "badAnswer"),
        (DeviceUnreachable("x", maybe_executed=True), Outcome.LOST, "unreachable"),
    ],
)
def test_each_delivery_error_has_its_outcome(error: DeliveryError, outcome: Outcome, code: str) -> None:
    assert retries.ending_of(error) == Ending(outcome, None, code, "x")


@pytest.mark.parametrize(
    ("sent", "idempotent", "decided"),
    [
        (False, False, Redelivery.NEXT_ATTEMPT),
        (False, True, Redelivery.NEXT_ATTEMPT),
        (True, True, Redelivery.NEXT_ATTEMPT),
        (True, False, Redelivery.LOST),
    ],
)
def test_only_what_was_sent_and_may_not_be_repeated_is_lost(
    sent: bool, idempotent: bool, decided: Redelivery
) -> None:
    assert retries.redelivery(sent=sent, idempotent=idempotent) is decided
