"""POST …/execute: run an operation on an object or a link."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, Field

from iotjobs import clock
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.rights import EVERYTHING, Caller
from iotjobs.engine.intake import Execute
from iotjobs.inputs.job_shapes import JobOut, job_json
from iotjobs.inputs.moments import read_moment
from iotjobs.inputs.rest.answers import PREFIX, Id, json_response, only
from iotjobs.inputs.rest.body import body_of
from iotjobs.inputs.rest.services import (
    ApiServices,
    CallerOf,
    EngineServices,
    engine_of,
    services_of,
)
from iotjobs.inputs.shapes import Shape
from iotjobs.store import reads

router = APIRouter(tags=["jobs"])  # `build_api` puts the authentication before every route

WAIT_LIMIT_S = 60.0
_WEEK_S = 7 * 86_400.0


class ExecuteBody(Shape):
    """What an execute may say; all of it optional."""

    args: dict[str, Any] = Field(default_factory=dict, description="values of {{args.NAME}}")
    ask: dict[str, Any] = Field(default_factory=dict, description="values of {{ask.NAME}}")
    start_at: str | None = Field(None, description="not before this moment: RFC 3339 with its zone")
    ttl_s: float | None = Field(None, gt=0, le=90 * 86_400, description="seconds that it may wait")
    timeout_s: float | None = Field(None, gt=0, le=_WEEK_S, description="seconds that it may run")
    priority: int = Field(5, ge=0, le=9, description="9 runs first")
    low_priority: bool = Field(False, description="behind everything else")
    reason: str | None = Field(None, max_length=1000, description="why, for the record")


Asked = Annotated[ExecuteBody, Depends(body_of(ExecuteBody, optional=True))]
Key = Annotated[str | None, Header(alias="Idempotency-Key", min_length=1, max_length=255)]
Wait = Annotated[float | None, Query(ge=0, le=WAIT_LIMIT_S, description="seconds to wait for the end")]


@dataclass(frozen=True, slots=True)
class Exchange:
    """What every execute needs beside its own parameters."""

    path: str
    services: ApiServices
    engine: EngineServices


ANSWERS: dict[int | str, dict[str, Any]] = {
    202: {"model": JobOut, "description": "The job; it goes on"},
    200: {"model": JobOut, "description": "The job; it ended within `wait`"},
}


async def _exchange(request: Request) -> Exchange:
    return Exchange(request.url.path, await services_of(request), await engine_of(request))


ExchangeOf = Annotated[Exchange, Depends(_exchange)]


def _route(owner_type: OwnerType, folder: str, owner: str) -> None:
    @router.post(
        f"/{folder}/{{owner_id}}/operations/{{operation_id}}/execute",
        name=f"execute_on_{owner_type.name.lower()}",
        description=f"Run an operation on {owner}: 202 with the job, or 200 when it ended within `wait`.",
        status_code=202,
        responses=ANSWERS,
        dependencies=[only("wait")],
    )
    async def execute(
        exchange: ExchangeOf,
        caller: CallerOf,
        body: Asked,
        owner_id: Id,
        operation_id: Id,
        *,
        wait: Wait = None,
        idempotency_key: Key = None,
    ) -> Response:
        what = (owner_type, owner_id, operation_id)
        asked = _asked(exchange.path, caller, body, idempotency_key, what)
        return await answer_execute(exchange, asked, wait)


_route(OwnerType.OBJECT, "objects", "an object")
_route(OwnerType.LINK, "links", "a link")


def _asked(
    path: str, caller: Caller, body: ExecuteBody, key: str | None, what: tuple[OwnerType, str, str]
) -> Execute:
    owner_type, owner_id, operation_id = what
    return Execute(
        owner_type=owner_type,
        owner_id=owner_id,
        operation_id=operation_id,
        caller=caller,
        args=body.args,
        ask=body.ask,
        start_at=None if body.start_at is None else read_moment("start_at", body.start_at),
        ttl_s=body.ttl_s,
        timeout_s=body.timeout_s,
        priority=body.priority,
        low_priority=body.low_priority,
        reason=body.reason,
        key=key_of(path, key),
        body_digest=digest_of(body) if key is not None else "",
    )


def key_of(path: str, key: str | None) -> str | None:
    """An Idempotency-Key with what it was sent to."""
    return None if key is None else f"POST {path} {key}"


def digest_of(body: BaseModel) -> str:
    """What two equal bodies have in common."""
    return hashlib.sha256(body.model_dump_json().encode()).hexdigest()


async def answer_execute(exchange: Exchange, asked: Execute, wait_s: float | None) -> Response:
    """Submit a job: 202 with it, or 200 when it ended within the wait."""
    submitted = await exchange.engine.intake.submit(asked)
    job_id, status = submitted.job_id, 202
    where = {"Location": f"{PREFIX}/jobs/{job_id}"}
    if submitted.job is not None and not wait_s:
        return json_response(job_json(reads.fresh(submitted.job), clock.now_ms()), status, where)
    if wait_s and await exchange.engine.feed.wait_for_end(job_id, wait_s):
        status = 200
    record = await exchange.services.store.look(lambda conn: reads.job_record(conn, job_id, EVERYTHING))
    return json_response(job_json(record, clock.now_ms()), status, where)
