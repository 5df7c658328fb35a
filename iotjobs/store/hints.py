"""The line on which nodes give each other hints: LISTEN and NOTIFY on a connection of its own.

A hint may be lost and nobody learns of it: whoever acts on hints also looks now and then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from iotjobs.store.session import CONNECT_S, postgres_url

if TYPE_CHECKING:
    import asyncpg

CHANNEL = "iotjobs_hints"
PAYLOAD_BYTES = 7_000  # PostgreSQL takes 8,000
_ANSWER_S = 5.0


class Line:
    """An open line; `close` it."""

    def __init__(self, conn: asyncpg.Connection) -> None:
        self._conn = conn

    async def say(self, hint: str) -> None:
        """Tell every node that listens, this one too.

        Raises:
            OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError: the line is cut.
        """
        await self._conn.execute("SELECT pg_notify($1, $2)", CHANNEL, hint)

    def close(self) -> None:
        """Hear nothing more."""
        self._conn.terminate()


async def open_line(url: str, heard: Callable[[str], object], cut: Callable[[], object]) -> Line:
    """Listen from now on.

    Args:
        url: of the database.
        heard: called in the event loop with each hint.
        cut: called when the connection is lost, and when it is closed.

    Raises:
        OSError, asyncpg.PostgresError, TimeoutError: the database cannot be reached.
    """
    import asyncpg

    parsed = postgres_url(url)
    _, options = parsed.get_dialect()().create_connect_args(parsed)
    conn = await asyncpg.connect(
        **options,
        timeout=CONNECT_S,
        command_timeout=_ANSWER_S,
        # A notification counts as a write, and this one need not survive a crash.
        server_settings={"application_name": "iotjobs hints", "synchronous_commit": "off"},
    )

    def on_notification(*told: Any) -> None:
        heard(told[-1])

    conn.add_termination_listener(lambda _: cut())
    await conn.add_listener(CHANNEL, on_notification)
    return Line(conn)
