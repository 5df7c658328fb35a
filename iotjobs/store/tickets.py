"""Tickets on PostgreSQL: rows of PgQueuer's queue table, written in our own transactions.

PgQueuer takes them, keeps them by heartbeats and delivers them again (`engine.dispatch_postgres`).
The enqueue is ours (decision record 0007): it runs on the synchronous connection of an item, and
it gives a ticket an id that sorts by the job's age, since PgQueuer takes equal priorities by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, text

from iotjobs.store.queue import Ticket
from iotjobs.store.session import postgres_url
from iotjobs.store.statements import run
from iotjobs.store.writer import Transaction

if TYPE_CHECKING:
    import asyncpg

SCHEMA, PREFIX = "iotjobs_q", "iotjobs_"
CHANNEL = f"{PREFIX}ch_pgqueuer"
# A node picks by these names: without a broker only the first, if another one has a broker.
RUN, PUBLISH = "run", "publish"
_QUEUE, _LOG = f"{SCHEMA}.{PREFIX}pgqueuer", f"{SCHEMA}.{PREFIX}pgqueuer_log"

# A priority is 32 bits: five for the rank with its sign, the rest for the turn.
_TURN_BITS = 26
# An id is 63 bits: the job's seq, then a number that keeps two tickets of one job apart.
_SERIAL_BITS = 20
# Two statements of PgQueuer run at once, and its listener has a connection of its own.
_POOL_SIZE = 4
_STATEMENT_S = 10.0
_LOG_KEPT = "10 minutes"

_OFFER = f"""
INSERT INTO {_QUEUE} (id, execute_after, priority, entrypoint, payload, dedupe_key, status)
SELECT (seq << {_SERIAL_BITS}) | (nextval('{_QUEUE}_id_seq') & {(1 << _SERIAL_BITS) - 1}),
       to_timestamp(0),  -- now() would hide it for as long as somebody sets the clock back
       priority, name, convert_to(payload, 'UTF8'), key, 'queued'
FROM unnest($1::bigint[], $2::int[], $3::text[], $4::text[], $5::text[])
    AS offered (seq, priority, key, name, payload)
ORDER BY key  -- of two that offer the same, one waits for the other, and not each for each
ON CONFLICT (dedupe_key) WHERE status IN ('queued', 'picked') AND dedupe_key IS NOT NULL DO NOTHING
"""

_WITHDRAW = f"DELETE FROM {_QUEUE} WHERE dedupe_key = $1 AND status IN ('queued', 'picked')"


def priority_of(ticket: Ticket) -> int:
    """What PgQueuer sorts by, the greatest first: the rank, then the turn."""
    return -((ticket.rank << _TURN_BITS) + min(ticket.turn, (1 << _TURN_BITS) - 1))


def payload_of(ticket: Ticket) -> str:
    """What a ticket's row says beside its number and its priority."""
    return f"{ticket.key}:{ticket.lane or ''}:{ticket.queue}"


def ticket_of_row(number: int, priority: int, payload: bytes | None) -> Ticket:
    """The ticket that a row of the queue was made of."""
    job_id, attempt, lane, name = (payload or b"").decode().split(":", 3)
    rank, turn = divmod(-priority, 1 << _TURN_BITS)
    seq = number >> _SERIAL_BITS
    return Ticket(rank, turn, seq, job_id, int(attempt), lane=lane or None, queue=name)


def offering(_conn: Connection, tickets: Sequence[Ticket]) -> tuple[str, Sequence[Any]]:
    """The statement, with its values, that adds tickets to the queue without those that are there."""
    return _OFFER, (
        [ticket.seq for ticket in tickets],
        [priority_of(ticket) for ticket in tickets],
        [ticket.key for ticket in tickets],
        [PUBLISH if ticket.mqtt else RUN for ticket in tickets],
        [payload_of(ticket) for ticket in tickets],
    )


def offer(tx: Transaction, tickets: Sequence[Ticket]) -> int:
    """Add tickets at once; how many were new."""
    return int(run(tx.conn, *offering(tx.conn, tickets)).rowcount)


def withdraw(tx: Transaction, ticket: Ticket) -> None:
    """Take a ticket out of the queue, whoever has picked it."""
    offered = tx.gathered.get(offering, [])
    offered[:] = [other for other in offered if other.key != ticket.key]
    run(tx.conn, _WITHDRAW, [ticket.key])


def shift(conn: Connection, by_ms: int) -> None:
    """Move what PgQueuer compares with the clock: one set back would hide what a dead node has picked."""
    by = by_ms / 1000
    conn.exec_driver_sql(
        f"UPDATE {_QUEUE} SET heartbeat = heartbeat + make_interval(secs => $1), "
        "execute_after = greatest(to_timestamp(0), execute_after + make_interval(secs => $1))",
        (by,),
    )


def prune(conn: Connection) -> None:
    """Delete what PgQueuer noted of tickets some time ago; it never does."""
    conn.execute(text(f"DELETE FROM {_LOG} WHERE created < now() - interval '{_LOG_KEPT}'"))


async def open_pool(url: str) -> asyncpg.Pool:
    """Connections for PgQueuer, which needs asyncpg's own: one listens as long as the pool is open.

    Raises:
        OSError, asyncpg.PostgresError, TimeoutError: the database cannot be reached.
    """
    import asyncpg

    parsed = postgres_url(url)
    _, options = parsed.get_dialect()().create_connect_args(parsed)
    return await asyncpg.create_pool(
        **options,
        min_size=1,
        max_size=_POOL_SIZE,
        timeout=_STATEMENT_S,
        command_timeout=_STATEMENT_S,  # a half-open connection answers nothing
        reset=_as_it_is,
        server_settings={"application_name": "iotjobs tickets"},
    )


async def _as_it_is(_conn: asyncpg.Connection) -> None:
    """PgQueuer leaves nothing behind in a session: do not spend a way there and back on each statement."""
