"""Who works on this database: worker rows with their heartbeat, and leases.

Every moment here is of the database's clock, so that nodes need not agree on theirs; who is silent is
judged by whether it changes (`engine.silence`). A worker that was declared dead stays so: its row never
beats again, whatever its process does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, text, update
from sqlalchemy.sql.elements import TextClause

from iotjobs.store import tables
from iotjobs.store.statements import Prepared
from iotjobs.store.writer import Transaction

# Three heartbeats missed; a worker does not send when its last one is older than half of this.
SILENT_MS = 10_000
LEASE_MS = 15_000
# How long GET /workers still shows those that died.
_SHOWN_MS = 3600 * 1000

W, L = tables.workers.c, tables.leases.c
_NOW = {
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)",
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS integer)",
}


@dataclass(frozen=True, slots=True)
class Node:
    """What a process says of itself.

    Attributes:
        queues: those that it takes from; empty means all.
        at_once: how many attempts it runs at the same time at most.
        mqtt: whether it has a broker.
    """

    host: str
    pid: int
    version: str
    queues: tuple[str, ...]
    at_once: int
    mqtt: bool = False


@dataclass(frozen=True, slots=True)
class WorkerState:
    """A worker as the others see it.

    Attributes:
        leases: names of what it alone does.
        gone_at: when it was declared dead.
    """

    id: str
    node: Node
    running: int
    started_at: int
    seen_at: int
    gone_at: int | None
    leases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LeaseState:
    """Who holds a lease, and until when if it is not renewed."""

    holder: str
    epoch: int
    until: int


@cache
def _sql(dialect: str, statement: str) -> TextClause:
    return text(statement.replace(":clock", _NOW[dialect]))


def _on(conn: Connection, statement: str) -> TextClause:
    return _sql(conn.dialect.name, statement)


def clock_ms(conn: Connection) -> int:
    """The database's moment."""
    return int(conn.execute(_on(conn, "SELECT :clock")).scalar_one())


# -- workers --------------------------------------------------------------------------------------


def register(tx: Transaction, worker_id: str, node: Node) -> None:
    """Add a worker; it is alive from now on."""
    now = clock_ms(tx.conn)
    row: dict[str, Any] = {
        "id": worker_id,
        "host": node.host,
        "pid": node.pid,
        "version": node.version,
        "queues": list(node.queues),
        "at_once": node.at_once,
        "mqtt": False,  # its connection is still to come
        "running": 0,
        "started_at": now,
        "seen_at": now,
    }
    tx.conn.execute(insert(tables.workers), row)


def beat(tx: Transaction, worker_id: str, running: int, *, connected: bool = False) -> bool:
    """Note that a worker lives, and whether it is connected to the broker; False when it was declared dead."""
    beaten = tx.conn.execute(
        _on(
            tx.conn,
            "UPDATE worker SET seen_at = :clock, running = :running, mqtt = :mqtt "
            "WHERE id = :id AND gone_at IS NULL",
        ),
        {"id": worker_id, "running": running, "mqtt": connected},
    )
    return beaten.rowcount == 1


def any_broker(conn: Connection) -> bool:
    """Whether a worker that was not declared dead is connected to the broker."""
    return conn.execute(select(W.id).where(W.gone_at.is_(None), W.mqtt).limit(1)).first() is not None


_last_beat = Prepared(select(W.seen_at).where(W.id == bindparam("worker"), W.gone_at.is_(None)))


def last_beat(conn: Connection, worker_id: str) -> int | None:
    """The last beat of a worker; None of one that is gone or was declared dead."""
    found: int | None = _last_beat.scalar(conn, {"worker": worker_id})
    return found


def beats(conn: Connection) -> dict[str, int]:
    """The last beat of each worker that was not declared dead."""
    found = conn.execute(select(W.id, W.seen_at).where(W.gone_at.is_(None)))
    return {row.id: row.seen_at for row in found}


def bury_silent(tx: Transaction, last: Mapping[str, int]) -> list[str]:
    """Declare dead who has not beaten since these beats, and end their leases; whom.

    Forgets those of long ago.
    """
    bury_one = _on(
        tx.conn,
        "UPDATE worker SET gone_at = :clock WHERE id = :id AND seen_at = :seen_at AND gone_at IS NULL",
    )
    dead = [
        worker_id
        for worker_id, seen_at in sorted(last.items())
        if tx.conn.execute(bury_one, {"id": worker_id, "seen_at": seen_at}).rowcount == 1
    ]
    _end_leases(tx.conn, dead)
    tx.conn.execute(_on(tx.conn, "DELETE FROM worker WHERE gone_at < :clock - :shown"), {"shown": _SHOWN_MS})
    return dead


def bury(tx: Transaction, worker_id: str) -> None:
    """Declare one dead that is known to be: somebody has taken its place on its host."""
    tx.conn.execute(
        _on(tx.conn, "UPDATE worker SET gone_at = :clock WHERE id = :id AND gone_at IS NULL"),
        {"id": worker_id},
    )
    _end_leases(tx.conn, [worker_id])


def leave(tx: Transaction, worker_id: str) -> None:
    """A worker ended in order."""
    tx.conn.execute(delete(tables.workers).where(W.id == worker_id))
    _end_leases(tx.conn, [worker_id])


def listing(conn: Connection) -> list[WorkerState]:
    """Every worker, the oldest first: the living, and those that died within the last hour."""
    now = clock_ms(conn)
    held: dict[str, list[str]] = {}
    for name, holder in conn.execute(select(L.name, L.holder).where(L.until >= now).order_by(L.name)):
        held.setdefault(holder, []).append(name)
    found = conn.execute(select(tables.workers).order_by(W.started_at, W.id))
    return [
        WorkerState(
            row.id,
            Node(row.host, row.pid, row.version, tuple(row.queues), row.at_once, bool(row.mqtt)),
            row.running,
            row.started_at,
            row.seen_at,
            row.gone_at,
            tuple(held.get(row.id, ())),
        )
        for row in found
    ]


# -- leases ---------------------------------------------------------------------------------------


def take_lease(tx: Transaction, name: str, holder: str, silent: LeaseState | None = None) -> LeaseState:
    """Take or renew a lease; how it stands now: ours, or as its holder left it.

    Args:
        tx: the transaction.
        name: of the lease.
        holder: who wants it. Each new holder raises the epoch.
        silent: taken also while it stands like this: its holder has not renewed it for as long as it lasts.
    """
    was = silent or LeaseState("", 0, 0)
    row = tx.conn.execute(
        _on(
            tx.conn,
            "INSERT INTO lease (name, holder, epoch, until) VALUES (:name, :holder, 1, :clock + :for_ms) "
            "ON CONFLICT (name) DO UPDATE SET holder = :holder, until = :clock + :for_ms, "
            "epoch = CASE WHEN lease.holder = :holder THEN lease.epoch ELSE lease.epoch + 1 END "
            "WHERE lease.holder = :holder OR lease.until < :clock "
            "OR (lease.holder = :was_holder AND lease.epoch = :was_epoch AND lease.until = :was_until) "
            "RETURNING holder, epoch, until",
        ),
        {
            "name": name,
            "holder": holder,
            "for_ms": LEASE_MS,
            "was_holder": was.holder,
            "was_epoch": was.epoch,
            "was_until": was.until,
        },
    ).first()
    if row is None:
        row = tx.conn.execute(select(L.holder, L.epoch, L.until).where(L.name == name)).one()
    return LeaseState(*row)


def is_newest(tx: Transaction, name: str, epoch: int) -> bool:
    """Whether nobody has taken the lease since this epoch, nor can before this transaction ends."""
    query = select(L.epoch).where(L.name == bindparam("name")).with_for_update(read=True)
    newest: int | None = tx.conn.execute(query, {"name": name}).scalar()
    return newest == epoch


def give_up_lease(tx: Transaction, name: str, holder: str) -> None:
    """Let somebody else take it at once."""
    tx.conn.execute(update(tables.leases).where(L.name == name, L.holder == holder).values(until=0))


def _end_leases(conn: Connection, holders: Sequence[str]) -> None:
    if holders:
        conn.execute(update(tables.leases).where(L.holder.in_(holders)).values(until=0))
