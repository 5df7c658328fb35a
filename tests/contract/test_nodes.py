from __future__ import annotations

from sqlalchemy import text

from iotjobs import clock
from iotjobs.store import nodes
from iotjobs.store.nodes import LeaseState, Node
from iotjobs.store.session import Store

NODE = Node("host", 7, "1.0", (), 500)


async def enter(store: Store, worker_id: str) -> None:
    await store.write(lambda tx: nodes.register(tx, worker_id, NODE))


async def bury(store: Store, last: dict[str, int]) -> list[str]:
    return await store.write(lambda tx: nodes.bury_silent(tx, last))


async def pass_time(store: Store, table: str, column: str, ms: int) -> None:
    """As if so much time had passed on the database's clock."""
    await store.write(lambda tx: tx.conn.execute(text(f"UPDATE {table} SET {column} = {column} - {ms}")))


async def take(store: Store, holder: str, silent: LeaseState | None = None) -> int | None:
    found = await store.write(lambda tx: nodes.take_lease(tx, "leader", holder, silent))
    return found.epoch if found.holder == holder else None


async def test_a_worker_lives_as_long_as_it_beats(store: Store) -> None:
    await enter(store, "quiet")
    await enter(store, "alive")
    last = await store.read(nodes.beats)
    assert set(last) == {"quiet", "alive"}
    await pass_time(store, "worker", "seen_at", 10 * nodes.SILENT_MS)  # whatever the clock says of it
    assert await bury(store, last) == []

    last = await store.read(nodes.beats)
    assert await store.write(lambda tx: nodes.beat(tx, "alive", 3))
    assert await bury(store, last) == ["quiet"]
    assert await bury(store, last) == []

    assert not await store.write(lambda tx: nodes.beat(tx, "quiet", 3))
    assert not await store.write(lambda tx: nodes.beat(tx, "nobody", 3))
    found = {worker.id: worker for worker in await store.read(nodes.listing)}
    assert found["quiet"].gone_at is not None
    assert (found["alive"].gone_at, found["alive"].running, found["alive"].node) == (None, 3, NODE)
    assert abs(found["alive"].seen_at - clock.now_ms()) < 5000


async def test_the_dead_are_forgotten_after_an_hour_and_who_ends_in_order_at_once(store: Store) -> None:
    await enter(store, "dead")
    await store.write(lambda tx: nodes.bury(tx, "dead"))
    await pass_time(store, "worker", "gone_at", 3600 * 1000 + 500)
    await enter(store, "leaves")
    await store.write(lambda tx: nodes.leave(tx, "leaves"))

    await bury(store, {})

    assert await store.read(nodes.listing) == []


async def test_the_last_beat_is_of_the_living_and_says_whether_somebody_is_connected(store: Store) -> None:
    await enter(store, "other")
    await enter(store, "ours")
    assert not await store.read(nodes.any_broker)  # its connection is still to come
    await store.write(lambda tx: nodes.beat(tx, "ours", 3, connected=True))
    assert await store.read(nodes.any_broker)
    seen_at = await store.read(lambda conn: nodes.last_beat(conn, "ours"))
    assert seen_at == (await store.read(nodes.beats))["ours"]
    await store.write(lambda tx: nodes.beat(tx, "ours", 3))
    assert not await store.read(nodes.any_broker)

    await store.write(lambda tx: nodes.beat(tx, "ours", 3, connected=True))
    await store.write(lambda tx: nodes.bury(tx, "ours"))
    assert not await store.read(nodes.any_broker)
    assert [await store.read(lambda conn, w=w: nodes.last_beat(conn, w)) for w in ("ours", "nobody")] == [
        None,
        None,
    ]


async def test_one_holds_a_lease_until_it_ends_or_is_given_up(store: Store) -> None:
    assert await take(store, "a") == 1
    assert await take(store, "b") is None
    assert await take(store, "a") == 1

    await pass_time(store, "lease", "until", nodes.LEASE_MS + 500)
    assert await take(store, "b") == 2
    assert await take(store, "a") is None

    await store.write(lambda tx: nodes.give_up_lease(tx, "leader", "a"))
    assert await take(store, "a") is None
    await store.write(lambda tx: nodes.give_up_lease(tx, "leader", "b"))
    assert await take(store, "a") == 3


async def test_a_lease_is_taken_as_it_was_seen_and_not_when_it_was_renewed(store: Store) -> None:
    seen = await store.write(lambda tx: nodes.take_lease(tx, "leader", "a"))
    await pass_time(store, "lease", "until", -nodes.LEASE_MS)  # it is renewed

    assert await take(store, "b", seen) is None
    assert await take(store, "b", await store.write(lambda tx: nodes.take_lease(tx, "leader", "b"))) == 2
    assert await take(store, "a", seen) is None


async def test_only_the_newest_epoch_may_write(store: Store) -> None:
    await take(store, "a")
    await pass_time(store, "lease", "until", nodes.LEASE_MS + 500)
    assert await store.write(lambda tx: nodes.is_newest(tx, "leader", 1)), "nobody else has it yet"
    await take(store, "b")

    assert not await store.write(lambda tx: nodes.is_newest(tx, "leader", 1))
    assert await store.write(lambda tx: nodes.is_newest(tx, "leader", 2))
    assert not await store.write(lambda tx: nodes.is_newest(tx, "another", 1))


async def test_a_workers_death_frees_its_leases(store: Store) -> None:
    await enter(store, "a")
    await take(store, "a")
    assert (await store.read(nodes.listing))[0].leases == ("leader",)

    await bury(store, await store.read(nodes.beats))

    assert (await store.read(nodes.listing))[0].leases == ()
    assert await take(store, "b") == 2
