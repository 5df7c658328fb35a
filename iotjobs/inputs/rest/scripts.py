"""Scripts: texts that operations share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import TypeAdapter

from iotjobs.domain import macros
from iotjobs.domain.errors import BadRequest
from iotjobs.inputs.rest import definitions
from iotjobs.inputs.rest.answers import Id, IfMatch, NamedListing
from iotjobs.inputs.rest.body import body_of, patch_of
from iotjobs.inputs.rest.services import CallerOf, Services, admin_for
from iotjobs.inputs.shapes import Listed, ScriptBody, ScriptOut
from iotjobs.inputs.validation import patched
from iotjobs.store.definitions import Definition, Kind

router = APIRouter(prefix="/scripts", tags=["scripts"])
_admin = [admin_for("changing scripts")]
_shape = TypeAdapter(ScriptBody)


@router.post("", status_code=201, dependencies=_admin, responses={201: {"model": ScriptOut}})
async def create_script(
    services: Services, caller: CallerOf, body: Annotated[ScriptBody, Depends(body_of(ScriptBody))]
) -> Response:
    """Add a script."""
    return await definitions.make(services, Kind.SCRIPT, _checked(body), "/scripts", caller)


def _checked(script: ScriptBody) -> Mapping[str, Any]:
    """The columns of a script whose macros stand where they may; it may be used on links."""
    try:
        macros.check_names(script.text, link=True)
        macros.check_shell(script.text, script.interpreter)
    except macros.MacroError as error:
        raise BadRequest(f"text: {error}", field="text") from error
    return script.model_dump()


@router.get("", responses={200: {"model": Listed[ScriptOut]}})
async def list_scripts(services: Services, caller: CallerOf, query: NamedListing) -> Response:
    """List scripts, the oldest first."""
    return await definitions.read_page(services, Kind.SCRIPT, query, caller)


@router.get("/{script_id}", responses={200: {"model": ScriptOut}})
async def read_script(services: Services, caller: CallerOf, script_id: Id) -> Response:
    """One script."""
    return await definitions.read(services, Kind.SCRIPT, script_id, caller)


@router.patch("/{script_id}", dependencies=_admin, responses={200: {"model": ScriptOut}})
async def change_script(
    services: Services,
    script_id: Id,
    expected: IfMatch,
    body: Annotated[dict[str, Any], Depends(patch_of(ScriptBody))],
) -> Response:
    """Change a script; jobs from now on run the new text."""

    def changed(before: Definition) -> Mapping[str, Any]:
        return _checked(patched(_shape, before.values, body))

    return await definitions.change(services, (Kind.SCRIPT, script_id), changed, expected)


@router.delete("/{script_id}", status_code=204, dependencies=_admin)
async def delete_script(services: Services, script_id: Id, expected: IfMatch) -> Response:
    """Delete a script that no operation uses."""
    return await definitions.remove(services, Kind.SCRIPT, script_id, expected)
