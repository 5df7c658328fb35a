"""Jobs: find them, read one whole, read its output, append a custom result."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain.entities import OwnerType
from iotjobs.domain.errors import BadRequest, NotFound
from iotjobs.domain.jobs import JobType
from iotjobs.domain.payloads import check_payload
from iotjobs.domain.rights import Caller, scope_of
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.inputs.job_shapes import JobOut, ResultOut, job_json
from iotjobs.inputs.moments import read_moment
from iotjobs.inputs.rest.answers import Id, json_response, only
from iotjobs.inputs.rest.body import MOST, body_of
from iotjobs.inputs.rest.services import ApiServices, CallerOf, Services, authenticated
from iotjobs.inputs.shapes import Listed
from iotjobs.store import entities, jobs, output, reads
from iotjobs.store.reads import JobFilter
from iotjobs.store.writer import Transaction
from iotjobs.transports.base import Stream

router = APIRouter(tags=["jobs"], dependencies=[authenticated])

Payload = Annotated[dict[str, Any], Depends(body_of(dict[str, Any]))]
OptionalId = Annotated[str | None, Query(max_length=64, pattern=r"^[^\x00]*$")]
Limit = Annotated[int, Query(ge=1, le=500)]
Cursor = Annotated[str | None, Query(max_length=200)]

_RANGES = {
    "created_from": ("timestamp", "from"),
    "created_to": ("timestamp", "to"),
    "start_from": ("started_at", "from"),
    "start_to": ("started_at", "to"),
    "end_from": ("ended_at", "from"),
    "end_to": ("ended_at", "to"),
}
_OTHERS = frozenset(
    {"status", "outcome", "type", "owner_id", "operation_id", "has_errors", "limit", "cursor"}
)
_MOMENT = Query(None, description="milliseconds since the epoch, or RFC 3339; both ends are included")


def _words(name: str, given: str | None, allowed: type[Status] | type[Outcome] | type[JobType]) -> list[str]:
    """A comma-separated list of known words."""
    words = [] if given is None else [word.strip() for word in given.split(",")]
    known = [member.value for member in allowed]
    for word in words:
        if word not in known:
            raise BadRequest(f"{name}: {word!r} is not one of {', '.join(known)}", field=name)
    return words


def job_filter(
    request: Request,
    *,
    status: Annotated[str | None, Query(description="one or more, comma-separated")] = None,
    outcome: Annotated[str | None, Query(description="one or more, comma-separated")] = None,
    type: Annotated[str | None, Query(description="one or more, comma-separated")] = None,
    owner_id: OptionalId = None,
    operation_id: OptionalId = None,
    has_errors: bool | None = None,
    created_from: str | None = _MOMENT,  # noqa: ARG001 - these six are read by name below
    created_to: str | None = _MOMENT,  # noqa: ARG001
    start_from: str | None = _MOMENT,  # noqa: ARG001
    start_to: str | None = _MOMENT,  # noqa: ARG001
    end_from: str | None = _MOMENT,  # noqa: ARG001
    end_to: str | None = _MOMENT,  # noqa: ARG001
) -> JobFilter:
    """The filter of a list of jobs; an unknown parameter is refused, not ignored."""
    unknown = sorted(set(request.query_params) - _OTHERS - set(_RANGES))
    if unknown:
        raise BadRequest(f"unknown parameter {', '.join(unknown)}", field=unknown[0])
    return JobFilter(
        status=_words("status", status, Status),
        outcome=_words("outcome", outcome, Outcome),
        type=_words("type", type, JobType),
        owner_id=owner_id,
        operation_id=operation_id,
        has_errors=has_errors,
        ranges=[
            (*_RANGES[name], read_moment(name, text))
            for name, text in request.query_params.items()
            if name in _RANGES
        ],
    )


LISTED: dict[int | str, dict[str, Any]] = {200: {"model": Listed[JobOut]}}
OCTETS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}

_PAGED = [only("limit", "cursor")]

Filter = Annotated[JobFilter, Depends(job_filter)]


async def _page(
    services: ApiServices, caller: Caller, wanted: JobFilter, limit: int, cursor: str | None
) -> dict[str, Any]:
    scope = scope_of(caller)
    found, following = await services.store.read(
        lambda conn: reads.job_page(conn, wanted, scope, limit=limit, cursor=cursor)
    )
    now = clock.now_ms()
    return {"items": [job_json(record, now) for record in found], "next": following}


@router.get("/jobs", responses=LISTED)
async def list_jobs(
    services: Services, caller: CallerOf, wanted: Filter, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """Jobs, newest first."""
    return json_response(await _page(services, caller, wanted, limit, cursor))


async def _owned(
    services: ApiServices, owner: tuple[OwnerType, str], caller: Caller, limit: int, cursor: str | None
) -> dict[str, Any]:
    owner_type, owner_id = owner
    page = await _page(
        services, caller, JobFilter(owner_id=owner_id, owner_type=int(owner_type)), limit, cursor
    )
    if not page["items"]:
        # The jobs of a deleted owner stay; without any, an unknown owner is an error.
        known = await services.store.read(lambda conn: entities.load_entity(conn, owner_type, owner_id))
        if known is None:
            raise NotFound(f"there is no {owner_type.name.lower()} {owner_id}")
    return page


@router.get("/objects/{owner_id}/jobs", responses=LISTED, dependencies=_PAGED)
async def list_object_jobs(
    services: Services, caller: CallerOf, owner_id: Id, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """The jobs of an object, newest first."""
    return json_response(await _owned(services, (OwnerType.OBJECT, owner_id), caller, limit, cursor))


@router.get("/links/{owner_id}/jobs", responses=LISTED, dependencies=_PAGED)
async def list_link_jobs(
    services: Services, caller: CallerOf, owner_id: Id, limit: Limit = 50, cursor: Cursor = None
) -> Response:
    """The jobs of a link, newest first."""
    return json_response(await _owned(services, (OwnerType.LINK, owner_id), caller, limit, cursor))


@router.get("/jobs/{job_id}", responses={200: {"model": JobOut}})
async def get_job(services: Services, caller: CallerOf, job_id: Id) -> Response:
    """One job, whole: by its id, or by its seq."""
    record = await services.store.read(lambda conn: reads.job_record(conn, job_id, scope_of(caller)))
    return json_response(job_json(record, clock.now_ms()))


@router.patch("/jobs/{job_id}/results", responses={200: {"model": ResultOut}})
async def append_result(services: Services, caller: CallerOf, payload: Payload, job_id: Id) -> Response:
    """Append a custom result; answers with the entry."""
    check_payload(payload)
    scope = scope_of(caller)

    def item(tx: Transaction) -> dict[str, Any]:
        job = reads.job_by_reference(tx.conn, job_id, scope)
        return jobs.append_result(tx, job, payload, caller.user_id, clock.now_ms())

    return json_response(await services.store.write(item))


@router.get(
    "/jobs/{job_id}/output",
    response_class=StreamingResponse,
    responses=OCTETS,
    dependencies=[only("stream", "attempt", "from")],
)
async def get_output(
    services: Services,
    caller: CallerOf,
    job_id: Id,
    stream: Annotated[Stream, Query()] = Stream.STDOUT,
    *,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1)] = None,
    from_: Annotated[int, Query(alias="from", ge=0, le=MOST, description="first byte of the stream")] = 0,
) -> StreamingResponse:
    """The exact bytes of one stream, as octet-stream.

    `Iotjobs-Output-Ranges` tells which bytes are kept (`0-8388608,12582912-20971520`, ends
    excluded): between them the cap has cut.
    """
    job = await services.store.read(lambda conn: reads.job_by_reference(conn, job_id, scope_of(caller)))
    number = job.attempt if attempt is None else attempt
    ranges = await services.store.read(lambda conn: output.extent(conn, job.id, number, stream))
    return StreamingResponse(
        _bytes(services, job.id, number, stream, from_),
        media_type="application/octet-stream",
        headers={"Iotjobs-Output-Ranges": ",".join(f"{start}-{end}" for start, end in ranges)},
    )


async def _bytes(
    services: ApiServices, job_id: str, attempt: int, stream: str, from_byte: int
) -> AsyncIterator[bytes]:
    def following(conn: Connection) -> list[output.Chunk]:
        return output.page(conn, job_id, attempt, stream, from_byte)

    while chunks := await services.store.read(following):
        for chunk in chunks:
            yield chunk.data[max(0, from_byte - chunk.position) :]
            from_byte = chunk.position + len(chunk.data)
