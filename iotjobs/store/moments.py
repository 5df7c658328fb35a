"""The moments at which the clock moves something, all of them at once: for when the clock itself is set."""

from __future__ import annotations

from sqlalchemy import Connection, literal_column, select, update

from iotjobs.store import tables
from iotjobs.store.writer import Transaction

E = tables.events.c
KEPT = tables.idempotency.c

_newest = select(E.at).order_by(E.generation.desc(), E.xid.desc(), E.id.desc()).limit(1)


def shift(tx: Transaction, by_ms: int) -> None:
    """Move every moment that is still to come, so that what remains until it is as before."""
    for moment, where in tables.DUE.items():
        column = tables.jobs.c[moment]
        tx.conn.execute(update(tables.jobs).where(literal_column(where)).values({moment: column + by_ms}))
    tx.conn.execute(update(tables.idempotency).values(at=KEPT.at + by_ms))


def newest(conn: Connection) -> int | None:
    """The last moment that was written down."""
    at: int | None = conn.execute(_newest).scalar()
    return at
