"""Users and their tokens; administrators only."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from iotjobs.clock import now_ms, rfc3339
from iotjobs.domain.errors import BadRequest
from iotjobs.domain.rights import Role, scope_of
from iotjobs.inputs.moments import read_moment
from iotjobs.inputs.rest.answers import Id, IfMatch, Listing, created, listed, no_content, with_etag
from iotjobs.inputs.rest.body import body_of
from iotjobs.inputs.rest.services import CallerOf, Services, admin_for
from iotjobs.inputs.shapes import Listed, NewTokenOut, TokenBody, TokenOut, UserBody, UserOut, UserPatch
from iotjobs.store import accounts
from iotjobs.store.accounts import Token, User
from iotjobs.store.writer import Transaction

router = APIRouter(prefix="/users", tags=["users"], dependencies=[admin_for("users and tokens")])


def _shown(user: User) -> dict[str, Any]:
    return {**asdict(user), "created_at": rfc3339(user.created_at)}


def _shown_token(token: Token) -> dict[str, Any]:
    moments = {"created_at": rfc3339(token.created_at), "expires_at": rfc3339(token.expires_at)}
    return {**asdict(token), **moments}


@router.post("", status_code=201, responses={201: {"model": UserOut}})
async def create_user(services: Services, body: Annotated[UserBody, Depends(body_of(UserBody))]) -> Response:
    """Add a user."""
    password = await _hashed(body.password)
    user = await services.store.write(
        lambda tx: accounts.create_user(tx, body.login, password, Role(body.role), now_ms())
    )
    return created(_shown(user), f"/users/{user.id}")


async def _hashed(password: str | None) -> str | None:
    return None if password is None else await asyncio.to_thread(accounts.hash_password, password)


@router.get("", responses={200: {"model": Listed[UserOut]}})
async def list_users(services: Services, caller: CallerOf, query: Listing) -> Response:
    """List users, the oldest first."""
    scope, after, limit = scope_of(caller), query.after, query.limit
    users = await services.store.read(
        lambda conn: accounts.list_users(conn, scope, limit=limit + 1, after=after)
    )
    cursor = users[limit - 1].id if len(users) > limit else None
    return listed((_shown(user) for user in users[:limit]), cursor)


@router.get("/{user_id}", responses={200: {"model": UserOut}})
async def read_user(services: Services, caller: CallerOf, user_id: Id) -> Response:
    """One user."""
    scope = scope_of(caller)
    return with_etag(_shown(await services.store.read(lambda conn: accounts.get_user(conn, user_id, scope))))


@router.patch("/{user_id}", responses={200: {"model": UserOut}})
async def change_user(
    services: Services,
    user_id: Id,
    expected: IfMatch,
    body: Annotated[UserPatch, Depends(body_of(UserPatch))],
) -> Response:
    """Change a user's role or password."""
    password = await _hashed(body.password)
    role = None if body.role is None else Role(body.role)

    def item(tx: Transaction) -> User:
        tx.after_commit(services.authenticator.forget)
        return accounts.update_user(tx, user_id, role=role, password_hash=password, expected=expected)

    return with_etag(_shown(await services.store.write(item)))


@router.delete("/{user_id}", status_code=204)
async def delete_user(services: Services, user_id: Id, expected: IfMatch) -> Response:
    """Delete a user with their tokens; the jobs that they started stay."""

    def item(tx: Transaction) -> None:
        tx.after_commit(services.authenticator.forget)
        accounts.delete_user(tx, user_id, expected)

    await services.store.write(item)
    return no_content()


@router.post("/{user_id}/tokens", status_code=201, responses={201: {"model": NewTokenOut}})
async def create_token(
    services: Services, user_id: Id, body: Annotated[TokenBody, Depends(body_of(TokenBody))]
) -> Response:
    """Make a token; its text is in this answer and nowhere else."""
    expires_at = _to_come(body.expires_at)
    made = await services.store.write(
        lambda tx: accounts.make_token(tx, user_id, body.name, expires_at, now_ms())
    )
    content = {"token": made.text, **_shown_token(made.token)}
    return created(content, f"/users/{user_id}/tokens/{made.token.number}")


def _to_come(text: str | None) -> int | None:
    if text is None:
        return None
    at = read_moment("expires_at", text)
    if at <= now_ms():
        raise BadRequest("this moment is past: the token could never be used", field="expires_at")
    return at


@router.get("/{user_id}/tokens", responses={200: {"model": Listed[TokenOut]}})
async def list_tokens(services: Services, caller: CallerOf, user_id: Id) -> Response:
    """List a user's tokens without their texts."""
    scope = scope_of(caller)
    tokens = await services.store.read(lambda conn: accounts.list_tokens(conn, user_id, scope))
    return listed(_shown_token(token) for token in tokens)


@router.delete("/{user_id}/tokens/{number}", status_code=204)
async def revoke_token(services: Services, user_id: Id, number: int) -> Response:
    """Withdraw a token."""
    if not 0 <= number < 2**63:
        raise BadRequest("no token has this number", field="number")

    def item(tx: Transaction) -> None:
        tx.after_commit(services.authenticator.forget)
        accounts.revoke_token(tx, user_id, number)

    await services.store.write(item)
    return no_content()
