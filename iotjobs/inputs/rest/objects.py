"""Objects: managed things, and the host keys that are trusted for them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic import TypeAdapter

from iotjobs.domain.errors import Conflict
from iotjobs.inputs.rest import definitions
from iotjobs.inputs.rest.answers import Id, IfMatch, JobsBehind, NamedQuery
from iotjobs.inputs.rest.body import body_of, patch_of
from iotjobs.inputs.rest.services import CallerOf, Services, admin_for
from iotjobs.inputs.shapes import HostKeyBody, Listed, Name, ObjectBody, ObjectOut
from iotjobs.store.definitions import Definition, Kind

router = APIRouter(prefix="/objects", tags=["objects"])
_admin = [admin_for("changing objects")]
_shape = TypeAdapter(ObjectBody)


class ObjectQuery(NamedQuery):
    """What objects can be asked for."""

    class_id: Name | None = None
    tag: Name | None = None
    thing: Name | None = None
    external_id: Name | None = None


@router.post("", status_code=201, dependencies=_admin, responses={201: {"model": ObjectOut}})
async def create_object(
    services: Services, caller: CallerOf, body: Annotated[ObjectBody, Depends(body_of(ObjectBody))]
) -> Response:
    """Add an object."""
    return await definitions.make(services, Kind.OBJECT, body.model_dump(), "/objects", caller)


@router.get("", responses={200: {"model": Listed[ObjectOut]}})
async def list_objects(
    services: Services, caller: CallerOf, query: Annotated[ObjectQuery, Query()]
) -> Response:
    """List objects, the oldest first."""
    return await definitions.read_page(services, Kind.OBJECT, query, caller)


@router.get("/{object_id}", responses={200: {"model": ObjectOut}})
async def read_object(services: Services, caller: CallerOf, object_id: Id) -> Response:
    """One object."""
    return await definitions.read(services, Kind.OBJECT, object_id, caller)


@router.patch("/{object_id}", dependencies=_admin, responses={200: {"model": ObjectOut}})
async def change_object(
    services: Services,
    caller: CallerOf,
    object_id: Id,
    expected: IfMatch,
    *,
    body: Annotated[dict[str, Any], Depends(patch_of(ObjectBody))],
    job_ids: JobsBehind,
) -> Response:
    """Change an object; another thing name ends what was enrolled under the old one.

    Properties that are set here are set as by `PATCH …/properties`: with their history and what follows.
    """
    which = (Kind.OBJECT, object_id)
    return await definitions.patch_entity(
        services, which, _shape, body, expected=expected, caller=caller, job_ids=job_ids
    )


@router.delete("/{object_id}", status_code=204, dependencies=_admin)
async def delete_object(services: Services, object_id: Id, expected: IfMatch) -> Response:
    """Delete an object without links, with its operations; its jobs stay."""
    return await definitions.remove(services, Kind.OBJECT, object_id, expected)


@router.put("/{object_id}/host-key", dependencies=_admin, responses={200: {"model": ObjectOut}})
async def trust_host_key(
    services: Services,
    object_id: Id,
    expected: IfMatch,
    body: Annotated[HostKeyBody, Depends(body_of(HostKeyBody))],
) -> Response:
    """Trust these host keys of the object's device and no others; null trusts none."""

    def changed(before: Definition) -> dict[str, Any]:
        ssh = before.values["ssh"]
        if ssh is None:
            raise Conflict(f"the object {before.values['name']} has no SSH address: set ssh.host first")
        return {"ssh": {**ssh, "host_key": body.host_key}}

    return await definitions.change(services, (Kind.OBJECT, object_id), changed, expected)
