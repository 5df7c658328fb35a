"""What people ask of jobs: cancel, stop, resume, retry, another priority; and their attempts and logs."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field

from iotjobs import clock
from iotjobs.domain.rights import Caller, scope_of
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.control import repeat_of
from iotjobs.inputs.job_shapes import ErrorOut, JobOut, job_json
from iotjobs.inputs.rest.answers import PREFIX, Id, json_response, listed, only
from iotjobs.inputs.rest.body import body_of
from iotjobs.inputs.rest.execute import (
    ANSWERS,
    ExchangeOf,
    Key,
    Wait,
    answer_execute,
    digest_of,
    key_of,
)
from iotjobs.inputs.rest.services import ApiServices, CallerOf, Engine, Services, authenticated
from iotjobs.inputs.shapes import Listed, Shape
from iotjobs.store import attempts, reads

router = APIRouter(tags=["jobs"], dependencies=[authenticated])


class CancelBody(Shape):
    """Why."""

    reason: str | None = Field(None, max_length=1000, description="for the record")


class NothingBody(Shape):
    """A body without members."""


class ResumeBody(Shape):
    """Whether the caller knows what a resume does."""

    confirm: bool = Field(False, description="let it run anew although it has run and is not idempotent")


class RetryBody(Shape):
    """The secret arguments, which are erased with the job's end."""

    args: dict[str, Any] = Field(default_factory=dict)


class AttemptOut(BaseModel):
    """One try of a job."""

    number: int
    worker: str | None
    started_at: str | None
    sent_at: str | None = Field(description="the device may have been reached since; null: nothing was sent")
    ended_at: str | None
    outcome: Outcome | None
    error: ErrorOut | None


class LogOut(BaseModel):
    """A line about a job."""

    timestamp: int = Field(description="milliseconds")
    level: Literal["INFO", "ERROR"]
    message: str
    additional_info: dict[str, Any] | None


Cancelling = Annotated[CancelBody, Depends(body_of(CancelBody, optional=True))]
Nothing = Annotated[NothingBody, Depends(body_of(NothingBody, optional=True))]
Resuming = Annotated[ResumeBody, Depends(body_of(ResumeBody, optional=True))]
Retrying = Annotated[RetryBody, Depends(body_of(RetryBody, optional=True))]

_ASKED: dict[int | str, dict[str, Any]] = {
    200: {"model": JobOut, "description": "The job; it is so"},
    202: {"model": JobOut, "description": "The job; what runs on the device is being ended"},
}
_JOB: dict[int | str, dict[str, Any]] = {200: {"model": JobOut}}


async def _answer(services: ApiServices, caller: Caller, job_id: str, asked: Awaitable[Status]) -> Response:
    """The job as it is once the request is on disk."""
    status = await asked
    record = await services.store.look(lambda conn: reads.job_record(conn, job_id, scope_of(caller)))
    pending = status in (Status.CANCELING, Status.STOPPING)
    return json_response(job_json(record, clock.now_ms()), 202 if pending else 200)


@router.post("/jobs/{job_id}/cancel", responses=_ASKED, dependencies=[only()])
async def cancel_job(
    services: Services, engine: Engine, caller: CallerOf, body: Cancelling, job_id: Id
) -> Response:
    """End a job: 200 when it is CANCELED, 202 while what runs on the device is being ended (CANCELING)."""
    return await _answer(services, caller, job_id, engine.control.cancel(job_id, caller, body.reason))


@router.post("/jobs/{job_id}/stop", responses=_ASKED, dependencies=[only()])
async def stop_job(
    services: Services, engine: Engine, caller: CallerOf, _body: Nothing, job_id: Id
) -> Response:
    """Set a job aside: 200 when it is STOPPED, 202 while what runs on the device is being ended (STOPPING)."""
    return await _answer(services, caller, job_id, engine.control.stop_job(job_id, caller))


@router.post("/jobs/{job_id}/resume", responses=_JOB, dependencies=[only()])
async def resume_job(
    services: Services, engine: Engine, caller: CallerOf, body: Resuming, job_id: Id
) -> Response:
    """Let a STOPPED job run anew as its next attempt; one that has run needs `confirm` or to be idempotent."""
    asked = engine.control.resume(job_id, caller, confirmed=body.confirm)
    return await _answer(services, caller, job_id, asked)


@router.post("/jobs/{job_id}/retry", status_code=202, responses=ANSWERS, dependencies=[only("wait")])
async def retry_job(
    exchange: ExchangeOf,
    caller: CallerOf,
    body: Retrying,
    job_id: Id,
    *,
    wait: Wait = None,
    idempotency_key: Key = None,
) -> Response:
    """Run an ended job's operation again, as it is now, with the same arguments: a new job."""
    job = await exchange.services.store.look(
        lambda conn: reads.job_by_reference(conn, job_id, scope_of(caller))
    )
    key = key_of(f"{PREFIX}/jobs/{job.id}/retry", idempotency_key)
    request = repeat_of(job, caller, body.args, key=key, body_digest=digest_of(body))
    return await answer_execute(exchange, request, wait)


@router.put("/jobs/{job_id}/low-priority", responses=_JOB, dependencies=[only()])
async def set_low_priority(services: Services, engine: Engine, caller: CallerOf, job_id: Id) -> Response:
    """Let everything else run before this job, while it waits; on a running one it is only recorded."""
    asked = engine.control.set_low_priority(job_id, caller, True)
    return await _answer(services, caller, job_id, asked)


@router.delete("/jobs/{job_id}/low-priority", responses=_JOB, dependencies=[only()])
async def clear_low_priority(services: Services, engine: Engine, caller: CallerOf, job_id: Id) -> Response:
    """Give a job the place of its priority back."""
    asked = engine.control.set_low_priority(job_id, caller, False)
    return await _answer(services, caller, job_id, asked)


@router.get("/jobs/{job_id}/attempts", responses={200: {"model": Listed[AttemptOut]}}, dependencies=[only()])
async def list_attempts(services: Services, caller: CallerOf, job_id: Id) -> Response:
    """Every try of a job in order, the one under way last."""
    found = await services.store.read(
        lambda conn: attempts.of_job(conn, reads.job_by_reference(conn, job_id, scope_of(caller)))
    )
    return listed(_attempt(attempt) for attempt in found)


def _attempt(attempt: attempts.Attempt) -> dict[str, Any]:
    error = None
    if attempt.error_code is not None:
        error = {"code": attempt.error_code, "message": attempt.error_message or ""}
    return {
        "number": attempt.number,
        "worker": attempt.worker_id,
        "started_at": clock.rfc3339(attempt.started_at),
        "sent_at": clock.rfc3339(attempt.sent_at),
        "ended_at": clock.rfc3339(attempt.ended_at),
        "outcome": attempt.outcome,
        "error": error,
    }


@router.get(
    "/jobs/{job_id}/logs", responses={200: {"model": Listed[LogOut]}}, dependencies=[only("level", "limit")]
)
async def list_logs(
    services: Services,
    caller: CallerOf,
    job_id: Id,
    *,
    level: Annotated[Literal["INFO", "ERROR"] | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Response:
    """The newest lines about a job, in their order."""
    found = await services.store.read(
        lambda conn: attempts.log_entries(
            conn, reads.job_by_reference(conn, job_id, scope_of(caller)).id, level=level, limit=limit
        )
    )
    return listed({"timestamp": line.pop("at"), **line} for line in found)
