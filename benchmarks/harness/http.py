"""A lean HTTP/1.1 client: keep-alive connections, one request at a time each, little CPU of its own.

The benchmarks count what the server costs; a full client beside it on two cores would be most of
what is counted.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Iterable
from typing import Any

_END = b"\r\n\r\n"


class _Exchange(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._received = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError("the connection is closed")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(_END)
        if not found:
            return
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if len(body) < length:
            return
        self._received = body[length:]
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((int(head[9:12]), body[:length]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionError("the server closed the connection"))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class Client:
    """A few connections to one server; close it at the end."""

    def __init__(self, port: int, token: str, *, connections: int = 16) -> None:
        self._port, self._token, self._count = port, token, connections
        self._all: list[_Exchange] = []

    async def open(self) -> None:
        """Open all connections; those that the server closed meanwhile are opened again."""
        loop = asyncio.get_running_loop()
        self._all = [exchange for exchange in self._all if not exchange.closed]
        for _ in range(self._count - len(self._all)):
            _, exchange = await loop.create_connection(_Exchange, "127.0.0.1", self._port)
            self._all.append(exchange)

    def close(self) -> None:
        """Close all connections."""
        for exchange in self._all:
            exchange.close()
        self._all.clear()

    def request(self, method: str, path: str, body: Any = None) -> bytes:
        """A request as it goes out; made before the clock runs."""
        data = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        return head.encode() + data

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        """One call; the decoded answer.

        Raises:
            RuntimeError: the server refused.
        """
        await self.open()
        status, answer = await self._all[0].ask(self.request(method, path, body))
        if status >= 300:
            raise RuntimeError(f"{method} {path}: {status} {answer.decode()}")
        return json.loads(answer) if answer else None

    async def send_all(self, requests: Iterable[bytes]) -> list[tuple[int, bytes]]:
        """Send them over all connections as fast as they are answered; the answers in any order."""
        await self.open()
        waiting, answers = deque(requests), []

        async def run(exchange: _Exchange) -> None:
            while waiting:
                answers.append(await exchange.ask(waiting.popleft()))

        await asyncio.gather(*(run(exchange) for exchange in self._all))
        return answers
