"""The moments at which the clock moves something, all of them at once: for when the clock itself is set."""

from __future__ import annotations

from sqlalchemy import Connection, literal_column, or_, select, update

from iotjobs.store import tables
from iotjobs.store.state_tables import standings, trigger_timers
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
    tx.conn.execute(update(trigger_timers).values(due_at=trigger_timers.c.due_at + by_ms))
    _shift_standings(tx, by_ms)


def _shift_standings(tx: Transaction, by_ms: int) -> None:
    """Of states: since when conditions hold, when reports came, and until when a person forces one."""
    S = standings.c
    waits = or_(S.wake_at.is_not(None), S.heard_at.is_not(None))
    for row in tx.conn.execute(select(S.entity_id, S.holding, S.forced).where(waits)).all():
        forced = row.forced
        if forced is not None and forced["until"] is not None:
            forced = {**forced, "until": forced["until"] + by_ms}
        tx.conn.execute(
            update(standings)
            .where(S.entity_id == row.entity_id)
            .values(
                wake_at=S.wake_at + by_ms,
                heard_at=S.heard_at + by_ms,
                holding={name: since + by_ms for name, since in row.holding.items()},
                forced=forced,
            )
        )


def newest(conn: Connection) -> int | None:
    """The last moment that was written down."""
    at: int | None = conn.execute(_newest).scalar()
    return at
