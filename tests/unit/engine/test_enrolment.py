from __future__ import annotations

import pytest
from sqlalchemy import select, update

from iotjobs.domain.errors import BadRequest, Conflict, NotFound, NotReady, StoreUnavailable
from iotjobs.engine.enrolment import Enrolment
from iotjobs.store import tables
from iotjobs.store.session import Store
from tests.services.mosquitto import OurBroker
from tests.services.rows import MakeEngine
from tests.services.site import eventually


async def test_without_a_broker_of_ours_there_is_nobody_to_enrol_at(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    enrolment = Enrolment(sqlite_store, None)
    await enrolment.publish_all()
    enrolment.changed()

    with pytest.raises(Conflict, match="the broker is not run by iotjobs"):
        await enrolment.enrol(await make_engine().thing(thing="press"))


async def test_an_enrolled_device_can_log_in_and_its_earlier_password_ends(
    sqlite_store: Store, make_engine: MakeEngine, broker: OurBroker
) -> None:
    enrolment, object_id = Enrolment(sqlite_store, broker.process), await make_engine().thing(thing="press")

    first = await enrolment.enrol(object_id)
    second = await enrolment.enrol(object_id)

    assert first.thing == second.thing == "press"
    assert first.url == f"mqtt://127.0.0.1:{broker.address.port}"
    assert first.password != second.password
    assert first.password not in repr(first)
    assert await broker.process.test_connect(second.username, second.password)

    # The broker that took the second password has read the file in which the first is gone.
    assert not await broker.process.test_connect(first.username, first.password, within_s=0.1)


@pytest.mark.parametrize("fails", ["the broker", "the store", "the name"])
@pytest.mark.parametrize("enrolled_before", [True, False])
async def test_an_enrolment_that_fails_leaves_what_was(
    sqlite_store: Store,
    make_engine: MakeEngine,
    broker: OurBroker,
    monkeypatch: pytest.MonkeyPatch,
    fails: str,
    *,
    enrolled_before: bool,
) -> None:
    enrolment, object_id = Enrolment(sqlite_store, broker.process), await make_engine().thing(thing="press")
    first = await enrolment.enrol(object_id) if enrolled_before else None
    kept = await password_hash(sqlite_store)
    tried = []

    async def connects(username: str, password: str) -> bool:
        tried.append((username, password))
        if fails == "the name":
            await sqlite_store.write(lambda tx: tx.conn.execute(update(tables.objects).values(thing="saw")))
        return fails != "the broker"

    async def refuses(*_: object, **__: object) -> None:
        raise StoreUnavailable("the disk is gone")

    with monkeypatch.context() as patched:
        patched.setattr(broker.process, "test_connect", connects)
        if fails == "the store":
            patched.setattr(sqlite_store, "write", refuses)
        with pytest.raises((NotReady, StoreUnavailable, Conflict)):
            await enrolment.enrol(object_id)

    assert await password_hash(sqlite_store) == kept
    [(_, password)] = tried
    name = "saw" if fails == "the name" else "press"

    async def is_out() -> bool:
        return not await broker.process.test_connect(name, password, within_s=0.1)

    await eventually(is_out)
    if first is not None:
        assert await broker.process.test_connect(name, first.password)
        second = await enrolment.enrol(object_id)
        assert await broker.process.test_connect(second.username, second.password)


async def password_hash(store: Store) -> str | None:
    return await store.read(lambda conn: conn.execute(select(tables.objects.c.mqtt_password)).scalar_one())


async def test_an_object_without_a_name_on_the_broker_or_none_at_all_is_refused(
    sqlite_store: Store, make_engine: MakeEngine, broker: OurBroker
) -> None:
    enrolment = Enrolment(sqlite_store, broker.process)

    with pytest.raises(BadRequest) as refused:
        await enrolment.enrol(await make_engine().thing())
    assert [error.field for error in refused.value.errors] == ["thing"]
    with pytest.raises(NotFound):
        await enrolment.enrol("0" * 32)
