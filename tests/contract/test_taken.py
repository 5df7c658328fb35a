"""What the broker brings again has its effects once, on both databases."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import pytest
from sqlalchemy import func, select

from iotjobs.engine.devices import DeviceMessages
from iotjobs.store import standings
from iotjobs.store.session import Store
from iotjobs.store.state_tables import taken_messages
from iotjobs.store.taken import KEPT, Key, Taken
from iotjobs.transports.mqtt_messages import Received
from tests.services.rows import Engine
from tests.services.site import eventually

THING = "press"


@pytest.fixture
async def engine(store: Store) -> AsyncIterator[Engine]:
    made = Engine(store)
    yield made
    await made.stop()


async def take(store: Store, taken: Taken, *keys: Key) -> None:
    await store.write(lambda tx: taken.add(tx, keys))


async def loaded(store: Store) -> Taken:
    """As another process finds it."""
    taken = Taken()
    await store.read(taken.load)
    return taken


async def test_what_was_taken_is_known_to_whoever_comes_next(store: Store) -> None:
    first = await loaded(store)
    await take(store, first, (1, 11), (2, 12))

    for taken in (first, await loaded(store)):
        assert [taken.holds(key) for key in ((1, 11), (2, 12), (1, 12), (3, 11))] == [
            True,
            True,
            False,
            False,
        ]


async def test_a_packet_id_that_is_used_again_names_its_last_message(store: Store) -> None:
    first = await loaded(store)
    for key in ((1, 11), (1, 12)):
        await take(store, first, key)
    for taken in (first, await loaded(store)):
        assert (taken.holds((1, 11)), taken.holds((1, 12))) == (False, True)
    first.free(1)
    assert not first.holds((1, 12))


async def test_what_is_not_committed_was_not_taken_and_qos_0_never_comes_again(store: Store) -> None:
    taken = await loaded(store)

    def fails(tx: Any) -> None:
        taken.add(tx, [(1, 11)])
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await store.write(fails)
    assert await count(store) == 0
    await take(store, taken, (0, 11))
    assert not taken.holds((1, 11))
    assert not taken.holds((0, 11))


async def count(store: Store) -> int:
    query = select(func.count()).select_from(taken_messages)
    return await store.read(lambda conn: int(conn.execute(query).scalar_one()))


async def test_as_many_messages_are_kept_as_may_be_unacknowledged(store: Store) -> None:
    first = await loaded(store)
    await take(store, first, (1, 0))
    for number in range(KEPT // 64):
        await take(store, first, *((2 + 64 * number + at, 0) for at in range(64)))
        assert first.holds((1, 0)) == (number < KEPT // 64 - 1)
    for taken in (first, await loaded(store)):
        assert taken.holds((2, 0))
        assert not taken.holds((1, 0))

    def item(tx: Any) -> None:
        for number in range(2 * KEPT + 200):
            first.add(tx, [(3000 + number, 0)])

    await store.write(item)
    for number in range(64):
        await take(store, first, (2000 + number, 0))
    assert await count(store) < 2 * KEPT + 64
    for taken in (first, await loaded(store)):
        assert taken.holds((3000 + 2 * KEPT, 0))
    await store.write(first.clear)
    assert not first.holds((2000, 0))
    assert await count(store) == 0


@pytest.mark.parametrize("key", [(1, 11), (0, 11)])
async def test_a_transaction_that_was_made_and_not_answered_is_known_from_all_others(
    store: Store, key: Key
) -> None:
    taken = await loaded(store)
    for _ in range(2):  # the same again, as another message
        assert not await store.read(taken.unheard)
        await take(store, taken, key)
        assert not await store.read(taken.unheard)

        def silent(tx: Any) -> None:
            taken.add(tx, [key])
            tx.callbacks.clear()

        await store.write(silent)
        assert [await store.read(taken.unheard) for _ in range(2)] == [True, False]
        assert not await store.read((await loaded(store)).unheard)


async def test_transactions_without_packet_ids_take_no_place_of_others(store: Store) -> None:
    taken = await loaded(store)
    for number in range(1, 101):
        await take(store, taken, (0, 11))
        await take(store, taken, (0, 11))
        if number % 10 == 0:
            await take(store, taken, (number, 11))
            taken = await loaded(store)
    assert await count(store) == 20
    assert [number for number in range(1, 101) if taken.holds((number, 11))] == list(range(10, 101, 10))


# --- what devices say ------------------------------------------------------------------------------

Line = tuple[str, Any]  # the end of the topic, and the payload


class Broker:
    """A session as a broker has it: packet ids in their order, and what is not acknowledged comes again."""

    def __init__(self) -> None:
        self._last = 0
        self.unacknowledged: dict[int, Line] = {}

    def send(self, to: DeviceMessages, lines: Iterable[Line]) -> None:
        for line in lines:
            self._last += 1
            self.unacknowledged[self._last] = line
            to.receive(self._message(self._last, again=False))

    def send_again(self, to: DeviceMessages, *mids: int) -> None:
        for mid in mids or list(self.unacknowledged):
            to.receive(self._message(mid, again=True))

    def _message(self, mid: int, *, again: bool) -> Received:
        kind, payload = self.unacknowledged[mid]
        raw = payload.encode() if kind == "status" else json.dumps(payload).encode()
        return Received(f"iotjobs/{THING}/{kind}", raw, 1, False, again, mid, _acknowledge=self._acknowledged)

    def _acknowledged(self, mid: int) -> None:
        self.unacknowledged.pop(mid, None)


class Deaf(Broker):
    """It does not get the acknowledgements: its connection is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.hears = False
        self.lost: list[int] = []

    def _acknowledged(self, mid: int) -> None:
        if self.hears:
            super()._acknowledged(mid)
        else:
            self.lost.append(mid)


@contextlib.asynccontextmanager
async def listening(engine: Engine, **given: Any) -> AsyncIterator[DeviceMessages]:
    """An inbox, as one process after another has it."""
    devices = engine.devices(**given)
    await devices.start()
    try:
        yield devices
    finally:
        await devices.stop()


async def watched(engine: Engine) -> str:
    owner_id = await engine.thing(thing=THING)
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 80"})
    return owner_id


async def changes_of(engine: Engine, owner_id: str) -> list[str]:
    found = await engine.store.read(lambda conn: standings.changes(conn, limit=500, entity_id=owner_id))
    return [change.to_state for change in reversed(found)]


OFFLINE, ONLINE = ("status", "offline"), ("status", "online")
HOT, COLD = ("report", {"t": 90}), ("report", {"t": 20})


@pytest.mark.parametrize(
    ("lines", "entered"),
    [
        ([OFFLINE, ONLINE], ["down", "working"]),
        ([OFFLINE, ONLINE, OFFLINE], ["down", "working", "down"]),
        ([COLD, OFFLINE], ["working", "down"]),
        ([OFFLINE, COLD], ["down", "working"]),
        ([("report", {"t": 20, "_id": "r1"}), OFFLINE], ["working", "down"]),
        ([OFFLINE, ("report", {"t": 20, "_id": "r1"})], ["down", "working"]),
        ([HOT, COLD, OFFLINE, ONLINE], ["alarm", "working", "down", "working"]),
    ],
)
@pytest.mark.parametrize("between", ["nothing", "a process", "a person's report"])
async def test_what_was_committed_and_not_acknowledged_is_no_news_when_it_comes_again(
    engine: Engine, lines: list[Line], entered: list[str], between: str
) -> None:
    owner_id, broker = await watched(engine), Deaf()
    async with listening(engine) as first:
        broker.send(first, lines)
        await eventually(lambda: len(broker.lost) == len(lines), 5)
        assert await changes_of(engine, owner_id) == entered
        broker.hears = True
        if between == "nothing":  # a cut connection
            broker.send_again(first)
            await eventually(lambda: not broker.unacknowledged, 5)
    if between == "a person's report" and entered[-1] == "down":
        await engine.report(owner_id, t=20)
        entered = [*entered, "working"]
    async with listening(engine) as second:
        broker.send_again(second)
        await eventually(lambda: not broker.unacknowledged, 5)
        assert await changes_of(engine, owner_id) == entered
        broker.send(second, [OFFLINE, ONLINE])
        await eventually(lambda: not broker.unacknowledged, 5)
    news = ["working"] if entered[-1] == "down" else ["down", "working"]
    assert await changes_of(engine, owner_id) == entered + news


async def test_of_what_comes_again_what_was_not_committed_is_news(engine: Engine) -> None:
    owner_id, broker = await watched(engine), Deaf()
    async with listening(engine) as first:
        broker.send(first, [OFFLINE, ONLINE])
        await eventually(lambda: len(broker.lost) == 2, 5)
    dead = engine.devices()  # it takes what comes, and dies
    broker.send(dead, [OFFLINE, ONLINE, HOT])
    broker.hears = True

    async with listening(engine) as second:
        broker.send_again(second)
        await eventually(lambda: not broker.unacknowledged, 5)
    assert await changes_of(engine, owner_id) == ["down", "working", "down", "working", "alarm"]
    assert second.repeated == 2


async def test_what_comes_again_before_it_was_looked_at_counts_once(engine: Engine) -> None:
    owner_id, broker = await watched(engine), Broker()
    devices = engine.devices()
    broker.send(devices, [OFFLINE, ONLINE])
    for _ in range(2):
        broker.send_again(devices)
    await devices.start()
    await eventually(lambda: not broker.unacknowledged, 5)
    await devices.stop()

    assert await changes_of(engine, owner_id) == ["down", "working"]
    assert devices.repeated == 4


async def test_what_came_too_quickly_and_lived_on_in_another_does_not_come_to_life_again(
    engine: Engine,
) -> None:
    owner_id, broker = await watched(engine), Deaf()
    lines = [OFFLINE if n % 2 else ONLINE for n in range(60)] + [HOT, COLD] * 20 + [OFFLINE]
    async with listening(engine, reports_per_s=5) as first:
        broker.send(first, lines)
        await eventually(lambda: len(broker.lost) == len(lines), 5)
        entered = await changes_of(engine, owner_id)
        broker.hears = True
    async with listening(engine, reports_per_s=5) as second:
        broker.send_again(second)
        await eventually(lambda: not broker.unacknowledged, 5)

    assert await changes_of(engine, owner_id) == entered
    assert entered[-1] == "down"


@pytest.mark.parametrize("first", [HOT, OFFLINE])
async def test_what_waits_for_its_token_is_no_news_when_it_comes_again_in_two_parts(
    engine: Engine, first: Line
) -> None:
    """The first was acknowledged, for the second has its value or ends it; the broker did not hear that."""
    owner_id, broker = await watched(engine), Deaf()
    burst: list[Line] = [("report", {"n": n}) for n in range(5)]
    async with listening(engine, reports_per_s=1) as devices:
        broker.send(devices, [*burst, first, COLD])
        await eventually(lambda: 6 in broker.lost, 5)
        broker.send_again(devices, 6)
        await eventually(lambda: broker.lost.count(6) == 2 and 7 in broker.lost, 5)
        broker.hears = True
        broker.send_again(devices, 7)
        await eventually(lambda: 7 not in broker.unacknowledged, 5)

    assert await changes_of(engine, owner_id) == ["working"]
    found = await engine.store.read(lambda conn: standings.load_object(conn, owner_id))
    assert found is not None
    assert found.entity.properties["t"] == 20
    assert devices.repeated == 2


async def test_a_message_with_the_packet_id_of_another_is_no_repeat_of_it(engine: Engine) -> None:
    """A broker may use an id that is free again at once; what it then sends is lost, and comes only as a repeat."""
    owner_id, broker = await watched(engine), Broker()
    async with listening(engine) as devices:
        broker.send(devices, [("report", {"t": 90, "_id": "r1"}), COLD])
        await eventually(lambda: not broker.unacknowledged, 5)
        broker.unacknowledged[1] = ("report", {"t": 90, "_id": "r2"})
        broker.send_again(devices)
        await eventually(lambda: not broker.unacknowledged, 5)

    assert await changes_of(engine, owner_id) == ["alarm", "working", "alarm"]
    assert devices.repeated == 0


async def test_a_new_session_uses_packet_ids_anew(engine: Engine) -> None:
    owner_id, broker = await watched(engine), Broker()
    async with listening(engine) as devices:
        broker.send(devices, [OFFLINE])
        await eventually(lambda: not broker.unacknowledged, 5)
        await engine.report(owner_id, t=20)
        await devices.new_session()
        broker = Broker()
        broker.send(engine.devices(), [OFFLINE])  # on a connection that is cut
        broker.send_again(devices)
        await eventually(lambda: not broker.unacknowledged, 5)

    assert await changes_of(engine, owner_id) == ["down", "working", "down"]
