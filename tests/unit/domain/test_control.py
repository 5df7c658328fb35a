from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iotjobs.domain import control
from iotjobs.domain.control import NOT_CONFIRMED, Step
from iotjobs.domain.errors import BadRequest, Conflict
from iotjobs.domain.jobs import Cause, Ending, Job, JobType, Transport
from iotjobs.domain.statuses import ENDED, Outcome, Status

LOST = Ending(Outcome.LOST, error_code=NOT_CONFIRMED, error_message="could not confirm")


def job(status: Status = Status.PENDING, **members: Any) -> Job:
    empty: dict[str, Any] = dict.fromkeys(Job.__dataclass_fields__)
    known = {"id": "j", "type": JobType.EXECUTE_ACTION, "cause": Cause.USER, "transport": Transport.SSH}
    worker = "w1" if status in (Status.RUNNING, Status.STOPPING, Status.CANCELING) else None
    outcome = Outcome.CANCELED if status is Status.CANCELED else Outcome.FAILED if status in ENDED else None
    facts = {"status": status, "outcome": outcome, "worker_id": worker, "abortable": True, "data": {}}
    return Job(**{**empty, **known, **facts, **members})


@pytest.mark.parametrize(
    ("status", "step"),
    [
        (Status.PENDING, Step.AT_ONCE),
        (Status.STOPPED, Step.AT_ONCE),
        (Status.RUNNING, Step.BY_WORKER),
        (Status.STOPPING, Step.BY_WORKER),
        (Status.CANCELING, Step.NONE),
        (Status.CANCELED, Step.NONE),
    ],
)
def test_what_a_cancel_does(status: Status, step: Step) -> None:
    assert control.cancel(job(status)) is step


@pytest.mark.parametrize(
    ("status", "step"),
    [
        (Status.PENDING, Step.AT_ONCE),
        (Status.RUNNING, Step.BY_WORKER),
        (Status.STOPPING, Step.NONE),
        (Status.STOPPED, Step.NONE),
    ],
)
def test_what_a_stop_does(status: Status, step: Step) -> None:
    assert control.stop(job(status)) is step


@pytest.mark.parametrize(
    ("ask", "given"),
    [
        (control.cancel, job(Status.FINISHED)),
        (control.cancel, job(Status.RUNNING, abortable=False)),
        (control.cancel, job(Status.PENDING, abortable=False)),
        (control.stop, job(Status.FINISHED)),
        (control.stop, job(Status.CANCELED)),
        (control.stop, job(Status.CANCELING)),
        (control.stop, job(Status.PENDING, abortable=False)),
        (control.stop, job(Status.RUNNING, transport=Transport.MQTT)),
    ],
)
def test_what_is_refused(ask: Any, given: Job) -> None:
    with pytest.raises(Conflict):
        ask(given)


@pytest.mark.parametrize("members", [{"deadline_at": 5}, {"worker_id": None}])
def test_what_no_worker_holds_is_canceled_at_once(members: dict[str, Any]) -> None:
    assert control.cancel(job(Status.RUNNING, transport=Transport.MQTT, **members)) is Step.AT_ONCE


@pytest.mark.parametrize(
    ("confirmed", "idempotent", "sent", "refused"),
    [
        (False, False, True, True),
        (True, False, True, False),
        (False, True, True, False),
        (False, False, False, False),
    ],
)
def test_a_resume_of_what_has_run_needs_a_word(
    confirmed: bool, idempotent: bool, sent: bool, refused: bool
) -> None:
    given = {"confirmed": confirmed, "idempotent": idempotent, "sent": sent}
    if not refused:
        control.check_resume(job(Status.STOPPED), **given)
        return
    with pytest.raises(Conflict, match="confirm"):
        control.check_resume(job(Status.STOPPED), **given)


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.STOPPED])
def test_only_what_is_stopped_is_resumed(status: Status) -> None:
    with pytest.raises(Conflict, match="STOPPED"):
        control.check_resume(job(status), confirmed=True, idempotent=True, sent=False)


def test_a_retry_has_the_same_arguments_and_the_erased_ones_anew() -> None:
    ended = job(
        Status.FINISHED, operation_id="o", data={"args": {"a": 1, "key": "•••"}, "secret_args": ["key"]}
    )

    assert control.retry_args(ended, {"key": "k"}) == {"a": 1, "key": "k"}
    with pytest.raises(BadRequest) as refused:
        control.retry_args(ended, {"a": 2})
    assert {error.field for error in refused.value.errors} == {"args.key", "args.a"}


@pytest.mark.parametrize("given", [job(Status.RUNNING, operation_id="o"), job(Status.FINISHED)])
def test_what_cannot_be_run_again(given: Job) -> None:
    with pytest.raises(Conflict):
        control.retry_args(given, {})


@pytest.mark.parametrize(
    ("members", "gone"),
    [
        ({"nonce": None}, True),
        ({"nonce": "n"}, False),
        ({"transport": Transport.LOCAL, "nonce": "n"}, False),
        ({"transport": Transport.MQTT, "nonce": "n", "sent_at": None}, True),
        ({"transport": Transport.MQTT, "nonce": "n", "sent_at": 5}, None),
    ],
)
def test_what_is_known_of_a_device(members: dict[str, Any], gone: bool | None) -> None:
    assert control.nothing_left(job(**members)) is gone


@pytest.mark.parametrize("status", sorted(control.ASKED))
@pytest.mark.parametrize(
    "outcome", [Outcome.SUCCEEDED, Outcome.FAILED, Outcome.TIMED_OUT, Outcome.REJECTED, Outcome.EXPIRED]
)
@pytest.mark.parametrize("gone", [True, False, None])
def test_what_ended_by_itself_has_its_own_end(status: Status, outcome: Outcome, gone: bool | None) -> None:
    ending = Ending(outcome, exit_code=1)

    assert control.ending_when_asked(status, ending, gone=gone) is ending


def test_a_cancel_is_a_cancel_and_says_what_could_not_be_confirmed() -> None:
    status = Status.CANCELING

    assert control.ending_when_asked(status, LOST, gone=True) == Ending(Outcome.CANCELED)
    assert control.ending_when_asked(status, LOST, gone=None) == Ending(Outcome.CANCELED)
    assert control.ending_when_asked(status, LOST, gone=False) == replace(LOST, outcome=Outcome.CANCELED)


def test_a_stop_is_proven_or_the_end_is_not_known() -> None:
    status = Status.STOPPING

    assert control.ending_when_asked(status, LOST, gone=True) is None
    assert control.ending_when_asked(status, LOST, gone=False) == LOST
    assert control.ending_when_asked(status, LOST, gone=None) == LOST
