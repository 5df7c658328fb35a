from __future__ import annotations

import pytest

from iotjobs.domain.errors import BadRequest, Conflict, NotFound
from iotjobs.engine.enrolment import Enrolment
from iotjobs.store.session import Store
from tests.services.mosquitto import OurBroker
from tests.services.rows import MakeEngine


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


async def test_an_object_without_a_name_on_the_broker_or_none_at_all_is_refused(
    sqlite_store: Store, make_engine: MakeEngine, broker: OurBroker
) -> None:
    enrolment = Enrolment(sqlite_store, broker.process)

    with pytest.raises(BadRequest) as refused:
        await enrolment.enrol(await make_engine().thing())
    assert [error.field for error in refused.value.errors] == ["thing"]
    with pytest.raises(NotFound):
        await enrolment.enrol("0" * 32)
