"""Tickets on PostgreSQL: rows of PgQueuer's queue table, written in our own transactions.

PgQueuer takes them, keeps them by heartbeats and delivers them again (`engine.dispatch_postgres`).
The enqueue is ours (decision record 0007): it runs on the synchronous connection of an item, and
it gives a ticket an id that sorts by the job's age, since PgQueuer takes equal priorities by id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from iotjobs.store.queue import Ticket
from iotjobs.store.session import postgres_url

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
       priority, name, convert_to(key, 'UTF8'), key, 'queued'
FROM unnest($1::bigint[], $2::int[], $3::text[], $4::text[]) AS offered (seq, priority, key, name)
ON CONFLICT (dedupe_key) WHERE status IN ('queued', 'picked') AND dedupe_key IS NOT NULL DO NOTHING
"""


def priority_of(ticket: Ticket) -> int:
    """What PgQueuer sorts by, the greatest first: the rank, then the turn."""
    return -((ticket.rank << _TURN_BITS) + min(ticket.turn, (1 << _TURN_BITS) - 1))


def ticket_of_row(number: int, priority: int, payload: bytes | None) -> Ticket:
    """The ticket that a row of the queue was made of."""
    job_id, _, attempt = (payload or b"").decode().partition(":")
    rank, turn = divmod(-priority, 1 << _TURN_BITS)
    return Ticket(rank, turn, number >> _SERIAL_BITS, job_id, int(attempt))


def offer(conn: Connection, tickets: Sequence[Ticket]) -> int:
    """Add tickets to the queue, without those that are there; how many were new."""
    columns = (
        [ticket.seq for ticket in tickets],
        [priority_of(ticket) for ticket in tickets],
        [ticket.key for ticket in tickets],
        [PUBLISH if ticket.mqtt else RUN for ticket in tickets],
    )
    return conn.exec_driver_sql(_OFFER, columns).rowcount


def withdraw(conn: Connection, ticket: Ticket) -> None:
    """Take a ticket out of the queue, whoever has picked it."""
    conn.exec_driver_sql(
        f"DELETE FROM {_QUEUE} WHERE dedupe_key = $1 AND status IN ('queued', 'picked')", (ticket.key,)
    )


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
        server_settings={"application_name": "iotjobs tickets"},
    )
