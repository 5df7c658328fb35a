"""What a restored site does about what its triggers waited for: on both databases."""

from __future__ import annotations

import pytest
from sqlalchemy import func, select, update

from iotjobs.engine.leases import Always
from iotjobs.engine.timers import Timers
from iotjobs.store import backups, rules, tables
from iotjobs.store.session import Store
from iotjobs.store.state_tables import trigger_timers
from tests.services.rows import Engine


@pytest.mark.parametrize("moved", [False, True])
async def test_what_a_trigger_waited_for_comes_only_where_nothing_followed_the_backup(
    store: Store, moved: bool
) -> None:
    engine = Engine(store)
    owner_id, operation_id = await engine.script("true")
    given = {"states": ["alarm"], "operation_id": operation_id}
    await engine.conditions(owner_id, {"state": "alarm", "when": "t > 5"})
    await engine.triggers(owner_id, {**given, "hold_s": 60}, {**given, "repeat_s": 60})
    await engine.report(owner_id, t=9)  # one waits, the other fired, and will again
    fired = select(func.count()).select_from(tables.jobs)
    assert await store.read(lambda conn: conn.execute(fired).scalar_one()) == 1

    await backups.begin_life(store, None, moved=moved)
    await store.write(lambda tx: tx.conn.execute(update(trigger_timers).values(due_at=1)))
    due = await Timers(store, engine.reactions, Always()).look()

    await engine.stop()
    assert due == (2 if moved else 0)
    assert await store.read(lambda conn: conn.execute(fired).scalar_one()) == (3 if moved else 1)
    traces = await store.read(lambda conn: rules.trace_rows(conn, limit=9, owner_id=owner_id))
    decided = sorted(trace.decision for trace in traces)
    assert decided == (["fired"] * 3 if moved else ["fired", "hold_canceled"])
    if not moved:
        assert {trace.reason for trace in traces} == {
            "entered alarm",
            "the site was restored from a backup in which it waited; it may have fired since",
        }
