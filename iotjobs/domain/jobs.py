"""The job: its words, its row as the engine sees it, and what is computed from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from iotjobs.domain.statuses import ENDED, Outcome, Status


class JobType(StrEnum):
    """The kinds of work of the job record (seed 000), plus ours: CUSTOM."""

    EXECUTE_ACTION = "EXECUTE_ACTION"
    EXECUTE_LISTENER = "EXECUTE_LISTENER"
    START_APP = "START_APP"  # the site is opened
    STOP_APP = "STOP_APP"  # the site is drained; ends when nothing runs any more
    CUSTOM = "CUSTOM"


class Cause(StrEnum):
    """What made the job appear."""

    USER = "user"
    TRIGGER = "trigger"
    PROPERTY = "property"
    SCHEDULE = "schedule"
    ROLLOUT = "rollout"
    RETRY = "retry"
    EXTERNAL = "external"


class PendingReason(StrEnum):
    """What a PENDING job waits for."""

    LANE = "lane"
    QUEUE = "queue"
    OFFLINE = "offline"
    WINDOW = "window"
    APPROVAL = "approval"
    START_AT = "start_at"
    RETRY = "retry"
    DRAINED = "drained"


class Delivery(StrEnum):
    """How far a message came (mqtt, agent)."""

    QUEUED = "queued"
    SENT = "sent"
    ACKNOWLEDGED = "acknowledged"
    TAKEN = "taken"
    STARTED = "started"
    ENDED = "ended"


class Transport(StrEnum):
    """The way to the device."""

    SSH = "ssh"
    MQTT = "mqtt"
    AGENT = "agent"
    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Job:
    """One job's row. Moments (`timestamp`, `*_at`) are milliseconds since the epoch.

    Attributes:
        id: UUIDv7, 32 hex digits. `seq` is the same job's increasing integer.
        target_id: the object that the job executes on (a link's end), or None.
        started_at: first time RUNNING; `begun_at`: the newest attempt; `ended_at`: CANCELED or FINISHED.
        sent_at: the newest attempt may have reached the device; None means nothing was sent.
        deadline_at: when a parked attempt times out; None for attached ones.
        start_at: not before this moment (asked for, or the back-off of a retry).
        ttl_ms: how long it may wait in all, before it expires.
        nonce, process_group, sent_to: of the newest attempt that was sent, to find its processes on the
            device, and to know it again: the addresses on the way, None where they are not on record. The
            nonce of a PENDING job is None when no process of an earlier attempt can be left there.
        lane: jobs of one lane run one at a time: the object, for ssh and local; None = no lane.
        worker_id: who holds the newest attempt; of a job at rest, who has yet to find out what it left on its device.
        output_pruned_at: when what it wrote was deleted, because it had been kept long enough.
        cancel: `by` (a user's id), `at`, `reason`, and `confirmed`: nothing of it is left on the device;
            None while that is not known, or when nobody can tell.
    """

    seq: int
    id: str
    type: JobType
    label: str
    operation_id: str | None
    operation_name: str | None
    operation_type: str | None
    operation_version: int | None
    transport: Transport | None
    owner_id: str
    owner_type: int
    owner_name: str
    target_id: str | None
    user_id: str | None
    run_by_id: str | None
    run_by_name: str | None
    cause: Cause
    cause_key: str | None
    parent_id: str | None
    retry_of: str | None
    status: Status
    outcome: Outcome | None
    pending_reason: PendingReason | None
    error_code: str | None
    error_message: str | None
    progress: dict[str, Any] | None
    delivery: Delivery | None
    timestamp: int
    start_at: int | None
    started_at: int | None
    begun_at: int | None
    ended_at: int | None
    expires_at: int | None
    ttl_ms: int | None
    sent_at: int | None
    deadline_at: int | None
    attempt: int
    worker_id: str | None
    nonce: str | None
    process_group: int | None
    sent_to: str | None
    exit_code: int | None
    lane: str | None
    queue: str
    priority: int
    low_priority: bool
    cancel: dict[str, Any] | None
    process_meta: dict[str, Any] | None
    data: dict[str, Any]
    results_count: int
    output_bytes: int
    output_truncated: bool
    output_pruned_at: int | None
    transient: bool
    abortable: bool

    @property
    def ended(self) -> bool:
        """Whether nothing will change its status any more."""
        return self.status in ENDED

    @property
    def parked(self) -> bool:
        """Whether the attempt under way holds no worker: it lives in its row and its deadline."""
        return self.deadline_at is not None

    def waiting_ms(self, now: int) -> int:
        """How long it waited for its first start, or waits."""
        return max(0, (self.started_at or self.ended_at or now) - self.timestamp)

    def duration_ms(self, now: int) -> int | None:
        """From the first start to the end, or to now; None before the start."""
        if self.started_at is None:
            return None
        return max(0, (self.ended_at or now) - self.started_at)


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ends its job.

    Attributes:
        error_code: stable camelCase word, with `error_message` a sentence for a person.
    """

    outcome: Outcome
    exit_code: int | None = None
    error_code: str | None = None
    error_message: str | None = None
