"""What a person's cancel, stop, resume and retry mean for a job as it is: pure decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import Any, assert_never

from iotjobs.domain.errors import BadRequest, Conflict, FieldError
from iotjobs.domain.jobs import Ending, Job, Transport
from iotjobs.domain.statuses import Outcome, Status

# What may be left of a run on its device, when nobody could prove that nothing is.
NOT_CONFIRMED = "notConfirmed"
# A person has asked for the end of the attempt under way.
ASKED = frozenset({Status.CANCELING, Status.STOPPING})
# How a run ends that did not end by itself.
_CUT_SHORT = frozenset({Outcome.LOST, Outcome.CANCELED})


class Step(StrEnum):
    """What follows a request."""

    NONE = "none"  # it is so already, or on its way
    AT_ONCE = "at once"  # no worker has anything to do with it
    BY_WORKER = "by worker"  # who runs it ends it on the device first


def cancel(job: Job) -> Step:
    """What a cancel of this job does.

    Raises:
        Conflict: it has ended otherwise, or must not be canceled.
    """
    match job.status:
        case Status.CANCELED | Status.CANCELING:
            return Step.NONE
        case Status.FINISHED:
            raise Conflict(f"job {job.id} has ended ({job.outcome}) and cannot be canceled")
        case Status.PENDING | Status.STOPPED:
            _refuse_unabortable(job)
            return Step.AT_ONCE
        case Status.RUNNING:
            _refuse_unabortable(job)
            return Step.BY_WORKER if attached(job) else Step.AT_ONCE
        case Status.STOPPING:
            return Step.BY_WORKER
    assert_never(job.status)


def stop(job: Job) -> Step:
    """What a stop of this job does.

    Raises:
        Conflict: it has ended, is being canceled, or is a message under way.
    """
    match job.status:
        case Status.STOPPED | Status.STOPPING:
            return Step.NONE
        case Status.CANCELED | Status.FINISHED:
            raise Conflict(f"job {job.id} has ended ({job.outcome}) and cannot be stopped")
        case Status.CANCELING:
            raise Conflict(f"job {job.id} is being canceled")
        case Status.PENDING:
            _refuse_unabortable(job)
            return Step.AT_ONCE
        case Status.RUNNING:
            _refuse_unabortable(job)
            if job.transport not in (Transport.SSH, Transport.LOCAL):
                raise Conflict(
                    f"job {job.id} is under way and has no process to be stopped: cancel it, or let it end"
                )
            return Step.BY_WORKER
    assert_never(job.status)


def check_resume(job: Job, *, confirmed: bool, idempotent: bool, sent: bool) -> None:
    """Refuse a resume that is not possible, or that nobody has thought about.

    Args:
        job: as it is.
        confirmed: the caller knows that it runs anew.
        idempotent: the operation may be repeated.
        sent: some attempt of it may have reached its device.

    Raises:
        Conflict: says why.
    """
    if job.status is not Status.STOPPED:
        raise Conflict(f"job {job.id} is {job.status}: only a STOPPED job can be resumed")
    if sent and not idempotent and not confirmed:
        raise Conflict(
            f"job {job.id} has run before it was stopped, and a resume runs it anew from its beginning;"
            ' its operation is not idempotent: send {"confirm": true} if that is wanted'
        )


def retry_args(job: Job, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a new job that repeats this one: its own, and the erased ones as they are given.

    Raises:
        Conflict: it has not ended, or is no run of an operation.
        BadRequest: an erased argument is not given, or something else is; names each.
    """
    if not job.ended:
        raise Conflict(f"job {job.id} is {job.status}: only a job that has ended can be run again")
    if job.operation_id is None:
        raise Conflict(f"job {job.id} is no run of an operation")
    erased = list(job.data.get("secret_args", ()))
    problems = [
        FieldError(f"args.{name}", "a secret argument is erased with its job's end: give it again")
        for name in erased
        if name not in given
    ]
    problems += [
        FieldError(f"args.{name}", "only erased secret arguments can be given")
        for name in given
        if name not in erased
    ]
    if problems:
        detail = "; ".join(f"{problem.field}: {problem.message}" for problem in problems)
        raise BadRequest(detail, errors=tuple(problems))
    return {**job.data.get("args", {}), **given}


def attached(job: Job) -> bool:
    """Whether a worker holds the attempt under way: without one it lives in its row and its deadline."""
    return job.worker_id is not None and not job.parked


def nothing_left(job: Job) -> bool | None:
    """Whether nothing of a job is left where it executes, for a job that nobody runs.

    False: something may be. None: nobody can tell, as of a message that has left.
    """
    if job.transport in (Transport.SSH, Transport.LOCAL):
        return job.nonce is None
    return True if job.sent_at is None else None


def ending_when_asked(status: Status, ending: Ending, *, gone: bool | None) -> Ending | None:
    """How an attempt ends whose job was to be canceled or stopped meanwhile.

    What ended by itself has its own end, whatever was asked for: its exit came before our signal. A
    stop is proven, or the end is not known.

    Args:
        status: CANCELING or STOPPING.
        ending: as the attempt's worker, or its rescuer, saw it.
        gone: of `nothing_left`.

    Returns:
        The job's end; None when it is STOPPED.
    """
    if ending.outcome not in _CUT_SHORT:
        return ending
    if status is Status.STOPPING:
        return None if gone else replace(ending, outcome=Outcome.LOST)
    if gone is False:
        return replace(ending, outcome=Outcome.CANCELED)
    return Ending(Outcome.CANCELED)


def _refuse_unabortable(job: Job) -> None:
    if not job.abortable:
        raise Conflict(f"job {job.id} cannot be ended before its time")
