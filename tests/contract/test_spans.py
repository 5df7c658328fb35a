"""Lists of what happened within a span of moments: the right rows, page by page and by an index, on both databases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert

from iotjobs import clock
from iotjobs.store import rules, standings
from iotjobs.store.session import Store
from iotjobs.store.spans import ALWAYS, Between
from iotjobs.store.state_tables import property_history, state_changes, traces

# The clock was set back once: moments are not in the order of ids.
MOMENTS = [10, 20, 30, 40, 25, 30, 30, 50]
SPANS = [ALWAYS, Between(20, 30), Between(30), Between(None, 25), Between(31, 39), Between(30, 30)]

Ask = Callable[..., Sequence[Any]]


def change(owner: str, at: int) -> dict[str, Any]:
    common = {"entity_id": owner, "owner_type": 1, "entity_name": owner, "why": {}, "depth": 0}
    return {"id": clock.new_id(), "from_state": "a", "to_state": "b", "at": at, **common}


def trace(owner: str, at: int, number: int) -> dict[str, Any]:
    common = {
        "trigger_id": "t",
        "trigger_name": "t",
        "owner_type": 1,
        "state": "b",
        "decision": "fired",
        "reason": "",
    }
    key = f"{owner} {number}"
    return {"cause_key": key, "owner_id": owner, "state_change_id": key, "at": at, "job_id": None, **common}


@pytest.fixture
async def recorded(store: Store) -> Store:
    def fill(tx: Any) -> None:
        for number, at in enumerate(MOMENTS):
            for owner in ("one", "other"):
                tx.conn.execute(insert(state_changes), change(owner, at))
                tx.conn.execute(insert(traces), trace(owner, at, number))
                row = {"entity_id": owner, "name": "n", "value": at, "at": at, "step": number}
                tx.conn.execute(insert(property_history), row)

    await store.write(fill)
    return store


LISTS: list[tuple[str, Ask, bool]] = [
    ("changes of one", lambda conn, **given: standings.changes(conn, entity_id="one", **given), True),
    ("changes", standings.changes, False),
    ("traces of one", lambda conn, **given: rules.trace_rows(conn, owner_id="one", **given), True),
    ("traces", rules.trace_rows, False),
    ("values", lambda conn, **given: standings.history(conn, "one", "n", **given), True),
]


@pytest.mark.parametrize("span", SPANS, ids=str)
@pytest.mark.parametrize(("ask", "of_one"), [one[1:] for one in LISTS], ids=[one[0] for one in LISTS])
async def test_a_list_of_a_span_has_all_of_it_once_over_its_pages(
    recorded: Store, ask: Ask, of_one: bool, span: Between
) -> None:
    def pages(conn: Connection) -> list[Any]:
        found: list[Any] = []
        while len(found) < 100:
            before = found[-1].id if found else None
            page = ask(conn, limit=3, before=before, span=span)
            found += page
            if len(page) < 3:
                break
        return found

    found = await recorded.read(pages)

    least, most = span.since or 0, span.until or 99
    wanted = sorted(at for at in MOMENTS if least <= at <= most) * (1 if of_one else 2)
    assert sorted(row.at for row in found) == sorted(wanted)
    assert len({row.id for row in found}) == len(found)
    newest = [row.at if not of_one and span != ALWAYS else row.id for row in found]
    assert newest == sorted(newest, reverse=True)


@pytest.mark.parametrize("before", [False, True], ids=["first", "next"])
@pytest.mark.parametrize("ask", [one[1] for one in LISTS], ids=[one[0] for one in LISTS])
async def test_a_list_of_a_span_is_read_by_an_index(recorded: Store, ask: Ask, before: bool) -> None:
    asked: list[tuple[str, Any]] = []

    def query(conn: Connection) -> str:
        def note(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            asked.append((statement, parameters))

        if conn.dialect.name == "postgresql":
            conn.exec_driver_sql("SET enable_seqscan = off")  # a few rows are scanned otherwise
            conn.exec_driver_sql("SET enable_bitmapscan = off")
        rows = ask(conn, limit=3)
        event.listen(conn, "before_cursor_execute", note)
        ask(conn, limit=3, before=rows[0].id if before else None, span=Between(20, 30))
        event.remove(conn, "before_cursor_execute", note)
        explain = "EXPLAIN QUERY PLAN " if conn.dialect.name == "sqlite" else "EXPLAIN "
        [(statement, parameters)] = asked
        return "\n".join(str(row) for row in conn.exec_driver_sql(explain + statement, parameters))

    plan = await recorded.read(query)

    assert "INDEX" in plan.upper(), plan
    for scan in ("Seq Scan", "SCAN state_change", "SCAN trigger_trace", "SCAN property_history"):
        assert scan not in plan, plan
    assert "FOR ORDER BY" not in plan or "property_history" in plan, (
        plan
    )  # of one property, which is not long
