from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import delete, update

from iotjobs import clock
from iotjobs.domain.errors import (
    BadRequest,
    CredentialsRefused,
    DeviceUnreachable,
    NotFound,
    NotRecorded,
    StoreUnavailable,
)
from iotjobs.domain.jobs import Transport
from iotjobs.engine.reach import KEPT_S
from iotjobs.store import definitions, entities, tables
from iotjobs.store.definitions import Kind
from iotjobs.store.session import Store
from iotjobs.transports.base import Gone
from tests.services.programs import free_port
from tests.services.rows import Engine, MakeEngine, running_job

HOST = "127.0.0.1"


async def credential(engine: Engine, **members: Any) -> str:
    """A password credential; its id."""
    new_id = clock.new_id()
    secret = entities.seal_credential(engine.secrets, new_id, {"password": "secret"})
    given = {"name": new_id, "kind": "password", "username": "root", "secret": secret, **members}
    await engine.store.write(
        lambda tx: definitions.create(tx, Kind.CREDENTIAL, given, clock.now_ms(), new_id=new_id)
    )
    return new_id


def address(**members: Any) -> dict[str, Any]:
    given = {
        "host": HOST,
        "port": 22,
        "username": None,
        "credential_id": None,
        "host_key": None,
        "jump_id": None,
    }
    return {**given, **members}


async def test_the_way_is_the_objects_address_with_its_credential_and_keys(make_engine: MakeEngine) -> None:
    engine = make_engine()
    login = await credential(engine)
    jump = await engine.thing(ssh=address(host="jump", credential_id=login, username="hop"))
    object_id = await engine.thing(
        ssh=address(port=2222, credential_id=login, host_key="ssh-ed25519 A\n\nssh-rsa B\n", jump_id=jump)
    )

    target = await engine.reach._looked_up(object_id)

    assert (target.key, target.host, target.port, target.username) == (object_id, HOST, 2222, "root")
    assert target.host_keys == ("ssh-ed25519 A", "ssh-rsa B")
    assert (target.credential.kind, target.credential.password) == ("password", "secret")
    assert target.jump is not None
    assert (target.jump.host, target.jump.username) == ("jump", "hop")
    assert "secret" not in repr(target)


async def test_a_way_is_kept_for_a_moment_and_forgotten_at_a_change(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    object_id = await engine.thing(ssh=address(credential_id=await credential(engine)))

    async def port() -> int:
        return (await engine.reach._looked_up(object_id)).port

    async def move_to(new: int) -> None:
        values = {"ssh": address(port=new, credential_id=(await credential(engine)))}
        await sqlite_store.write(lambda tx: tx.conn.execute(update(tables.objects).values(values)))

    assert await port() == 22
    await move_to(23)
    assert await port() == 22
    engine.reach.forget()
    assert await port() == 23
    await move_to(24)
    now = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: now + KEPT_S + 1)
    assert await port() == 24


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"credential_id": None}, "has no credential: set ssh.credential_id"),
        ({"nobody": True}, "has no user to log in as: set ssh.username"),
    ],
)
async def test_what_is_missing_to_log_in_is_named(
    make_engine: MakeEngine, members: dict[str, Any], said: str
) -> None:
    engine = make_engine()
    login = await credential(engine, username=None) if members.pop("nobody", False) else None
    object_id = await engine.thing(ssh=address(**{"credential_id": login, **members}))

    with pytest.raises(CredentialsRefused, match=said):
        await engine.reach.check(object_id)


async def test_an_object_that_is_gone_or_has_no_address_is_not_reached(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    bare = await engine.thing()
    job = await running_job(sqlite_store, transport=Transport.SSH, target_id=bare)

    with pytest.raises(BadRequest):
        await engine.reach.check(bare)
    with pytest.raises(DeviceUnreachable, match=r"set ssh\.host"):
        await engine.reach._target(job)
    assert (await engine.reach.kill(job, 0, 1.0)).verdict is Gone.UNCONFIRMED
    assert (await engine.reach.kill_first(job, 0, 1.0)).verdict is Gone.UNCONFIRMED

    await sqlite_store.write(lambda tx: tx.conn.execute(delete(tables.objects)))
    with pytest.raises(NotFound):
        await engine.reach.scan_host_key(bare)
    with pytest.raises(DeviceUnreachable, match="there is no object"):
        await engine.reach._target(job)


async def test_nothing_is_warm_before_the_first_run(make_engine: MakeEngine) -> None:
    engine = make_engine()

    assert engine.reach.open_way(None) is None
    assert engine.reach.open_way(await engine.thing()) is None


async def test_a_host_that_does_not_answer_is_a_step_that_failed(make_engine: MakeEngine) -> None:
    engine = make_engine()
    object_id = await engine.thing(ssh=address(port=free_port(), credential_id=await credential(engine)))

    steps = await engine.reach.check(object_id)

    assert [step.ok for step in steps][-1] is False
    with pytest.raises(DeviceUnreachable):
        await engine.reach.scan_host_key(object_id)


async def test_what_runs_here_is_found_and_ended_by_its_mark(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    job = await running_job(sqlite_store, transport=Transport.LOCAL)

    assert (await engine.reach.kill(replace(job, nonce="f" * 16), 0, 0.1)).verdict is Gone.GONE


async def test_without_the_database_the_last_known_way_is_taken(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    known = await engine.thing(ssh=address(credential_id=await credential(engine)))
    other = await engine.thing(ssh=address(credential_id=await credential(engine)))
    job = await running_job(sqlite_store, target_id=known)
    before = await engine.reach._target(job)

    async def away(_query: object) -> None:
        raise StoreUnavailable("away")

    now = clock.monotonic()
    monkeypatch.setattr(clock, "monotonic", lambda: now + KEPT_S + 1)
    monkeypatch.setattr(sqlite_store, "look", away)

    assert await engine.reach._target(job) == before
    with pytest.raises(NotRecorded, match="cannot be looked up: away"):
        await engine.reach._target(replace(job, target_id=other))
