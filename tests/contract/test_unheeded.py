"""What of a device's messages had no effect is counted where a user asks for it, on both databases."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import func, select

from iotjobs.domain.errors import StorageFull, StoreUnavailable
from iotjobs.engine import devices as devices_module
from iotjobs.engine import tally
from iotjobs.engine.devices import DeviceMessages
from iotjobs.engine.reactions import PROPERTIES
from iotjobs.store import definitions, state_tables, unheeded
from iotjobs.store.definitions import Kind
from iotjobs.store.session import Store
from iotjobs.store.unheeded import Refusal, Unheeded
from iotjobs.transports.ingest_rules import IngestRule
from iotjobs.transports.mqtt_messages import Received
from tests.services.rows import Engine, Failing, running_job, standing_of
from tests.services.site import eventually

THING = "press"
REPORT = f"iotjobs/{THING}/report"


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    made = Engine(store)
    yield made
    await made.stop()


@pytest.fixture
async def devices(engine: Engine) -> AsyncIterator[DeviceMessages]:
    """An inbox that works."""
    made = engine.devices()
    await made.start()
    yield made
    await made.stop()


def message(topic: str, payload: Any, *, mid: int = 1, again: bool = False, qos: int = 1) -> Received:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return Received(topic, raw, qos, False, again, mid)


async def counted(store: Store, entity_id: str) -> Unheeded:
    return await store.read(lambda conn: unheeded.of(conn, entity_id))


async def refused(store: Store, entity_id: str, count: int) -> Refusal:
    """The last, once so many were."""

    async def are_counted() -> bool:
        return (await counted(store, entity_id)).refused >= count

    await eventually(are_counted, 5)
    found = await counted(store, entity_id)
    assert (found.refused, found.repeated) == (count, 0)
    assert found.last is not None
    return found.last


WRONG: dict[str, tuple[str, Any, str]] = {
    "no JSON": ("report", b"{", "no JSON: Input data was truncated"),
    "no UTF-8": ("report", b"\xff", "no JSON: "),
    "no text": ("report", b'{"a":"\xff"}', "no JSON: "),
    "no object": ("report", [1], "a report is a JSON object"),
    "too large": ("report", b'{"a":"' + b"x" * 70_000 + b'"}', "more than 65536 bytes"),
    "too deep": ("report", b"[" * 60_000, "no JSON that we read: too deep"),
    "two values": ("report", b'{"a":1,"a":2}', "the name a stands twice"),
    "too many properties": (
        "report",
        {str(n): n for n in range(PROPERTIES + 1)},
        f"{PROPERTIES} at most",
    ),
    "no word": ("status", b"gone", "a status is online or offline"),
    "no job's id": ("jobs/n1/results", {}, "the topic is not one of ours"),
    "no such job": (f"jobs/{'0' * 32}/results", {}, "there is no job"),
}


@pytest.mark.check(19)
@pytest.mark.parametrize("what", WRONG)
async def test_a_device_that_sends_only_what_is_wrong_is_seen_with_the_reason(
    engine: Engine, devices: DeviceMessages, what: str
) -> None:
    kind, payload, why = WRONG[what]
    owner_id, topic = await engine.thing(thing=THING), f"iotjobs/{THING}/{kind}"
    devices.receive(message(topic, payload))

    last = await refused(engine.store, owner_id, 1)
    assert last.topic == topic
    assert why in last.why

    devices.receive(message(topic, payload))
    assert (await refused(engine.store, owner_id, 2)).at >= last.at
    standing = await engine.store.read(lambda conn: standing_of(conn, owner_id))
    assert standing is None or standing.heard_at is None


@pytest.mark.check(19)
async def test_a_word_about_anothers_job_is_counted_of_who_said_it(
    engine: Engine, devices: DeviceMessages
) -> None:
    owner_id, stranger_id = await engine.thing(thing="valve"), await engine.thing(thing=THING)
    job = await running_job(engine.store, owner_id=owner_id)
    devices.receive(message(f"iotjobs/{THING}/jobs/{job.id}/results", {}))

    assert (await refused(engine.store, stranger_id, 1)).why == f"job {job.id} does not belong to {THING}"
    assert await counted(engine.store, owner_id) == Unheeded()


async def test_what_is_refused_of_another_makers_topic_is_counted_of_its_object(engine: Engine) -> None:
    owner_id = await engine.thing(external_id="0x1")
    devices = engine.devices()
    devices._ingest = [IngestRule("tele/{external_id}/SENSOR", "")]
    await devices.start()
    try:
        devices.receive(message("tele/0x1/SENSOR", b"{"))
        await refused(engine.store, owner_id, 1)
    finally:
        await devices.stop()


@pytest.mark.check(19)
async def test_a_flood_of_what_is_wrong_costs_few_writes_and_is_counted_to_the_last(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes, began = [], time.monotonic()

    class Counting(Failing):
        async def write(self, item: Any, **given: Any) -> Any:
            writes.append(item)
            return await super().write(item, **given)

    owner_id = await engine.thing(thing=THING)
    devices = engine.devices(Counting(engine.store, []))
    await devices.start()
    try:
        for n in range(2000):
            devices.receive(message(REPORT, b"{", mid=n + 1))
        devices.receive(message("iotjobs/nobody/report", b"{"))
        devices.receive(message("no/topic/of/ours", b"{"))
        await refused(engine.store, owner_id, 2000)
    finally:
        await devices.stop()
    assert len(writes) <= 2 + (time.monotonic() - began) / tally.WRITE_EVERY_S
    assert devices.dropped == 2002
    assert await count(engine.store) == 1


async def count(store: Store) -> int:
    """How many entities something is counted of."""
    query = select(func.count()).select_from(state_tables.unheeded)
    return await store.read(lambda conn: int(conn.execute(query).scalar_one()))


@pytest.mark.parametrize("error", [StorageFull("full"), StoreUnavailable("away"), RuntimeError("ours")])
async def test_what_could_not_be_written_is_counted_later(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(devices_module, "STORE_RETRY_S", 0.01)
    owner_id = await engine.thing(thing=THING)
    failing = Failing(engine.store, [])
    devices = engine.devices(failing)
    await devices.start()
    try:
        devices.receive(message(REPORT, {"n": 1}))
        await eventually(lambda: devices.is_empty, 5)
        failing.errors.append(error)
        devices.receive(message(REPORT, b"{"))
        await refused(engine.store, owner_id, 1)
        assert not failing.errors
    finally:
        await devices.stop()


async def test_a_message_that_fails_in_us_is_counted_too(
    engine: Engine, devices: DeviceMessages, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner_id = await engine.thing(thing=THING)

    def fault(*_: Any, **__: Any) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(devices_module, "take_word", fault)
    devices.receive(message(f"iotjobs/{THING}/jobs/1/results", {}))

    assert "the server's log has the error" in (await refused(engine.store, owner_id, 1)).why


async def test_what_waits_for_its_token_and_is_refused_counts_with_all_that_it_stands_for(
    engine: Engine,
) -> None:
    owner_id = await engine.thing(thing=THING)
    devices = engine.devices(reports_per_s=2)
    await devices.start()
    try:
        for n in range(10):
            devices.receive(message(REPORT, {"n": n}))
        many = {str(n): n for n in range(PROPERTIES)}
        for _ in range(5):
            devices.receive(message(REPORT, many))

        async def all_are_told() -> bool:
            told = await engine.store.read(lambda conn: standing_of(conn, owner_id))
            if told is None:
                return False
            return told.reports + told.superseded + (await counted(engine.store, owner_id)).refused == 15

        await eventually(all_are_told, 5)
        assert (await counted(engine.store, owner_id)).refused >= 5
    finally:
        await devices.stop()


@pytest.mark.check(15)
async def test_what_came_again_is_counted(engine: Engine, devices: DeviceMessages) -> None:
    owner_id = await engine.thing(thing=THING)
    for again in (False, True, True):  # the broker brings one again
        devices.receive(message(REPORT, {"n": 1}, again=again))
    for mid in (2, 3):  # the device sends one again
        devices.receive(message(REPORT, {"n": 2, "_id": "r2"}, mid=mid))

    async def all_are_told() -> bool:
        return await counted(engine.store, owner_id) == Unheeded(repeated=3)

    await eventually(all_are_told, 5)
    assert not await engine.report(owner_id, "r2", n=2)  # over REST
    assert await engine.report(owner_id, "r3", n=3)
    assert await counted(engine.store, owner_id) == Unheeded(repeated=4)
    standing = await engine.store.read(lambda conn: standing_of(conn, owner_id))
    assert standing.reports == 3


async def test_of_an_object_that_is_gone_nothing_is_kept(engine: Engine) -> None:
    owner_id = await engine.thing(thing=THING)
    more = [(owner_id, Unheeded(2, 1, Refusal(5, REPORT, "no")))]
    await engine.store.write(lambda tx: unheeded.add(tx, more))
    assert await count(engine.store) == 1

    await engine.store.write(lambda tx: definitions.remove(tx, Kind.OBJECT, owner_id))
    await engine.store.write(lambda tx: unheeded.add(tx, more))
    assert await count(engine.store) == 0


async def test_counts_of_a_link_add_up_and_every_text_is_kept_in_bounds(engine: Engine) -> None:
    link_id = await engine.link(await engine.thing(), await engine.thing())
    for more in (
        Unheeded(1, 2, Refusal(5, "a\x00\ud800", "x" * 900)),
        Unheeded(3, 0),
        Unheeded(0, 2**40, Refusal(6, "a\x00\ud800" + "t" * 900, "no")),
    ):
        await engine.store.write(lambda tx, more=more: unheeded.add(tx, [(link_id, more)]))

    found = await counted(engine.store, link_id)
    assert (found.repeated, found.refused) == (4, 2**40 + 2)
    assert found.last is not None
    assert found.last == Refusal(6, "a\ufffd?" + "t" * 197, "no")
