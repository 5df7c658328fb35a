from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update

from iotjobs import clock
from iotjobs.engine.firing import Firing
from iotjobs.engine.leases import Always
from iotjobs.engine.listening import Listening
from iotjobs.engine.timers import AGAIN_MS, Timers
from iotjobs.store import definitions, facts, nodes, rules
from iotjobs.store.definitions import Kind
from iotjobs.store.nodes import Node
from iotjobs.store.session import Store
from iotjobs.store.standings import Snapshot
from iotjobs.store.state_tables import standings as standing_table
from iotjobs.store.state_tables import trigger_timers
from iotjobs.store.writer import Transaction
from tests.services.rows import Engine, MakeEngine, standing_of


async def waiting(engine: Engine) -> tuple[str, Timers]:
    """An object that is silent soon and has a trigger that holds; both a minute ahead."""
    owner_id, operation_id = await engine.script("true")
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 5"})
    await engine.triggers(owner_id, {"states": ["alarm"], "operation_id": operation_id, "hold_s": 60})
    await engine.report(owner_id, t=9)
    return owner_id, Timers(engine.store, engine.reactions, Always())


async def hurry(store: Store) -> None:
    now = clock.now_ms()
    await store.write(lambda tx: tx.conn.execute(update(trigger_timers).values(due_at=now)))
    await store.write(lambda tx: tx.conn.execute(update(standing_table).values(wake_at=now)))


async def test_what_is_due_has_its_effect_once_and_what_is_ahead_none(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    owner_id, timers = await waiting(make_engine())
    assert await timers.look() == 0
    await hurry(sqlite_store)
    assert await timers.look() == 1
    assert await timers.look() == 0
    [trace] = await sqlite_store.read(lambda conn: rules.trace_rows(conn, limit=9, owner_id=owner_id))
    assert trace.decision == "fired"


class Part(Always):
    """A lease that is ours, or not."""

    def __init__(self) -> None:
        self.leads, self.checked = False, 0

    def check(self, tx: Transaction) -> None:
        self.checked += 1


@pytest.mark.parametrize(
    ("leads", "has_ingest", "listens", "looks_by"),
    [
        (True, False, "", "leader"),  # nobody listens
        (True, True, "", "leader"),
        (False, True, "", None),
        (True, False, "us", "leader"),  # the lease has just gone
        (True, True, "us", "ingest"),
        (False, True, "us", "ingest"),
        (False, False, "us", None),
        (True, True, "other", None),
        (False, False, "other", None),
    ],
)
async def test_who_listens_looks_and_where_nobody_does_who_leads(
    sqlite_store: Store,
    make_engine: MakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    leads: bool,
    has_ingest: bool,
    listens: str,
    looks_by: str | None,
) -> None:
    engine = make_engine()
    owner_id, _ = await waiting(engine)
    await hurry(sqlite_store)
    await sqlite_store.write(lambda tx: nodes.register(tx, "other", Node("host", 7, "1.0", (), 500)))
    await sqlite_store.write(lambda tx: facts.put(tx, facts.LISTENS, listens))
    listening = Listening(sqlite_store, lambda: "us")
    await listening.look()
    parts = {"leader": Part(), "ingest": Part()}
    parts["leader"].leads, parts["ingest"].leads = leads, has_ingest
    timers = Timers(sqlite_store, engine.reactions, **parts, listening=listening)

    async def sleep(_: float) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(clock, "sleep", sleep)
    with pytest.raises(ZeroDivisionError):
        await timers._loop()

    [trace] = await sqlite_store.read(lambda conn: rules.trace_rows(conn, limit=9, owner_id=owner_id))
    assert trace.decision == ("held" if looks_by is None else "fired")
    assert {name: part.checked for name, part in parts.items()} == {
        name: int(name == looks_by) for name in parts
    }


async def test_what_waits_for_an_entity_that_is_gone_is_let_go_of(
    sqlite_store: Store, make_engine: MakeEngine
) -> None:
    owner_id, timers = await waiting(make_engine())
    rows = await sqlite_store.read(lambda conn: rules.due_timers(conn, clock.now_ms() + 10**6, 9))
    await sqlite_store.write(lambda tx: definitions.remove(tx, Kind.OBJECT, owner_id))
    # As if it had been deleted while the timer was read.
    await sqlite_store.write(lambda tx: rules.add_timer(tx, dict(rows[0]._asdict())))
    await hurry(sqlite_store)

    assert await timers.look() == 1
    assert await timers.look() == 0
    assert await sqlite_store.read(lambda conn: standing_of(conn, owner_id)) is None


async def test_one_that_fails_in_us_keeps_nobody_waiting(
    sqlite_store: Store, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    bad, timers = await waiting(engine)
    good, _ = await waiting(engine)
    await hurry(sqlite_store)
    changing = Firing.due

    def fails(self: Firing, timer: Any, snapshot: Snapshot) -> bool:
        if snapshot.entity.id == bad:
            raise RuntimeError("a fault of ours")
        return changing(self, timer, snapshot)

    monkeypatch.setattr(Firing, "due", fails)

    assert await timers.look() == 2
    assert await timers.look() == 0
    traces = await sqlite_store.read(lambda conn: rules.trace_rows(conn, limit=9))
    assert {trace.owner_id: trace.decision for trace in traces} == {bad: "held", good: "fired"}
    later = clock.now_ms() + AGAIN_MS
    [left] = await sqlite_store.read(lambda conn: rules.due_timers(conn, later, 9))
    assert left.entity_id == bad
