"""Links: connections from one object to another."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic import TypeAdapter

from iotjobs.inputs.rest import definitions
from iotjobs.inputs.rest.answers import Id, IfMatch, JobsBehind, NamedQuery
from iotjobs.inputs.rest.body import body_of, patch_of
from iotjobs.inputs.rest.services import CallerOf, Services, admin_for
from iotjobs.inputs.shapes import LinkBody, LinkOut, Listed, Name
from iotjobs.store.definitions import Kind

router = APIRouter(prefix="/links", tags=["links"])
_admin = [admin_for("changing links")]
_shape = TypeAdapter(LinkBody)


class LinkQuery(NamedQuery):
    """What links can be asked for."""

    class_id: Name | None = None
    source: Name | None = None
    target: Name | None = None
    tag: Name | None = None


@router.post("", status_code=201, dependencies=_admin, responses={201: {"model": LinkOut}})
async def create_link(
    services: Services, caller: CallerOf, body: Annotated[LinkBody, Depends(body_of(LinkBody))]
) -> Response:
    """Add a link between two objects."""
    return await definitions.make(services, Kind.LINK, body.model_dump(), "/links", caller)


@router.get("", responses={200: {"model": Listed[LinkOut]}})
async def list_links(services: Services, caller: CallerOf, query: Annotated[LinkQuery, Query()]) -> Response:
    """List links, the oldest first."""
    return await definitions.read_page(services, Kind.LINK, query, caller)


@router.get("/{link_id}", responses={200: {"model": LinkOut}})
async def read_link(services: Services, caller: CallerOf, link_id: Id) -> Response:
    """One link."""
    return await definitions.read(services, Kind.LINK, link_id, caller)


@router.patch("/{link_id}", dependencies=_admin, responses={200: {"model": LinkOut}})
async def change_link(
    services: Services,
    caller: CallerOf,
    link_id: Id,
    expected: IfMatch,
    *,
    body: Annotated[dict[str, Any], Depends(patch_of(LinkBody))],
    job_ids: JobsBehind,
) -> Response:
    """Change a link; properties that are set here are set as by `PATCH …/properties`."""
    which = (Kind.LINK, link_id)
    return await definitions.patch_entity(
        services, which, _shape, body, expected=expected, caller=caller, job_ids=job_ids
    )


@router.delete("/{link_id}", status_code=204, dependencies=_admin)
async def delete_link(services: Services, link_id: Id, expected: IfMatch) -> Response:
    """Delete a link with its operations; its jobs stay."""
    return await definitions.remove(services, Kind.LINK, link_id, expected)
