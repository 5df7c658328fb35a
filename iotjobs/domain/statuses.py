"""The life of a job: which status may follow which, and what each outcome means.

The one table of transitions. `iotjobs.store.jobs` is the only writer of a status and asks
`may_become` before it writes. Statuses and outcomes are stored by name.
"""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Where a job is in its life; the comment says who moves it on."""

    PENDING = "PENDING"  # the worker that begins an attempt, a device, a person, the clock (expiry)
    RUNNING = "RUNNING"  # the worker that settles it, a device's answer, a deadline, the rescuer
    STOPPING = "STOPPING"  # the worker, once the device's process group is gone
    STOPPED = "STOPPED"  # a person (resume, cancel) or the clock (expiry)
    CANCELING = "CANCELING"  # the worker, once the device's process group is gone
    CANCELED = "CANCELED"  # nobody: an end
    FINISHED = "FINISHED"  # nobody: an end


class Outcome(StrEnum):
    """How a job ended."""

    SUCCEEDED = "succeeded"  # exit code 0; the broker acknowledged, or the device answered
    FAILED = "failed"  # another exit code; the device said no; nothing could be delivered
    TIMED_OUT = "timed_out"  # our deadline passed; no answer in time
    REJECTED = "rejected"  # refused by us before sending, or by the device
    EXPIRED = "expired"  # still waiting when its time to live ended
    LOST = "lost"  # it may have run and nobody can know
    CANCELED = "canceled"  # canceled before or while running


# An attempt is under way.
ACTIVE = frozenset({Status.RUNNING, Status.STOPPING, Status.CANCELING})
ENDED = frozenset({Status.CANCELED, Status.FINISHED})

TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.PENDING: frozenset({Status.RUNNING, Status.STOPPED, Status.CANCELED, Status.FINISHED}),
    Status.RUNNING: frozenset({Status.PENDING, Status.STOPPING, Status.CANCELING, Status.FINISHED}),
    Status.STOPPING: frozenset({Status.STOPPED, Status.CANCELING, Status.FINISHED}),
    Status.CANCELING: frozenset({Status.CANCELED, Status.FINISHED}),
    Status.STOPPED: frozenset({Status.PENDING, Status.CANCELED, Status.FINISHED}),
    Status.CANCELED: frozenset(),
    Status.FINISHED: frozenset(),
}


def may_become(actual: Status, wanted: Status) -> bool:
    """Whether a job of status `actual` may get the status `wanted`."""
    return wanted in TRANSITIONS[actual]


def has_errors(outcome: Outcome | None) -> bool:
    """Whether an outcome counts as an error: it is known and neither succeeded nor canceled."""
    return outcome not in (None, Outcome.SUCCEEDED, Outcome.CANCELED)
