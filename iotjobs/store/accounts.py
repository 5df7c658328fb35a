"""Users and their tokens: who may call.

Passwords are kept as argon2id's encoded hash, tokens as SHA-256 of the whole text (they have 256
bits of chance, so a fast hash is enough). Hashing a password takes tens of milliseconds and belongs
outside a transaction: callers hash first.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from argon2 import PasswordHasher
from sqlalchemy import Connection, delete, func, insert, select, update

from iotjobs import clock
from iotjobs.domain.errors import ConfigurationError, Conflict, NotFound, PreconditionFailed
from iotjobs.domain.rights import Caller, Role, Scope
from iotjobs.store import tables
from iotjobs.store.definitions import clash
from iotjobs.store.secrets import lock_start
from iotjobs.store.writer import Transaction

U, T = tables.users.c, tables.tokens.c

FIRST_ADMIN = "admin"
GIVEN_TOKEN = "IOTJOBS_ADMIN_TOKEN"
_LETTERS = string.ascii_letters + string.digits
_TOKEN_LETTERS = 44  # 62 ** 44 > 2 ** 256
_TOKEN_FORM = re.compile(r"[0-9]{1,18}-[A-Za-z0-9]{16,256}\Z")


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may call.

    Attributes:
        has_password: can log in by name; without one only tokens let them in.
        created_at: milliseconds.
    """

    id: str
    login: str
    role: Role
    has_password: bool
    created_at: int
    version: int


@dataclass(frozen=True, slots=True)
class Token:
    """A token as it may be shown: without its text. Moments are milliseconds."""

    number: int
    name: str
    created_at: int
    expires_at: int | None


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that was just made; its text is nowhere else."""

    token: Token
    text: str = field(repr=False)


@cache
def _hasher() -> PasswordHasher:
    return PasswordHasher()  # argon2id with RFC 9106's low-memory parameters


def hash_password(password: str) -> str:
    """Argon2id's encoded hash; takes tens of milliseconds, so not in a transaction."""
    return _hasher().hash(password)


_user_columns = (U.id, U.login, U.role, U.password, U.created_at, U.version)


def _user(row: Any) -> User:
    return User(row.id, row.login, Role(row.role), row.password is not None, row.created_at, row.version)


def create_user(tx: Transaction, login: str, password_hash: str | None, role: Role, now: int) -> User:
    """Add a user.

    Raises:
        Conflict: the login is taken.
    """
    if tx.conn.execute(select(U.id).where(U.login == login)).first() is not None:
        raise Conflict(f"there is a user {login} already", field="login")
    user_id = clock.new_id()
    row = {"id": user_id, "login": login, "role": role, "created_at": now, "version": 1}
    with clash(f"there is a user {login} already", field="login"):
        tx.conn.execute(insert(tables.users), {**row, "password": password_hash})
    return get_user(tx.conn, user_id, _ALL)


_ALL = Scope()


def get_user(conn: Connection, user_id: str, scope: Scope) -> User:
    """The user of an id.

    Raises:
        NotFound: there is none that the scope shows.
    """
    row = conn.execute(select(*_user_columns).where(U.id == user_id)).first()
    if row is None or not _shown(row.id, scope):
        raise NotFound(f"there is no user {user_id}")
    return _user(row)


def _shown(user_id: str, scope: Scope) -> bool:
    return scope.jobs_of in (None, user_id)


def list_users(conn: Connection, scope: Scope, *, limit: int, after: str | None = None) -> list[User]:
    """Users by id, at most `limit`, those behind the id `after`."""
    query = select(*_user_columns).order_by(U.id).limit(limit)
    if scope.jobs_of is not None:
        query = query.where(U.id == scope.jobs_of)
    if after is not None:
        query = query.where(U.id > after)
    return [_user(row) for row in conn.execute(query)]


def update_user(
    tx: Transaction,
    user_id: str,
    *,
    role: Role | None = None,
    password_hash: str | None = None,
    expected: frozenset[int] | None = None,
) -> User:
    """Change a role, a password, or both; None leaves it.

    Raises:
        NotFound, PreconditionFailed: no such user, or at another version.
        Conflict: the last administrator would lose the role.
    """
    before = _locked(tx.conn, user_id, expected)
    if role is not None and role is not Role.ADMIN:
        _keep_an_admin(tx.conn, before, "cannot be given another role")
    changes: dict[str, Any] = {}
    if role is not None and role is not before.role:
        changes["role"] = role
    if password_hash is not None:
        changes["password"] = password_hash
    if changes:
        changes["version"] = before.version + 1
        tx.conn.execute(update(tables.users).where(U.id == user_id).values(changes))
    return get_user(tx.conn, user_id, _ALL)


def delete_user(tx: Transaction, user_id: str, expected: frozenset[int] | None = None) -> None:
    """Remove a user with the tokens; the jobs they started stay.

    Raises:
        NotFound, PreconditionFailed: no such user, or at another version.
        Conflict: it is the last administrator.
    """
    _keep_an_admin(tx.conn, _locked(tx.conn, user_id, expected), "cannot be deleted")
    tx.conn.execute(delete(tables.tokens).where(T.user_id == user_id))
    tx.conn.execute(delete(tables.users).where(U.id == user_id))


def _locked(conn: Connection, user_id: str, expected: frozenset[int] | None) -> User:
    # All administrators in one order: two that demote each other at once must not both succeed.
    conn.execute(select(U.id).where(U.role == Role.ADMIN).order_by(U.id).with_for_update())
    row = conn.execute(select(*_user_columns).where(U.id == user_id).with_for_update()).first()
    if row is None:
        raise NotFound(f"there is no user {user_id}")
    if expected is not None and row.version not in expected:
        raise PreconditionFailed(f"user {row.login} is at version {row.version}: read it again")
    return _user(row)


def _keep_an_admin(conn: Connection, user: User, what: str) -> None:
    others = select(func.count()).where(U.role == Role.ADMIN, U.id != user.id)
    if user.role is Role.ADMIN and conn.execute(others).scalar_one() == 0:
        raise Conflict(f"{user.login} is the last administrator and {what}", field="role")


def make_token(tx: Transaction, user_id: str, name: str, expires_at: int | None, now: int) -> NewToken:
    """Make a token; its text is returned here and never again.

    Raises:
        NotFound: no such user.
        Conflict: the name is kept for the token of the environment.
    """
    get_user(tx.conn, user_id, _ALL)
    if name == GIVEN_TOKEN:
        raise Conflict(
            f"{GIVEN_TOKEN} names the token that the environment gives: take another", field="name"
        )
    letters = "".join(secrets.choice(_LETTERS) for _ in range(_TOKEN_LETTERS))
    row = {"user_id": user_id, "name": name, "digest": "", "created_at": now, "expires_at": expires_at}
    number = _insert_token(tx.conn, row)
    text = f"{number}-{letters}"
    tx.conn.execute(update(tables.tokens).where(T.number == number).values(digest=_digest(text)))
    return NewToken(Token(number, name, now, expires_at), text)


def _insert_token(conn: Connection, row: dict[str, Any]) -> int:
    key = conn.execute(insert(tables.tokens), row).inserted_primary_key
    assert key is not None
    return int(key[0])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def list_tokens(conn: Connection, user_id: str, scope: Scope) -> list[Token]:
    """A user's tokens by number, without their texts.

    Raises:
        NotFound: no such user.
    """
    get_user(conn, user_id, scope)
    query = select(T.number, T.name, T.created_at, T.expires_at).where(T.user_id == user_id)
    return [Token(*row) for row in conn.execute(query.order_by(T.number))]


def revoke_token(tx: Transaction, user_id: str, number: int) -> None:
    """Withdraw a token.

    Raises:
        NotFound: the user has no such token.
    """
    gone = tx.conn.execute(delete(tables.tokens).where(T.number == number, T.user_id == user_id))
    if gone.rowcount != 1:
        raise NotFound(f"user {user_id} has no token {number}")


def find_token(conn: Connection, text: str) -> tuple[Caller, int | None] | None:
    """Whose token a text is and when it expires, whether or not it has."""
    if not _TOKEN_FORM.match(text):
        return None
    digest = _digest(text)
    # The given token has the number that its giver chose, not its row's.
    for which in (T.number == int(text.partition("-")[0]), T.name == GIVEN_TOKEN):
        query = select(T.digest, T.expires_at, U.id, U.login, U.role).join_from(
            tables.tokens, tables.users, T.user_id == U.id
        )
        for row in conn.execute(query.where(which)):
            if hmac.compare_digest(row.digest, digest):
                return Caller(row.id, row.login, Role(row.role)), row.expires_at
    return None


def ensure_admin(tx: Transaction, given_token: str | None, now: int) -> str | None:
    """See to an administrator at start.

    Without any user: makes `admin`, and a token for it. A given token is stored instead, also at a
    later start, in the place of the one that was given before.

    Returns:
        The text of a new token, to be shown once; None when none was made.

    Raises:
        ConfigurationError: the given token does not have the form of one.
    """
    if given_token is not None and not _TOKEN_FORM.match(given_token):
        raise ConfigurationError(
            f"{GIVEN_TOKEN}: a token is digits, a dash and 16 to 256 letters and digits, such as 1-… "
            "(`echo 1-$(openssl rand -hex 32)` makes one)"
        )
    lock_start(tx.conn)
    first = tx.conn.execute(select(func.count()).select_from(tables.users)).scalar_one() == 0
    if first:
        create_user(tx, FIRST_ADMIN, None, Role.ADMIN, now)
    if given_token is not None:
        _store_given(tx.conn, _first_admin(tx.conn), given_token, now)
        return None
    return make_token(tx, _first_admin(tx.conn), "first start", None, now).text if first else None


def _first_admin(conn: Connection) -> str:
    query = select(U.id).where(U.role == Role.ADMIN).order_by(U.login != FIRST_ADMIN, U.id)
    return str(conn.execute(query.limit(1)).scalar_one())


def _store_given(conn: Connection, user_id: str, text: str, now: int) -> None:
    stored = conn.execute(select(T.digest, T.user_id).where(T.name == GIVEN_TOKEN)).all()
    if [tuple(row) for row in stored] == [(_digest(text), user_id)]:
        return
    conn.execute(delete(tables.tokens).where(T.name == GIVEN_TOKEN))
    row = {"user_id": user_id, "name": GIVEN_TOKEN, "digest": _digest(text), "created_at": now}
    _insert_token(conn, {**row, "expires_at": None})
