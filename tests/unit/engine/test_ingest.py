from __future__ import annotations

import pytest

from iotjobs import clock
from iotjobs.domain.errors import LeaseLost, StoreUnavailable
from iotjobs.engine import ingest
from iotjobs.engine.ingest import DEAF_S, FIRST_WITHIN_S, Ingest
from iotjobs.engine.leases import Always
from iotjobs.store import facts
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from tests.services.rows import Failing
from tests.services.site import eventually


class Part:
    """Counts whether it runs; start and stop may come again and again."""

    def __init__(self) -> None:
        self.running, self.connected, self.begun = False, False, 0
        self.is_empty, self.is_stuck = True, False

    async def start(self) -> None:
        self.begun += not self.running
        self.running = True

    async def stop(self) -> None:
        self.running = self.connected = False


class Lent(Always):
    """A standing that the test gives and takes."""

    leads = False

    def check(self, tx: Transaction) -> None:
        if not self.leads:
            raise LeaseLost("taken")


class Listener:
    """The service with its parts."""

    def __init__(self, store: Store) -> None:
        self.store, self.standing = store, Lent()
        self.inbox, self.consumer, self.publisher = Part(), Part(), Part()
        self.worker_id = "w1"
        self.service = Ingest(
            store,
            self.standing,
            self.inbox,
            self.consumer,
            publisher=self.publisher,
            worker_id=lambda: self.worker_id,
        )

    async def written(self) -> str | None:
        return await self.store.read(lambda conn: facts.value(conn, facts.LISTENS))

    async def comes_to_say(self, who: str) -> None:
        async def says() -> bool:
            return await self.written() == who

        await eventually(says, 3)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "LOOK_EVERY_S", 0.01)


async def test_its_parts_run_while_the_lease_is_held(sqlite_store: Store) -> None:
    listener = Listener(sqlite_store)
    parts = [listener.inbox, listener.consumer]
    await listener.service.start()

    listener.standing.leads = True
    await eventually(lambda: all(part.running for part in parts), 3)
    listener.standing.leads = False
    await eventually(lambda: not any(part.running for part in parts), 3)
    listener.standing.leads = True
    await eventually(lambda: all(part.running for part in parts), 3)
    await listener.service.stop()

    assert not any(part.running for part in parts)


async def test_a_lease_that_was_lost_and_taken_again_between_two_looks_begins_anew(
    sqlite_store: Store,
) -> None:
    listener = Listener(sqlite_store)
    parts = [listener.inbox, listener.consumer]
    listener.standing.leads = True
    await listener.service.start()
    await eventually(lambda: all(part.running for part in parts), 3)

    listener.standing.epoch += 1
    await eventually(lambda: all(part.begun == 2 for part in parts), 3)
    assert all(part.running for part in parts)
    await listener.service.stop()


async def test_who_listens_is_written_down_once_what_waited_is_worked_through(sqlite_store: Store) -> None:
    listener = Listener(sqlite_store)
    await sqlite_store.write(lambda tx: facts.put(tx, facts.LISTENS, "who held the lease before"))
    listener.standing.leads, listener.inbox.is_empty = True, False
    await listener.service.start()
    await listener.comes_to_say("")

    listener.consumer.connected = True
    await listener.service._tell()
    assert await listener.written() == ""
    listener.inbox.is_empty = True
    await listener.comes_to_say("w1")
    listener.inbox.is_empty = False  # what comes now is no backlog
    listener.worker_id = "w2"  # declared dead, it goes on under another id
    await listener.comes_to_say("w2")
    listener.consumer.connected = False
    await listener.comes_to_say("")
    await listener.service.stop()


async def test_who_does_not_hold_the_lease_any_more_writes_nothing(sqlite_store: Store) -> None:
    listener = Listener(sqlite_store)
    listener.consumer.connected = True
    await listener.service._tell()
    assert await listener.written() is None


async def test_who_lost_the_lease_while_the_store_was_away_does_not_stand_there_as_who_listens(
    sqlite_store: Store,
) -> None:
    failing = Failing(sqlite_store, [])
    listener = Listener(failing)  # type: ignore[arg-type]
    listener.standing.leads = True
    await listener.service.start()
    await eventually(lambda: listener.consumer.running, 3)
    listener.consumer.connected = True
    await listener.comes_to_say("w1")

    failing.errors += [StoreUnavailable("away")] * 5
    listener.standing.leads = False
    await eventually(lambda: not failing.errors, 3)
    await listener.comes_to_say("")
    await sqlite_store.write(lambda tx: facts.put(tx, facts.LISTENS, "w7"))  # another one does
    await listener.service._take_back("w1")
    assert await listener.written() == "w7"
    await listener.service.stop()


async def test_what_could_not_be_written_is_written_later(sqlite_store: Store) -> None:
    listener = Listener(Failing(sqlite_store, [StoreUnavailable("away")] * 3))  # type: ignore[arg-type]
    listener.standing.leads = True
    await listener.service.start()
    await eventually(lambda: listener.consumer.running, 3)
    listener.consumer.connected = True
    await listener.comes_to_say("w1")
    await listener.service.stop()


def test_who_reaches_no_broker_does_not_seek_the_lease_and_lets_go_of_it(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    listener = Listener(sqlite_store)
    is_fit = listener.service.is_fit
    assert not is_fit()
    listener.publisher.connected = True
    now += 100
    assert is_fit()

    listener.standing.leads = True
    listener.publisher.connected = False
    now += FIRST_WITHIN_S - 1
    assert is_fit()  # its consumer is about to connect
    now += 1
    assert not is_fit()
    listener.consumer.connected = True
    now += 100
    assert is_fit()
    listener.consumer.connected = False
    now += DEAF_S - 1
    assert is_fit()
    now += 1
    assert not is_fit()


async def test_who_cannot_write_down_what_it_hears_does_not_listen(sqlite_store: Store) -> None:
    listener = Listener(sqlite_store)
    listener.standing.leads = True
    await listener.service.start()
    await eventually(lambda: listener.consumer.running)
    listener.consumer.connected = True
    await listener.comes_to_say("w1")

    listener.inbox.is_stuck, listener.inbox.is_empty = True, False
    await listener.comes_to_say("")
    listener.inbox.is_stuck = False
    await eventually(lambda: listener.inbox.running)
    assert await listener.written() == ""  # until what came meanwhile is worked through
    listener.inbox.is_empty = True

    await listener.comes_to_say("w1")
    await listener.service.stop()
