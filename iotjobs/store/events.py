"""Events as a reader sees them: in one order, each once, and never one behind which another may still appear.

PostgreSQL counts an event's number before its commit, so a later number may become visible first. So a
row carries the number of its transaction, and only rows below the oldest transaction still open are
read. After a restore the transactions count anew, and what was committed after the backup never was:
the generation tells the two lives apart, and older ones are all readable.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, Connection, bindparam, delete, literal_column, or_, select, tuple_

from iotjobs.domain.errors import BadRequest
from iotjobs.store import facts, tables
from iotjobs.store.statements import Prepared
from iotjobs.store.writer import Transaction

E = tables.events.c
S = tables.site.c

PRUNED = "events_pruned"  # the fact that holds the newest position that was ever deleted
_POSITION = re.compile(r"([0-9]{1,18})-([0-9]{1,18})-([0-9]{1,18})\Z", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Where an event stands; its text `generation-xid-id` is the event's public id, opaque to clients."""

    generation: int
    xid: int
    number: int

    def __str__(self) -> str:
        return f"{self.generation}-{self.xid}-{self.number}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position of a public id.

        Raises:
            BadRequest: it is not one of ours.
        """
        found = _POSITION.match(text)
        if found is None:
            raise BadRequest("this is no event's id: start again without it", field="after")
        return cls(int(found[1]), int(found[2]), int(found[3]))


BEGINNING = Position(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened; `at` is in milliseconds."""

    position: Position
    kind: str
    at: int
    job_id: str | None
    entity_id: str | None
    data: dict[str, Any]


_oldest_open = literal_column("pg_snapshot_xmin(pg_current_snapshot())::text::bigint", BigInteger)
_place = tuple_(E.generation, E.xid, E.id)
_settled = or_(E.generation < tables.current_generation, E.xid < _oldest_open)
_columns = (E.generation, E.xid, E.id, E.kind, E.at, E.job_id, E.entity_id, E.data)
_behind = (
    select(*_columns)
    .where(_place > tuple_(bindparam("generation"), bindparam("xid"), bindparam("number")))
    .order_by(E.generation, E.xid, E.id)
    .limit(bindparam("limit"))
)
_after = {"sqlite": Prepared(_behind), "postgresql": Prepared(_behind.where(_settled))}
_last = select(E.generation, E.xid, E.id).order_by(E.generation.desc(), E.xid.desc(), E.id.desc()).limit(1)
_newest = {"sqlite": Prepared(_last), "postgresql": Prepared(_last.where(_settled))}
_held = Prepared(
    select(E.at)
    .where(E.generation == tables.current_generation, E.xid >= _oldest_open)
    .order_by(E.xid, E.id)
    .limit(1)
)
_mark = Prepared(select(S.value).where(S.name == PRUNED))


def after(conn: Connection, position: Position, limit: int) -> list[Event]:
    """The next events behind a position, in order; nothing will ever appear between two of them."""
    place = {"generation": position.generation, "xid": position.xid, "number": position.number}
    rows = _after[conn.dialect.name].all(conn, {**place, "limit": limit})
    return [Event(Position(*row[:3]), *row[3:]) for row in rows]


def newest(conn: Connection) -> Position:
    """Where a reader starts that wants only what comes now."""
    row = _newest[conn.dialect.name].first(conn)
    return max(BEGINNING if row is None else Position(*row), pruned(conn))


def pruned(conn: Connection) -> Position:
    """The newest position that was ever deleted: who resumes below it may miss something.

    To be read after the events that it is held against, since it moves with their deletion.
    """
    value = _mark.scalar(conn)
    return BEGINNING if value is None else Position.parse(value)


def held_since(conn: Connection) -> int | None:
    """The moment of the oldest event that an open transaction keeps from being read; None on SQLite."""
    if conn.dialect.name == "sqlite":
        return None
    moment: int | None = _held.scalar(conn)
    return moment


def forget(tx: Transaction, job_ids: Sequence[str]) -> None:
    """Delete the events of jobs, and move the mark below which a resume is told of a gap."""
    of_jobs = E.job_id.in_(job_ids)
    row = tx.conn.execute(_last.where(of_jobs)).first()
    if row is not None:
        _raise_mark(tx, Position(*row))
        tx.conn.execute(delete(tables.events).where(of_jobs))


def forget_older(tx: Transaction, *, limit: int, before: int) -> int:
    """Delete the oldest events that belong to no job, from before a moment, and move the mark; how many."""
    page = select(E.generation, E.xid, E.id, E.at).where(E.job_id.is_(None)).order_by(E.id).limit(limit)
    old = [Position(*row[:3]) for row in tx.conn.execute(page) if row.at < before]
    if old:
        _raise_mark(tx, max(old))
        tx.conn.execute(delete(tables.events).where(E.id.in_([position.number for position in old])))
    return len(old)


def begin_generation(tx: Transaction, now: int) -> int:
    """A life of the database begins that is not the straight continuation of the last; its number.

    Numbers are seconds, so that two restores of the same backup have different ones. Whoever resumes
    from an older one is told of a gap.
    """
    current: int = tx.conn.execute(select(tables.current_generation)).scalar_one()
    generation = max(current + 1, now // 1000)
    facts.put(tx, tables.GENERATION, str(generation))
    _raise_mark(tx, Position(generation, 0, 0))
    return generation


def _raise_mark(tx: Transaction, to: Position) -> None:
    facts.put_first(tx, PRUNED, str(BEGINNING))
    mark = tx.conn.execute(select(S.value).where(S.name == PRUNED).with_for_update()).scalar_one()
    if Position.parse(mark) < to:
        facts.put(tx, PRUNED, str(to))
