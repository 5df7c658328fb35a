"""Classes: templates of entities."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import TypeAdapter

from iotjobs.inputs.rest import definitions
from iotjobs.inputs.rest.answers import Id, IfMatch, NamedListing
from iotjobs.inputs.rest.body import body_of, patch_of
from iotjobs.inputs.rest.services import CallerOf, Services, admin_for
from iotjobs.inputs.shapes import ClassBody, ClassOut, Listed
from iotjobs.store.definitions import Kind

router = APIRouter(prefix="/classes", tags=["classes"])
_admin = [admin_for("changing classes")]
_shape = TypeAdapter(ClassBody)


@router.post("", status_code=201, dependencies=_admin, responses={201: {"model": ClassOut}})
async def create_class(
    services: Services, caller: CallerOf, body: Annotated[ClassBody, Depends(body_of(ClassBody))]
) -> Response:
    """Add a class."""
    return await definitions.make(services, Kind.CLASS, body.model_dump(), "/classes", caller)


@router.get("", responses={200: {"model": Listed[ClassOut]}})
async def list_classes(services: Services, caller: CallerOf, query: NamedListing) -> Response:
    """List classes, the oldest first."""
    return await definitions.read_page(services, Kind.CLASS, query, caller)


@router.get("/{class_id}", responses={200: {"model": ClassOut}})
async def read_class(services: Services, caller: CallerOf, class_id: Id) -> Response:
    """One class."""
    return await definitions.read(services, Kind.CLASS, class_id, caller)


@router.patch("/{class_id}", dependencies=_admin, responses={200: {"model": ClassOut}})
async def change_class(
    services: Services,
    class_id: Id,
    expected: IfMatch,
    body: Annotated[dict[str, Any], Depends(patch_of(ClassBody))],
) -> Response:
    """Change a class; its entities inherit the change at once."""
    return await definitions.patch(services, (Kind.CLASS, class_id), _shape, body, expected)


@router.delete("/{class_id}", status_code=204, dependencies=_admin)
async def delete_class(services: Services, class_id: Id, expected: IfMatch) -> Response:
    """Delete a class that no entity has, with its operations."""
    return await definitions.remove(services, Kind.CLASS, class_id, expected)
