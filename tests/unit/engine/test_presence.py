from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from iotjobs import clock
from iotjobs.domain.errors import LeaseLost, StoreUnavailable
from iotjobs.engine import presence as module
from iotjobs.engine.presence import BROKER_AWAITED_S, FRESH_S, GAP_S, OTHERS_AWAITED_S, Alone, Presence
from iotjobs.store import facts, nodes
from iotjobs.store.nodes import Node
from iotjobs.store.session import Store
from tests.services.rows import Failing
from tests.services.site import eventually

NODE = Node("host", 7, "1.0", (), 500)


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(clock, "monotonic", lambda: self.now)


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
async def presence(sqlite_store: Store, moved: Clock) -> AsyncIterator[Presence]:
    told: list[str] = []
    made = Presence(sqlite_store, NODE, told.append)
    made.running = lambda: 3
    await made.enter(None)
    assert told == [made.worker_id]
    yield made
    await made.stop()


async def test_it_beats_and_leaves_no_row_behind(
    sqlite_store: Store, presence: Presence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BEAT_EVERY_S", 0.01)
    await presence.start()

    async def beaten() -> bool:
        return await running_of(sqlite_store) == 3

    await eventually(beaten, 3)
    await presence.stop()

    assert await sqlite_store.read(nodes.listing) == []


async def running_of(store: Store) -> int:
    return (await store.read(nodes.listing))[0].running


async def test_who_takes_anothers_place_declares_it_dead(sqlite_store: Store, presence: Presence) -> None:
    heir = Presence(sqlite_store, NODE, lambda _: None)

    await heir.enter(presence.worker_id)

    states = {worker.id: worker.gone_at is None for worker in await sqlite_store.read(nodes.listing)}
    assert states == {presence.worker_id: False, heir.worker_id: True}
    await heir.stop()


async def test_the_dead_go_on_under_a_new_id(sqlite_store: Store, presence: Presence, moved: Clock) -> None:
    first = presence.worker_id
    moved.now += FRESH_S
    await sqlite_store.write(lambda tx: nodes.bury(tx, first))
    assert not presence.is_fresh()
    with pytest.raises(LeaseLost, match=first):
        await sqlite_store.write(presence.confirm)

    await presence.be_fresh()

    assert presence.worker_id != first
    assert presence.is_fresh()
    await sqlite_store.write(presence.confirm)


async def test_a_beat_counts_from_before_it_was_written(presence: Presence, moved: Clock) -> None:
    presence.confirmed(moved.now)
    moved.now += FRESH_S + 1
    assert not presence.is_fresh()
    presence.confirmed(moved.now - FRESH_S)
    assert not presence.is_fresh()
    presence.confirmed(moved.now)
    assert presence.is_fresh()


async def test_who_was_out_of_touch_judges_nobody_for_ten_seconds(presence: Presence, moved: Clock) -> None:
    for _ in range(4):
        presence.confirmed(moved.now)
        assert not presence.may_judge()
        moved.now += 3
    presence.confirmed(moved.now)
    assert presence.may_judge()

    moved.now += GAP_S + 1  # the database was away, and with it everybody's beats
    assert not presence.may_judge()
    presence.confirmed(moved.now)
    assert not presence.may_judge()


async def test_who_has_no_broker_leaves_messages_to_who_has_one_and_waits_for_it_to_come_back(
    sqlite_store: Store, presence: Presence, moved: Clock
) -> None:
    assert presence.may_publish()  # as nobody has one
    other = Presence(sqlite_store, replace(NODE, mqtt=True), lambda _: None)
    other.connected = lambda: True
    await other.enter(None)
    await other._beat()
    assert other.may_publish()

    await presence._beat()
    assert not presence.may_publish()
    await other.stop()
    await presence._beat()
    moved.now += BROKER_AWAITED_S - 1
    await presence._beat()
    assert not presence.may_publish()
    moved.now += 2
    assert presence.may_publish()


async def test_who_is_cut_off_from_the_broker_leaves_messages_to_who_is_connected(
    sqlite_store: Store, moved: Clock
) -> None:
    pair = [Presence(sqlite_store, replace(NODE, mqtt=True), lambda _: None) for _ in range(2)]
    cut_off, other = pair
    for each in pair:
        await each.enter(None)
    other.connected = lambda: True

    async def pass_s(seconds: float) -> None:
        moved.now += seconds
        await other._beat()
        await cut_off._beat()

    await pass_s(OTHERS_AWAITED_S + 1)
    assert (cut_off.may_publish(), other.may_publish()) == (False, True)
    await pass_s(100)
    assert not cut_off.may_publish()
    cut_off.connected = lambda: True
    assert cut_off.may_publish()

    cut_off.connected = other.connected = lambda: False
    await pass_s(1)  # the broker itself is away: its messages fail, or are tried again, as they say
    assert not cut_off.may_publish()
    moved.now += OTHERS_AWAITED_S + 1
    assert cut_off.may_publish()
    for each in pair:
        await each.stop()


async def test_who_comes_before_the_broker_of_its_site_waits_for_it_too(
    sqlite_store: Store, moved: Clock
) -> None:
    await sqlite_store.write(lambda tx: facts.put(tx, facts.MQTT_CLIENT_ID, "iotjobs-x"))
    early = Presence(sqlite_store, NODE, lambda _: None)
    await early.enter(None)

    assert not early.may_publish()
    moved.now += BROKER_AWAITED_S + 1
    assert not early.may_publish()  # it was out of touch
    await early._beat()
    moved.now += BROKER_AWAITED_S + 1
    assert early.may_publish()


async def test_an_end_without_the_database_is_no_error(sqlite_store: Store) -> None:
    store = Failing(sqlite_store, [])
    made = Presence(store, NODE, lambda _: None)  # type: ignore[arg-type]
    await made.enter(None)
    store.errors.append(StoreUnavailable("away"))

    await made.stop()
    await made.stop()


async def test_alone_is_one_that_leads(sqlite_store: Store) -> None:
    alone = Alone("w", NODE)
    alone.running = lambda: 2

    await alone.be_fresh()
    assert alone.is_fresh()
    [state] = await sqlite_store.read(alone.roster)
    assert (state.id, state.running, state.leases, state.gone_at) == ("w", 2, ("leader", "ingest"), None)
