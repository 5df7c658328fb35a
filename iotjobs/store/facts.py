"""Facts of the site that are made once and remembered."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sqlalchemy import Connection, bindparam, insert, select, update

from iotjobs.store import tables
from iotjobs.store.secrets import lock_start
from iotjobs.store.statements import Prepared, insert_if_new
from iotjobs.store.writer import Transaction

# Of who consumes what devices send; there since the site first had a broker.
MQTT_CLIENT_ID = "mqtt_client_id"
# What the broker may send it: every filter, a line each, that was ever subscribed to under that id.
MQTT_FILTERS = "mqtt_filters"
# The worker that does, or nobody: empty. Not there before somebody did for the first time.
LISTENS = "listens"


def known(conn: Connection, name: str) -> bool:
    """Whether there is a fact of this name."""
    return conn.execute(select(tables.site.c.name).where(tables.site.c.name == name)).first() is not None


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


def subscribed(tx: Transaction, filters: Iterable[str]) -> set[str]:
    """Note what is about to be subscribed to; with what was before."""
    lock_start(tx.conn)
    before = value(tx.conn, MQTT_FILTERS)
    known_filters = {*filters, *(before.split("\n") if before else ())}
    put(tx, MQTT_FILTERS, "\n".join(sorted(known_filters)))
    return known_filters


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
    insert_if_new(tx.conn, tables.site, {"name": name, "value": value})


def replace(tx: Transaction, name: str, expected: str, value: str) -> bool:
    """Make this the value of a fact if it still has the expected one; whether it had."""
    fact = tables.site.c
    change = update(tables.site).where(fact.name == name, fact.value == expected).values(value=value)
    return tx.conn.execute(change).rowcount == 1
