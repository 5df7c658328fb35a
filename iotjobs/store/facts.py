"""Facts of the site that are made once and remembered."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection, bindparam, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from iotjobs.store import tables
from iotjobs.store.secrets import lock_start
from iotjobs.store.statements import Prepared
from iotjobs.store.writer import Transaction


def remembered(tx: Transaction, name: str, make: Callable[[], str]) -> str:
    """The fact of this name; made and kept at the first call, by one of the nodes that start together."""
    lock_start(tx.conn)
    value: str | None = tx.conn.execute(
        select(tables.site.c.value).where(tables.site.c.name == name)
    ).scalar()
    if value is None:
        value = make()
        tx.conn.execute(insert(tables.site), {"name": name, "value": value})
    return value


_value = Prepared(select(tables.site.c.value).where(tables.site.c.name == bindparam("wanted")))


def value(conn: Connection, name: str) -> str | None:
    """A fact; None where nobody has put it."""
    found: str | None = _value.scalar(conn, {"wanted": name})
    return found


def put(tx: Transaction, name: str, value: str) -> None:
    """Make this the value of a fact, whatever it was."""
    put_first(tx, name, value)
    tx.conn.execute(update(tables.site).where(tables.site.c.name == name).values(value=value))


def put_first(tx: Transaction, name: str, value: str) -> None:
    """Make this the value of a fact that has none yet."""
    made = postgresql.insert if tx.conn.dialect.name == "postgresql" else sqlite.insert
    tx.conn.execute(made(tables.site).on_conflict_do_nothing(), {"name": name, "value": value})
