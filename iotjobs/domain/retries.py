"""What follows a failed attempt, and what follows one whose process died: two pure decisions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from iotjobs.domain.errors import DeliveryError, DeviceUnreachable, NotRecorded
from iotjobs.domain.jobs import Ending
from iotjobs.domain.statuses import Outcome


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When another attempt is made.

    Attributes:
        attempts: all tries together, 1 = no retry.
        on: `unreachable` (nothing was sent), and `failed`, `timed_out`, `lost` for operations that
            are idempotent.
        backoff_s: before the second try; doubled each time up to `max_backoff_s`.
    """

    attempts: int = 1
    on: tuple[str, ...] = ("unreachable",)
    backoff_s: float = 2.0
    max_backoff_s: float = 300.0


@dataclass(frozen=True, slots=True)
class TryAgain:
    """Another attempt, not before `after_s` seconds from now; None: at once, and in its place of the lane."""

    after_s: float | None


def backoff_s(policy: RetryPolicy, attempt: int, jitter: float) -> float:
    """Seconds to wait after attempt number `attempt` (from 1).

    Args:
        policy: the operation's.
        attempt: the one that just failed.
        jitter: uniform in 0 … 1; spreads the wait over 50 to 100 % of its full length, so that a
            thousand jobs that one broken switch failed do not come back at the same moment.
    """
    full = min(policy.max_backoff_s, policy.backoff_s * 2.0 ** min(attempt - 1, 32))
    return full * (0.5 + 0.5 * jitter)


def reason_of(ending: Ending) -> str:
    """The word of `retry.on` that an ending falls under."""
    return "unreachable" if ending.error_code == DeviceUnreachable.code else ending.outcome.value


def after_ending(
    policy: RetryPolicy, ending: Ending, *, attempt: int, idempotent: bool, jitter: float
) -> TryAgain | None:
    """Whether an attempt's ending is followed by another attempt.

    What may have run is repeated only when the operation says `idempotent`. What our own store kept from
    being sent is always repeated: no device has failed.
    """
    if ending.error_code == NotRecorded.code:
        return TryAgain(None)
    if ending.outcome in (Outcome.SUCCEEDED, Outcome.REJECTED, Outcome.CANCELED, Outcome.EXPIRED):
        return None
    if attempt >= policy.attempts:
        return None
    reason = reason_of(ending)
    if reason not in policy.on or (reason != "unreachable" and not idempotent):
        return None
    return TryAgain(backoff_s(policy, attempt, jitter))


def ending_of(error: DeliveryError) -> Ending:
    """What a delivery error means for the job when it is not tried again."""
    if error.maybe_executed:
        outcome = Outcome.LOST
    elif error.code in ("hostKeyUnknown", "hostKeyChanged"):
        outcome = Outcome.REJECTED
    else:
        outcome = Outcome.FAILED
    return Ending(outcome, error_code=error.code, error_message=error.message)


class Redelivery(StrEnum):
    """What becomes of an attached attempt whose worker is gone."""

    NEXT_ATTEMPT = "next_attempt"
    LOST = "lost"


def redelivery(*, sent: bool, idempotent: bool) -> Redelivery:
    """The one re-delivery decision: nothing sent, or harmless to repeat → again; else lost."""
    return Redelivery.NEXT_ATTEMPT if idempotent or not sent else Redelivery.LOST
