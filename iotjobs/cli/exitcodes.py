"""What the command line's exit code says; documented in `docs/reference/cli.md`, and stable."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum

from iotjobs.client.errors import (
    BadAnswer,
    ClientError,
    Conflict,
    NotAllowed,
    NotAuthenticated,
    NotFound,
    NotNow,
    Refused,
    Unreachable,
)
from iotjobs.client.shapes import Job


class ExitCode(IntEnum):
    """One word for each number."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NOT_ALLOWED = 4
    CONFLICT = 5
    UNREACHABLE = 6
    TIMED_OUT = 7
    PARTIAL = 8
    LOST = 9
    BROKEN = 70
    INTERRUPTED = 130


MEANING = {
    ExitCode.OK: "everything succeeded",
    ExitCode.FAILED: "the job failed, was canceled, or did not start in time; of several: none succeeded",
    ExitCode.USAGE: "the command or one of its values is wrong; nothing was run",
    ExitCode.NOT_FOUND: "no such object, link, operation or job; nothing was run",
    ExitCode.NOT_ALLOWED: "not authenticated, or without the right",
    ExitCode.CONFLICT: "the present state of things does not admit it",
    ExitCode.UNREACHABLE: "the server cannot be reached, or cannot take it now",
    ExitCode.TIMED_OUT: "timed out waiting; the job goes on",
    ExitCode.PARTIAL: "some jobs succeeded, others did not",
    ExitCode.LOST: "the outcome cannot be known (`lost`): it may have run",
    ExitCode.BROKEN: "the disk of the server did not keep what was written; it ended",
    ExitCode.INTERRUPTED: "interrupted by Ctrl-C; jobs that were started go on",
}

# Of several different codes the one that leaves most open is told: a script must not take it for a failure.
_OPEN = (ExitCode.INTERRUPTED, ExitCode.UNREACHABLE, ExitCode.TIMED_OUT, ExitCode.LOST)
_CLOSED = (
    ExitCode.NOT_ALLOWED,
    ExitCode.FAILED,
    ExitCode.CONFLICT,
    ExitCode.NOT_FOUND,
    ExitCode.USAGE,
)

_OF_ERROR: dict[type[ClientError], ExitCode] = {
    Refused: ExitCode.USAGE,
    NotFound: ExitCode.NOT_FOUND,
    NotAuthenticated: ExitCode.NOT_ALLOWED,
    NotAllowed: ExitCode.NOT_ALLOWED,
    Conflict: ExitCode.CONFLICT,
    NotNow: ExitCode.UNREACHABLE,
    Unreachable: ExitCode.UNREACHABLE,
    BadAnswer: ExitCode.UNREACHABLE,
}


def of_error(error: ClientError | ValueError) -> ExitCode:
    """The code for a call that was not answered as hoped, or not made for a value that is wrong."""
    return ExitCode.USAGE if isinstance(error, ValueError) else _OF_ERROR[type(error)]


def of_job(job: Job) -> ExitCode:
    """The code for a job that was waited for."""
    if not job.ended:
        return ExitCode.TIMED_OUT
    if job.outcome == "succeeded":
        return ExitCode.OK
    return ExitCode.LOST if job.outcome == "lost" else ExitCode.FAILED


def together(codes: Iterable[ExitCode]) -> ExitCode:
    """One code for several jobs."""
    seen = set(codes)
    for code in _OPEN:
        if code in seen:
            return code
    if ExitCode.OK in seen and len(seen) > 1:
        return ExitCode.PARTIAL
    return next((code for code in _CLOSED if code in seen), ExitCode.OK)
