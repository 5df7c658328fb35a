"""Who calls: Bearer tokens, looked up in the store and remembered for a few seconds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from iotjobs import clock
from iotjobs.domain.errors import NotAuthenticated
from iotjobs.domain.rights import Caller
from iotjobs.store import accounts
from iotjobs.store.session import Store

REMEMBERED_S = 5.0  # a change made through another node is seen after this long
REMEMBERED_CALLERS = 10_000


@dataclass(frozen=True, slots=True)
class _Remembered:
    caller: Caller
    expires_at: int | None
    until: float


class Authenticator:
    """Finds the caller of a token. Safe for concurrent use in one event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._remembered: dict[bytes, _Remembered] = {}
        self._changes = 0

    def forget(self) -> None:
        """Users or tokens changed: ask the store again. To be called after the commit."""
        self._changes += 1
        self._remembered.clear()

    async def caller(self, authorization: str | None) -> Caller:
        """The caller that an Authorization header names.

        Raises:
            NotAuthenticated: no Bearer token, or one that is unknown, expired or withdrawn.
        """
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise NotAuthenticated("send the header `Authorization: Bearer TOKEN`")
        return await self.caller_of(token.strip())

    async def caller_of(self, token: str) -> Caller:
        """The caller of a token's text.

        Raises:
            NotAuthenticated: it is unknown, expired or withdrawn.
        """
        found = await self._find(token)
        if found is None:
            raise NotAuthenticated("the token is unknown or was withdrawn")
        if found.expires_at is not None and found.expires_at <= clock.now_ms():
            raise NotAuthenticated("the token has expired")
        return found.caller

    async def _find(self, token: str) -> _Remembered | None:
        key = hashlib.sha256(token.encode(errors="surrogateescape")).digest()  # the text is not kept
        remembered = self._remembered.get(key)
        if remembered is not None and remembered.until > clock.monotonic():
            return remembered
        changes = self._changes
        found = await self._store.look(lambda conn: accounts.find_token(conn, token))
        if found is None:
            return None
        remembered = _Remembered(*found, clock.monotonic() + REMEMBERED_S)
        if changes == self._changes:  # else the answer may be older than the change
            if len(self._remembered) >= REMEMBERED_CALLERS:
                self._remembered.clear()
            self._remembered[key] = remembered
        return remembered
