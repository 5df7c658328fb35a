"""Operations of classes, objects and links: the same routes below each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import TypeAdapter
from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain import macros
from iotjobs.domain import operations as domain
from iotjobs.domain.errors import BadRequest, NotFound
from iotjobs.domain.rights import Scope, scope_of
from iotjobs.inputs.operation_shapes import OperationBody, OperationOut
from iotjobs.inputs.rest.answers import (
    ENTITIES,
    FOLDERS,
    PREFIX,
    Id,
    IfMatch,
    created,
    listed,
    no_content,
    shown,
    with_etag,
)
from iotjobs.inputs.rest.body import body_of, patch_of
from iotjobs.inputs.rest.services import ApiServices, CallerOf, Services, admin_for
from iotjobs.inputs.shapes import Listed
from iotjobs.inputs.validation import patched
from iotjobs.store import definitions, entities, queues
from iotjobs.store.definitions import Definition, Kind
from iotjobs.store.writer import Transaction

_shape: TypeAdapter[Any] = TypeAdapter(OperationBody)

_New = Annotated[Any, Depends(body_of(OperationBody))]
_Patch = Annotated[dict[str, Any], Depends(patch_of(OperationBody))]


def operations_of(kind: Kind) -> APIRouter:
    """The routes below one kind of owner: `class`, `object` or `link`."""
    folder = FOLDERS[kind]
    router = APIRouter(prefix=f"/{folder}/{{owner_id}}/operations", tags=["operations"])
    admin = [admin_for("changing operations")]

    @router.post("", status_code=201, dependencies=admin, responses={201: {"model": OperationOut}})
    async def create_operation(services: Services, owner_id: Id, body: _New) -> Response:
        """Add an operation; one that could not run on its owner is refused."""
        made = await services.store.write(lambda tx: _create(tx, services, (kind, owner_id), body))
        return created(_shown(made, owner_id), f"/{folder}/{owner_id}/operations/{made.id}")

    @router.get("", responses={200: {"model": Listed[OperationOut]}})
    async def list_operations(services: Services, caller: CallerOf, owner_id: Id) -> Response:
        """List the owner's operations, then those of its class; all of them at once."""
        scope = scope_of(caller)
        found = await services.store.read(lambda conn: _all_of(conn, kind, owner_id, scope))
        return listed(_shown(operation, owner_id) for operation in found)

    @router.get("/{operation_id}", responses={200: {"model": OperationOut}})
    async def read_operation(
        services: Services, caller: CallerOf, owner_id: Id, operation_id: Id
    ) -> Response:
        """One operation of the owner or of its class."""
        scope = scope_of(caller)
        found = await services.store.read(lambda conn: _all_of(conn, kind, owner_id, scope))
        for operation in found:
            if operation.id == operation_id:
                return with_etag(_shown(operation, owner_id))
        raise NotFound(f"{kind} {owner_id} has no operation {operation_id}")

    @router.patch("/{operation_id}", dependencies=admin, responses={200: {"model": OperationOut}})
    async def change_operation(
        services: Services, owner_id: Id, operation_id: Id, expected: IfMatch, body: _Patch
    ) -> Response:
        """Change an operation of the owner's own; its type stays. Jobs that exist keep what they were."""

        def item(tx: Transaction) -> Definition:
            changed = _patching(tx.conn, services, (kind, owner_id), body)
            return definitions.change(tx, Kind.OPERATION, operation_id, changed, expected=expected)

        return with_etag(_shown(await services.store.write(item), owner_id))

    @router.delete("/{operation_id}", status_code=204, dependencies=admin)
    async def delete_operation(
        services: Services, owner_id: Id, operation_id: Id, expected: IfMatch
    ) -> Response:
        """Delete an operation of the owner's own; its jobs stay."""

        def item(tx: Transaction) -> None:
            _require_own(definitions.lock(tx, Kind.OPERATION, operation_id, expected), kind, owner_id)
            definitions.remove(tx, Kind.OPERATION, operation_id)

        await services.store.write(item)
        return no_content()

    return router


def _shown(operation: Definition, owner_id: str) -> dict[str, Any]:
    members = shown(operation)
    settings = members.pop("settings")
    return {**members, **settings, "inherited": operation.values["owner_id"] != owner_id}


def _columns(body: Any) -> dict[str, Any]:
    settings: dict[str, Any] = body.model_dump()
    return {"name": settings.pop("name"), "type": settings.pop("type"), "settings": settings}


def _in_known_queue(conn: Connection, columns: dict[str, Any]) -> dict[str, Any]:
    columns["settings"]["queue"] = queues.known_name(conn, columns["settings"]["queue"])
    return columns


def _all_of(conn: Connection, kind: Kind, owner_id: str, scope: Scope) -> list[Definition]:
    owner = definitions.get(conn, kind, owner_id, scope)
    owners = [(kind, owner_id)]
    if owner.values.get("class_id") is not None:
        owners.append((Kind.CLASS, owner.values["class_id"]))
    return definitions.of_owners(conn, owners, scope)


def _create(tx: Transaction, services: ApiServices, owner: tuple[Kind, str], body: Any) -> Definition:
    kind, owner_id = owner
    definitions.owner(tx.conn, kind, owner_id)
    columns = _in_known_queue(tx.conn, _columns(body))
    operation_id = clock.new_id()
    # References first: an unknown script is named as such.
    made = definitions.create(
        tx,
        Kind.OPERATION,
        {**columns, "owner_kind": kind, "owner_id": owner_id},
        clock.now_ms(),
        new_id=operation_id,
    )
    _refuse_unfit(tx.conn, services, owner, _operation(operation_id, columns))
    return made


def _operation(operation_id: str, columns: dict[str, Any]) -> domain.Operation:
    return entities.operation_of(operation_id, columns["name"], columns["type"], columns["settings"])


def _patching(
    conn: Connection, services: ApiServices, owner: tuple[Kind, str], members: dict[str, Any]
) -> Callable[[Definition], dict[str, Any]]:
    def changed(before: Definition) -> dict[str, Any]:
        _require_own(before, *owner)
        present = {"name": before.values["name"], "type": before.values["type"], **before.values["settings"]}
        columns = _in_known_queue(conn, _columns(patched(_shape, present, members)))
        _refuse_unfit(conn, services, owner, _operation(before.id, columns))
        return columns

    return changed


def _require_own(operation: Definition, kind: Kind, owner_id: str) -> None:
    of_kind, of_id = operation.values["owner_kind"], operation.values["owner_id"]
    if (of_kind, of_id) != (kind, owner_id):
        raise NotFound(
            f"operation {operation.id} is an operation of another owner: "
            f"{PREFIX}/{FOLDERS[Kind(of_kind)]}/{of_id}/operations/{operation.id}"
        )


def _refuse_unfit(
    conn: Connection, services: ApiServices, owner: tuple[Kind, str], operation: domain.Operation
) -> None:
    """Refuse what could never run on its owner."""
    kind, owner_id = owner
    operation = entities.with_interpreter(conn, operation)
    domain.check(operation, kind)
    _refuse_unfit_script(conn, kind, operation)
    if kind in ENTITIES:
        entity = entities.load_entity(conn, ENTITIES[kind], owner_id)
        if entity is None:
            raise NotFound(f"there is no {kind} {owner_id}")
        domain.resolve_transport(operation, entity, allow_local=services.allow_local)


def _refuse_unfit_script(conn: Connection, kind: Kind, operation: domain.Operation) -> None:
    """A script of the repository may hold macros that this owner does not have."""
    script_id = operation.parameters.get("script_id")
    script = None if script_id is None else entities.script_text(conn, script_id)
    if script is None:
        return
    try:
        macros.check_names(script[0], link=kind is not Kind.OBJECT)
        macros.check_shell(script[0], operation.parameters["interpreter"])
    except macros.MacroError as error:
        raise BadRequest(f"the script {script_id}: {error}", field="parameters.script_id") from error
