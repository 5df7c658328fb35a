"""The moments at which the clock moves something, all of them at once: for when the clock itself is set."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, literal_column, select, update

from iotjobs.domain.errors import LeaseLost
from iotjobs.store import events, facts, nodes, tables, tickets
from iotjobs.store.events import Position
from iotjobs.store.state_tables import firings, standings, trigger_timers
from iotjobs.store.writer import Transaction

E = tables.events.c
S = tables.site.c
KEPT = tables.idempotency.c

_SHIFTED = "clock_shifted"  # the fact that holds a `Mark`
_newest = (
    select(E.generation, E.xid, E.id, E.at).order_by(E.generation.desc(), E.xid.desc(), E.id.desc()).limit(1)
)


@dataclass(frozen=True, slots=True)
class Mark:
    """How often the clock was set, all together, as far as what is to come was moved with it.

    Attributes:
        total_ms: the sum of all moves.
        at: when the last of them was made, by the clock as it was set then.
        behind: the newest event at that moment; its own moment is of the clock before.
    """

    total_ms: int = 0
    at: int = 0
    behind: Position = events.BEGINNING

    def __str__(self) -> str:
        return f"{self.total_ms} {self.at} {self.behind}"

    @classmethod
    def parse(cls, text: str) -> Mark:
        """The mark of a fact."""
        total, at, behind = text.split(" ")
        return cls(int(total), int(at), Position.parse(behind))


def mark(conn: Connection) -> Mark:
    """The last mark."""
    text = conn.execute(select(S.value).where(S.name == _SHIFTED)).scalar()
    return Mark() if text is None else Mark.parse(text)


def clock_and_mark(conn: Connection) -> tuple[int, Mark]:
    """The moment of the clock that everybody goes by, and the last mark."""
    return nodes.clock_ms(conn), mark(conn)


def shift(tx: Transaction, by_ms: int, before: Mark, at: int) -> Mark:
    """Move every moment that is still to come, so that what remains until it is as before; the new mark.

    Also when triggers fired, as long as that bears on what is still to come.

    Args:
        tx: the transaction.
        by_ms: how far the clock was set, beyond what the mark before tells.
        before: the last mark that was seen.
        at: the moment by the clock as it is set now.

    Raises:
        LeaseLost: somebody has moved them since.
    """
    row = tx.conn.execute(_newest).first()
    made = Mark(before.total_ms + by_ms, at, events.BEGINNING if row is None else Position(*row[:3]))
    facts.put_first(tx, _SHIFTED, str(Mark()))
    if not facts.replace(tx, _SHIFTED, str(before), str(made)):
        raise LeaseLost("what is to come was moved by somebody else")
    for moment, where in tables.DUE.items():
        column = tables.jobs.c[moment]
        tx.conn.execute(update(tables.jobs).where(literal_column(where)).values({moment: column + by_ms}))
    # Not the time to live of a job that runs: it stands still, beside `begun_at`. See `jobs.try_again`.
    tx.conn.execute(update(tables.idempotency).values(at=KEPT.at + by_ms))
    tx.conn.execute(update(trigger_timers).values(due_at=trigger_timers.c.due_at + by_ms))
    tx.conn.execute(update(firings).values(at=firings.c.at + by_ms))
    _shift_standings(tx, by_ms, at)
    if tx.conn.dialect.name == "postgresql":
        tickets.shift(tx.conn, by_ms)
    return made


def _shift_standings(tx: Transaction, by_ms: int, now: int) -> None:
    """Of states: since when conditions hold, when reports came, and until when a person forces one.

    What time alone may change is looked at now: the edges of periods are of the clock, and do not move with it.
    """
    S = standings.c
    for row in tx.conn.execute(select(S.entity_id, S.wake_at, S.heard_at, S.holding, S.forced)).all():
        forced = row.forced
        if row.wake_at is None and row.heard_at is None and not row.holding and forced is None:
            continue
        if forced is not None and forced["until"] is not None:
            forced = {**forced, "until": forced["until"] + by_ms}
        tx.conn.execute(
            update(standings)
            .where(S.entity_id == row.entity_id)
            .values(
                wake_at=None if row.wake_at is None else now,
                heard_at=S.heard_at + by_ms,
                known_until=S.known_until + by_ms,
                holding={name: since + by_ms for name, since in row.holding.items()},
                forced=forced,
            )
        )


def newest(conn: Connection) -> int | None:
    """The last moment that was written down, by the clock as it was set then."""
    row, last = conn.execute(_newest).first(), mark(conn)
    if row is None or Position(*row[:3]) <= last.behind:
        return last.at or None
    return int(row.at)
