"""The job record as JSON: documented fields first, exactly as seed 002 has them (design §3)."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from iotjobs import clock
from iotjobs.domain.jobs import Cause, Delivery, Job, JobType, PendingReason, Transport
from iotjobs.domain.operations import OperationType
from iotjobs.domain.statuses import Outcome, Status, has_errors
from iotjobs.store.reads import JobRecord


class CommandDescription(BaseModel):
    """What a script or program did."""

    exitCode: int | None
    stdout: str
    stderr: str


class MessageDescription(BaseModel):
    """What an mqtt operation sent."""

    topic: str
    message: str


class ResultOut(BaseModel):
    """A custom result."""

    payload: dict[str, Any]
    by: str = Field(description="id of the user, or of the device's object")
    timestamp: int = Field(description="milliseconds")


class OperationSummary(BaseModel):
    """The operation as it was when the job was made."""

    name: str
    type: OperationType
    version: int


class ErrorOut(BaseModel):
    """Why the job did not succeed."""

    code: str
    message: str


class RunBy(BaseModel):
    """Who started it."""

    id: str
    name: str | None


class OutputOut(BaseModel):
    """How much was written, and whether `description` or the store has less."""

    bytes: int = Field(description="of all attempts")
    truncated: bool
    pruned_at: str | None = Field(
        None, description="when what was kept of it was deleted by the site's limits; absent before that"
    )


class CancelOut(BaseModel):
    """A cancel of the job."""

    by: str = Field(description="id of the user")
    at: str
    reason: str | None
    confirmed: bool | None = Field(
        description="nothing of it is left on the device; false: that could not be confirmed; "
        "null: not known yet, or nobody can tell"
    )


class JobOut(BaseModel):
    """One run of one operation on one owner: the job record."""

    id: str
    operation_id: str | None
    user_id: str | None
    owner_id: str
    owner_type: int = Field(description="1 object, 2 link; 0 the site itself (START_APP, STOP_APP)")
    timestamp: int = Field(description="creation, milliseconds")
    description: CommandDescription | MessageDescription | None
    results: list[ResultOut] = Field(description="in lists the first 100, and of these 64 KiB")
    process_meta: dict[str, Any] | None
    seq: int
    type: JobType
    label: str
    operation: OperationSummary | None
    transport: Transport | None
    status: Status
    outcome: Outcome | None
    has_errors: bool
    error: ErrorOut | None
    pending_reason: PendingReason | None
    progress: dict[str, Any] | None
    delivery: Delivery | None
    waiting: int = Field(description="milliseconds before its first start")
    duration: int | None = Field(description="milliseconds since its first start")
    created_at: str
    start_date: str | None
    end_date: str | None
    start_at: str | None
    expires_at: str | None
    run_by: RunBy | None
    data: dict[str, Any]
    cause: Cause
    parent_id: str | None
    retry_of: str | None
    queue: str
    priority: int
    low_priority: bool
    attempt: int
    cancel: CancelOut | None
    transient: bool
    abortable: bool
    results_count: int = Field(description="how many there are, also where `results` shows fewer")
    output: OutputOut


def job_json(record: JobRecord, now: int) -> dict[str, Any]:
    """One job for every REST answer.

    Args:
        record: the job with its texts and results.
        now: milliseconds, for what still waits or runs.
    """
    job = record.job
    shown_whole = record.stdout.whole and record.stderr.whole and job.output_pruned_at is None
    return {
        "id": job.id,
        "operation_id": job.operation_id,
        "user_id": job.user_id,
        "owner_id": job.owner_id,
        "owner_type": int(job.owner_type),
        "timestamp": job.timestamp,
        "description": description(record),
        "results": record.results,
        "process_meta": job.process_meta,
        "seq": job.seq,
        "type": job.type,
        "label": job.label,
        "operation": _operation(job),
        "transport": job.transport,
        "status": job.status,
        "outcome": job.outcome,
        "has_errors": has_errors(job.outcome),
        "error": _error(job),
        "pending_reason": job.pending_reason,
        "progress": job.progress,
        "delivery": job.delivery,
        "waiting": job.waiting_ms(now),
        "duration": job.duration_ms(now),
        "created_at": clock.rfc3339(job.timestamp),
        "start_date": clock.rfc3339(job.started_at),
        "end_date": clock.rfc3339(job.ended_at),
        "start_at": clock.rfc3339(job.start_at),
        "expires_at": clock.rfc3339(job.expires_at),
        "run_by": None if job.run_by_id is None else {"id": job.run_by_id, "name": job.run_by_name},
        "data": job.data,
        "cause": job.cause,
        "parent_id": job.parent_id,
        "retry_of": job.retry_of,
        "queue": job.queue,
        "priority": job.priority,
        "low_priority": job.low_priority,
        "attempt": job.attempt,
        "cancel": None if job.cancel is None else {**job.cancel, "at": clock.rfc3339(job.cancel["at"])},
        "transient": job.transient,
        "abortable": job.abortable,
        "results_count": job.results_count,
        "output": {
            "bytes": job.output_bytes,
            "truncated": job.output_truncated or not shown_whole,
            **({"pruned_at": clock.rfc3339(job.output_pruned_at)} if job.output_pruned_at else {}),
        },
    }


def description(record: JobRecord) -> dict[str, Any] | None:
    """`{exitCode, stdout, stderr}`, or `{topic, message}` as sent; None until there is one."""
    job = record.job
    if job.operation_type == OperationType.MQTT:
        if job.sent_at is None or record.plan is None:
            return None
        return {"topic": record.plan["topic"], "message": record.plan["message"]}
    said = record.stdout.text or record.stderr.text or job.output_pruned_at is not None
    if job.operation_type is None or (job.exit_code is None and not said):
        return None
    return {"exitCode": job.exit_code, "stdout": record.stdout.text, "stderr": record.stderr.text}


def _operation(job: Job) -> dict[str, Any] | None:
    if job.operation_name is None:
        return None
    return {"name": job.operation_name, "type": job.operation_type, "version": job.operation_version}


def _error(job: Job) -> dict[str, Any] | None:
    return None if job.error_code is None else {"code": job.error_code, "message": job.error_message}
