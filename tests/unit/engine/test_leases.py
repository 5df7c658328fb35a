from __future__ import annotations

import logging

import pytest
from sqlalchemy import text

from iotjobs import clock
from iotjobs.domain.errors import LeaseLost
from iotjobs.engine import leases
from iotjobs.engine.leases import Always, Lease
from iotjobs.store.session import Store
from tests.services.site import eventually


async def let_it_end(store: Store) -> None:
    await store.write(lambda tx: tx.conn.execute(text("UPDATE lease SET until = 1")))


async def test_one_leads_and_the_next_follows_when_it_stops(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "TRY_EVERY_S", 0.01)
    first = Lease(sqlite_store, "leader", lambda: "a")
    second = Lease(sqlite_store, "leader", lambda: "b")
    assert await first.seek()
    await second.start()
    assert not await second.seek()
    assert (first.leads, second.leads) == (True, False)

    await first.stop()

    await eventually(lambda: second.leads, 3)
    assert not first.leads
    await second.stop()


async def test_who_renews_is_seen_to_lead_and_who_holds_no_more_than_a_row_is_not(
    sqlite_store: Store,
) -> None:
    first = Lease(sqlite_store, "leader", lambda: "a")
    second = Lease(sqlite_store, "leader", lambda: "b")
    await first.seek()
    for renewed in (False, False, True):
        if renewed:
            await first.seek()
        await second.seek()
        assert second.another_leads == renewed
    await let_it_end(sqlite_store)

    assert await second.seek()
    assert (second.leads, second.another_leads, first.another_leads) == (True, False, False)


async def test_a_late_write_of_an_old_leader_is_refused_and_logged(
    sqlite_store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = Lease(sqlite_store, "leader", lambda: "a"), Lease(sqlite_store, "leader", lambda: "b")
    await old.seek()
    await sqlite_store.write(old.check)
    await let_it_end(sqlite_store)
    await new.seek()

    with caplog.at_level(logging.WARNING), pytest.raises(LeaseLost, match="epoch 1"):
        await sqlite_store.write(old.check)

    assert not old.leads
    assert "a late write was refused" in caplog.text
    await sqlite_store.write(new.check)
    with pytest.raises(LeaseLost):
        await sqlite_store.write(old.check)


async def test_who_slept_does_not_lead_whatever_it_remembers(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = Lease(sqlite_store, "leader", lambda: "a")
    await lease.seek()
    woken = clock.monotonic() + 16
    monkeypatch.setattr(clock, "monotonic", lambda: woken)

    assert not lease.leads
    assert await lease.seek()
    assert lease.leads


async def test_a_lease_that_nobody_renewed_is_taken_although_the_clock_was_set_back(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(clock, "monotonic", lambda: now)
    holder, candidate = Lease(sqlite_store, "leader", lambda: "a"), Lease(sqlite_store, "leader", lambda: "b")
    await holder.seek()
    await sqlite_store.write(lambda tx: tx.conn.execute(text("UPDATE lease SET until = until + 86400000")))
    for _ in range(8):
        assert not await candidate.seek()
        now += 2
    await holder.seek()  # it was only slow
    for _ in range(8):
        assert not await candidate.seek()
        now += 2

    assert not await candidate.seek()
    assert await candidate.seek()
    assert not await holder.seek()


async def test_who_is_not_fit_does_not_seek_it_and_lets_go_of_it_to_another(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "TRY_EVERY_S", 0.05)
    monkeypatch.setattr(leases, "LOOK_EVERY_S", 0.01)
    first, second = Lease(sqlite_store, "ingest", lambda: "a"), Lease(sqlite_store, "ingest", lambda: "b")
    fit = {"a": True, "b": False}
    first.fit, second.fit = (lambda: fit["a"]), (lambda: fit["b"])
    await first.start()
    await eventually(lambda: first.leads, 3)
    await second.start()
    fit["a"] = False
    await eventually(lambda: not first.leads, 3)  # at once, and not at its next renewal
    assert not second.leads

    fit["b"] = True
    await eventually(lambda: second.leads, 3)
    fit["a"], fit["b"] = True, False
    await eventually(lambda: first.leads, 3)
    assert not second.leads
    await first.stop()
    await second.stop()


async def test_alone_always_leads(sqlite_store: Store) -> None:
    assert Always().leads
    await sqlite_store.write(Always().check)
