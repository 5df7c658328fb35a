"""The socket below an SSH connection: what is written in one turn of the loop leaves in one send.

asyncssh writes each packet for itself, and an empty one before each (a precaution for old ciphers): a
command makes eight sends of it, and a send costs more than all else that we do for a command.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import asyncssh


class Dialled:
    """A connected socket, in the place where asyncssh takes a tunnel: something that connects."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    async def create_connection(
        self, factory: Callable[[], asyncssh.SSHClientConnection], _host: str, _port: int
    ) -> tuple[asyncio.BaseTransport, asyncssh.SSHClientConnection]:
        """Put a connection on the socket; asyncssh calls this."""
        loop = asyncio.get_running_loop()

        def protocol() -> asyncssh.SSHClientConnection:
            connection = factory()
            made = connection.connection_made

            def gathered(transport: asyncio.BaseTransport) -> None:
                made(Gathering(transport, loop))

            connection.connection_made = gathered  # type: ignore[method-assign]
            return connection

        return await loop.create_connection(protocol, sock=self._sock)


class Gathering(asyncio.Transport):
    """A transport that hands on what is written when the loop comes round, all at once."""

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._transport, self._loop = transport, loop
        self._waiting: list[bytes] = []

    def write(self, data: Any) -> None:
        """Send this, after what was written before."""
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(bytes(data))

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._transport.write(waiting[0] if len(waiting) == 1 else b"".join(waiting))

    def close(self) -> None:
        """Send what waits, then close."""
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        """Close now; what waits is lost."""
        self._waiting.clear()
        self._transport.abort()

    def is_closing(self) -> bool:
        """Whether it is closed or will be."""
        return bool(self._transport.is_closing())

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the socket tells of itself."""
        return self._transport.get_extra_info(name, default)

    def pause_reading(self) -> None:
        """Take nothing from the socket for now."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Undo `pause_reading`."""
        self._transport.resume_reading()
