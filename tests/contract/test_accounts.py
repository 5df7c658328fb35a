from __future__ import annotations

import asyncio
import re

import pytest
from sqlalchemy import select

from iotjobs.domain.errors import ConfigurationError, Conflict, NotFound, PreconditionFailed
from iotjobs.domain.rights import EVERYTHING, Role, Scope
from iotjobs.store import accounts, tables
from iotjobs.store.secrets import Secrets, check_canary
from iotjobs.store.session import Store

NOW = 1_795_328_126_916
GIVEN = "7-" + "a" * 40


async def ensure(store: Store, given: str | None = None) -> str | None:
    return await store.write(lambda tx: accounts.ensure_admin(tx, given, NOW))


async def caller(store: Store, token: str) -> str | None:
    found = await store.read(lambda conn: accounts.find_token(conn, token))
    return None if found is None else found[0].login


async def admin_id(store: Store) -> str:
    [admin] = await store.read(lambda conn: accounts.list_users(conn, EVERYTHING, limit=1))
    return admin.id


async def test_the_first_start_makes_an_administrator_and_shows_the_token_once(store: Store) -> None:
    token = await ensure(store)

    assert re.fullmatch(r"1-[A-Za-z0-9]{44}", token)
    assert await caller(store, token) == "admin"
    assert await ensure(store) is None
    assert await caller(store, token) == "admin"


async def test_only_the_hash_of_a_token_is_stored(store: Store) -> None:
    token = await ensure(store)

    rows = await store.read(lambda conn: conn.execute(select(tables.tokens)).all())
    assert len(rows) == 1
    assert token.partition("-")[2] not in repr(rows)


async def test_a_given_token_takes_the_place_of_the_one_given_before(store: Store) -> None:
    assert await ensure(store, GIVEN) is None
    assert await ensure(store, GIVEN) is None
    later = "1-" + "b" * 40
    assert await ensure(store, later) is None

    assert await caller(store, later) == "admin"
    assert await caller(store, GIVEN) is None
    assert len(await store.read(lambda conn: conn.execute(select(tables.tokens)).all())) == 1


async def test_a_token_given_to_a_running_site_stands_beside_the_others(store: Store) -> None:
    token = await ensure(store)
    await ensure(store, GIVEN)

    assert await caller(store, token) == await caller(store, GIVEN) == "admin"


@pytest.mark.parametrize(
    "given", ["", "secret", "1-short", "x-" + "a" * 40, "1-" + "a" * 39 + "!", GIVEN + "\n"]
)
async def test_a_given_token_of_another_form_stops_the_start(store: Store, given: str) -> None:
    with pytest.raises(ConfigurationError, match="IOTJOBS_ADMIN_TOKEN"):
        await ensure(store, given)
    assert await store.read(lambda conn: accounts.list_users(conn, EVERYTHING, limit=9)) == []


@pytest.mark.parametrize(
    "text", ["", "1-", "1-" + "a" * 44, "2-" + "a" * 44, "9" * 30 + "-" + "a" * 44, "é", "1"]
)
async def test_a_text_that_is_no_token_has_no_caller(store: Store, text: str) -> None:
    await ensure(store)

    assert await caller(store, text) is None


async def test_a_withdrawn_token_has_no_caller(store: Store) -> None:
    token = await ensure(store)
    user_id = await admin_id(store)
    made = await store.write(lambda tx: accounts.make_token(tx, user_id, "ci", NOW + 5, NOW))
    assert made.text not in repr(made)
    assert (await store.read(lambda conn: accounts.find_token(conn, made.text)))[1] == NOW + 5

    await store.write(lambda tx: accounts.revoke_token(tx, user_id, made.token.number))

    assert await caller(store, made.text) is None
    assert await caller(store, token) == "admin"
    with pytest.raises(NotFound):
        await store.write(lambda tx: accounts.revoke_token(tx, user_id, made.token.number))
    with pytest.raises(Conflict):
        await store.write(lambda tx: accounts.make_token(tx, user_id, accounts.GIVEN_TOKEN, None, NOW))


async def test_there_is_always_an_administrator(store: Store) -> None:
    await ensure(store)
    first = await admin_id(store)
    for refused in (
        lambda tx: accounts.delete_user(tx, first),
        lambda tx: accounts.update_user(tx, first, role=Role.VIEWER),
    ):
        with pytest.raises(Conflict, match="last administrator"):
            await store.write(refused)
    second = await store.write(lambda tx: accounts.create_user(tx, "anna", None, Role.ADMIN, NOW))

    answers = await asyncio.gather(
        store.write(lambda tx: accounts.update_user(tx, first, role=Role.VIEWER)),
        store.write(lambda tx: accounts.delete_user(tx, second.id)),
        return_exceptions=True,
    )

    assert [isinstance(answer, Conflict) for answer in answers].count(True) == 1


async def test_a_login_is_taken_once(store: Store) -> None:
    answers = await asyncio.gather(
        *(store.write(lambda tx: accounts.create_user(tx, "bob", None, Role.VIEWER, NOW)) for _ in range(8)),
        return_exceptions=True,
    )

    assert [isinstance(answer, Conflict) for answer in answers].count(True) == 7


async def test_a_user_is_changed_at_the_version_that_was_read(store: Store) -> None:
    user = await store.write(lambda tx: accounts.create_user(tx, "bob", None, Role.VIEWER, NOW))
    assert (user.version, user.has_password) == (1, False)

    changed = await store.write(
        lambda tx: accounts.update_user(
            tx, user.id, role=Role.OPERATOR, password_hash="$argon2id$…", expected=frozenset({1})
        )
    )
    assert (changed.version, changed.has_password, changed.role) == (2, True, Role.OPERATOR)
    with pytest.raises(PreconditionFailed):
        await store.write(lambda tx: accounts.delete_user(tx, user.id, frozenset({1})))
    await store.write(lambda tx: accounts.delete_user(tx, user.id, frozenset({2})))
    with pytest.raises(NotFound):
        await store.read(lambda conn: accounts.get_user(conn, user.id, EVERYTHING))


async def test_others_see_themselves_only(store: Store) -> None:
    await ensure(store)
    bob = await store.write(lambda tx: accounts.create_user(tx, "bob", None, Role.VIEWER, NOW))
    own = Scope(jobs_of=bob.id)

    assert [
        user.login for user in await store.read(lambda conn: accounts.list_users(conn, own, limit=9))
    ] == ["bob"]
    first = await admin_id(store)
    for hidden in (accounts.get_user, accounts.list_tokens):
        with pytest.raises(NotFound):
            await store.read(lambda conn, ask=hidden: ask(conn, first, own))


async def test_a_key_of_another_database_stops_the_start(store: Store) -> None:
    right, wrong = Secrets(b"a" * 32), Secrets(b"b" * 32)
    for _ in range(2):
        await store.write(lambda tx: check_canary(tx, right))

    with pytest.raises(ConfigurationError, match="does not belong to this database"):
        await store.write(lambda tx: check_canary(tx, wrong))


async def test_nodes_that_start_a_site_together_agree(store: Store) -> None:
    secrets = Secrets(b"a" * 32)
    tokens = await asyncio.gather(*(ensure(store) for _ in range(5)))
    await asyncio.gather(*(store.write(lambda tx: check_canary(tx, secrets)) for _ in range(5)))

    assert [token is None for token in tokens].count(False) == 1
