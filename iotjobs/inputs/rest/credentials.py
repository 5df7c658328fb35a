"""Credentials: checked and sealed when they come in, never given back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from pydantic import TypeAdapter
from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain.errors import Conflict, FieldError, NotFound, PreconditionFailed
from iotjobs.domain.rights import EVERYTHING
from iotjobs.inputs.keys import check_private_key
from iotjobs.inputs.problems import bad_request
from iotjobs.inputs.rest import definitions
from iotjobs.inputs.rest.answers import Id, IfMatch, NamedListing, created, shown
from iotjobs.inputs.rest.body import body_of, patch_of
from iotjobs.inputs.rest.services import ApiServices, CallerOf, Services, admin_for
from iotjobs.inputs.shapes import CredentialBody, CredentialOut, Listed
from iotjobs.inputs.validation import patched
from iotjobs.store import definitions as stored
from iotjobs.store import entities
from iotjobs.store.definitions import Kind

router = APIRouter(prefix="/credentials", tags=["credentials"], dependencies=[admin_for("credentials")])
_shape = TypeAdapter(CredentialBody)

_SECRETS = ("private_key", "passphrase", "password")
_NEEDED = {"ssh_key": {"private_key"}, "password": {"password"}, "ssh_agent": set[str]()}
_POSSIBLE = {**_NEEDED, "ssh_key": {"private_key", "passphrase"}}
_TRIES = 3  # of a patch, when others change the credential at the same time


@router.post("", status_code=201, responses={201: {"model": CredentialOut}})
async def create_credential(
    services: Services, body: Annotated[CredentialBody, Depends(body_of(CredentialBody))]
) -> Response:
    """Add a credential: `ssh_key`, `password`, or `ssh_agent` (the one that the server runs beside)."""
    await asyncio.to_thread(_check, body)
    credential_id = clock.new_id()
    values = _columns(services, credential_id, body)
    made = await services.store.write(
        lambda tx: stored.create(tx, Kind.CREDENTIAL, values, clock.now_ms(), new_id=credential_id)
    )
    return created(shown(made), f"/credentials/{made.id}")


def _check(credential: CredentialBody) -> None:
    """Refuse one that could not be used. Takes as long as a key's derivation function."""
    given = {name for name in _SECRETS if getattr(credential, name) is not None}
    needed, possible = _NEEDED[credential.kind], _POSSIBLE[credential.kind]
    wrong = [FieldError(name, f"kind {credential.kind} needs it") for name in sorted(needed - given)]
    wrong += [
        FieldError(name, f"kind {credential.kind} has no use for it") for name in sorted(given - possible)
    ]
    if wrong:
        raise bad_request(tuple(wrong))
    if credential.private_key is not None:
        check_private_key(credential.private_key, credential.passphrase)


def _columns(services: ApiServices, credential_id: str, credential: CredentialBody) -> dict[str, Any]:
    members = {name: getattr(credential, name) for name in _SECRETS}
    return {
        "name": credential.name,
        "kind": credential.kind,
        "username": credential.username,
        "secret": entities.seal_credential(services.secrets, credential_id, members),
    }


@router.get("", responses={200: {"model": Listed[CredentialOut]}})
async def list_credentials(services: Services, caller: CallerOf, query: NamedListing) -> Response:
    """List credentials without their secrets."""
    return await definitions.read_page(services, Kind.CREDENTIAL, query, caller)


@router.get("/{credential_id}", responses={200: {"model": CredentialOut}})
async def read_credential(services: Services, caller: CallerOf, credential_id: Id) -> Response:
    """One credential without its secrets."""
    return await definitions.read(services, Kind.CREDENTIAL, credential_id, caller)


@router.patch("/{credential_id}", responses={200: {"model": CredentialOut}})
async def change_credential(
    services: Services,
    credential_id: Id,
    expected: IfMatch,
    body: Annotated[dict[str, Any], Depends(patch_of(CredentialBody))],
) -> Response:
    """Change a credential; secrets that the patch does not name stay as they are."""
    for _ in range(_TRIES):
        version, present = await services.store.read(lambda conn: _opened(conn, services, credential_id))
        credential = patched(_shape, present, body)
        await asyncio.to_thread(_check, credential)
        values = _columns(services, credential_id, credential)
        seen = frozenset({version}) if expected is None else expected & {version}
        try:
            return await definitions.change(
                services, (Kind.CREDENTIAL, credential_id), lambda _, new=values: new, seen
            )
        except PreconditionFailed:
            if expected is not None:
                raise
    raise Conflict("the credential is being changed by somebody else: read it again")


def _opened(conn: Connection, services: ApiServices, credential_id: str) -> tuple[int, Mapping[str, Any]]:
    credential = entities.open_credential(conn, credential_id, services.secrets)
    if credential is None:
        raise NotFound(f"there is no credential {credential_id}")
    named = stored.get(conn, Kind.CREDENTIAL, credential_id, EVERYTHING).values
    return credential.version, {**named, **{name: getattr(credential, name) for name in _SECRETS}}


@router.delete("/{credential_id}", status_code=204)
async def delete_credential(services: Services, credential_id: Id, expected: IfMatch) -> Response:
    """Delete a credential that no object uses."""
    return await definitions.remove(services, Kind.CREDENTIAL, credential_id, expected)
