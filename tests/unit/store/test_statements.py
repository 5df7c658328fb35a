from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.exc import IntegrityError

from iotjobs.store import tables
from iotjobs.store.session import sqlite_engine
from iotjobs.store.statements import Prepared, _of_rows, in_one

E = tables.events.c
_insert = Prepared(insert(tables.events), ("kind", "at", "job_id", "entity_id", "data"))
_find = Prepared(select(E.id, E.data).where(E.kind == bindparam("wanted")).order_by(E.id))


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[Connection]:
    engine = sqlite_engine(str(tmp_path / "x.db"), read_only=False)
    tables.metadata.create_all(engine)
    with engine.connect() as opened:
        yield opened
    engine.dispose()


def event(kind: str, **data: object) -> dict[str, object]:
    return {"kind": kind, "at": 1, "job_id": None, "entity_id": None, "data": data}


def test_values_go_through_the_types_of_core_on_both_ways(conn: Connection) -> None:
    number = _insert.insert(conn, event("a", text="é", list=[1, None]))

    assert _find.first(conn, {"wanted": "a"}) == (number, {"text": "é", "list": [1, None]})
    assert conn.execute(select(E.data)).scalar_one() == {"text": "é", "list": [1, None]}


def test_rows_come_in_order_and_nothing_is_none(conn: Connection) -> None:
    _insert.insert_all(conn, [event("a", n=1), event("b", n=2), event("a", n=3)])

    assert [row.data["n"] for row in _find.all(conn, {"wanted": "a"})] == [1, 3]
    assert _find.first(conn, {"wanted": "nothing"}) is None
    assert _find.scalar(conn, {"wanted": "nothing"}) is None


def test_an_update_tells_how_many_rows_it_changed(conn: Connection) -> None:
    _insert.insert_all(conn, [event("a"), event("a"), event("b")])
    change = Prepared(update(tables.events).where(E.kind == bindparam("is_kind")).values(at=bindparam("at")))

    assert change.run(conn, {"is_kind": "a", "at": 5}) == 2
    assert change.run(conn, {"is_kind": "c", "at": 5}) == 0


def test_it_belongs_to_the_transaction(conn: Connection) -> None:
    _insert.insert(conn, event("a"))
    conn.rollback()

    assert _find.all(conn, {"wanted": "a"}) == []


def test_the_drivers_error_is_cores_error(conn: Connection) -> None:
    site = Prepared(insert(tables.site), ("name", "value"))
    site.run(conn, {"name": "x", "value": "1"})

    with pytest.raises(IntegrityError):
        site.run(conn, {"name": "x", "value": "2"})


def test_a_statement_whose_text_changes_with_its_values_is_refused(conn: Connection) -> None:
    with pytest.raises(AssertionError, match="changes with its values"):
        Prepared(select(E.id).where(E.kind.in_(["a", "b"]))).all(conn)


def test_an_insert_of_one_row_is_made_one_of_many() -> None:
    one = "INSERT INTO a (g, x, y) VALUES ((SELECT v FROM s), $1::VARCHAR, $2::JSON)"

    assert _of_rows(one) == (
        "INSERT INTO a (g, x, y) SELECT (SELECT v FROM s), rows.v1, rows.v2 "
        "FROM unnest($1::VARCHAR[], $2::JSON[]) WITH ORDINALITY AS rows (v1, v2, place) ORDER BY place"
    )
    for unfit in ("INSERT INTO a (x) VALUES ($1)", "INSERT INTO a (x) VALUES ($1::INT) RETURNING a.x"):
        with pytest.raises(AssertionError, match=re.escape(unfit)):
            _of_rows(unfit)


def test_statements_in_one_count_their_values_through() -> None:
    parts = ("INSERT INTO a VALUES ($1, $2)", "INSERT INTO b VALUES ($2, $1)", "INSERT INTO c VALUES ($1)")

    assert in_one(parts) == (
        "WITH part0 AS (INSERT INTO a VALUES ($1, $2)), part1 AS (INSERT INTO b VALUES ($4, $3)) "
        "INSERT INTO c VALUES ($5)"
    )
    assert in_one(parts[:1]) == parts[0]
