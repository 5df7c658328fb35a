"""From a host's name to a TCP connection on which it has begun to greet."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress


class DroppedError(OSError):
    """The host closed the connection before it greeted."""


class Budget:
    """What is left of the time to connect; waiting for a slot of ours does not count."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def spend(self, seconds: float) -> None:
        """Take time off that passed elsewhere."""
        self.left = max(0.0, self.left - seconds)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Raises TimeoutError in the block when the budget is used up."""
        started_at = time.monotonic()
        try:
            async with asyncio.timeout(self.left):
                yield
        finally:
            self.spend(time.monotonic() - started_at)


Address = tuple[int, tuple[object, ...]]

# A name server that hangs holds a thread for many seconds, whoever stopped waiting. So names have threads of
# their own: the loop's are needed by those who log in and by the broker's connection.
_RESOLVERS = ThreadPoolExecutor(8, thread_name_prefix="resolve")


async def resolve(host: str, port: int) -> list[Address]:
    """Family and socket address of each address of a host.

    Raises:
        OSError: the name is not known (socket.gaierror).
    """
    with suppress(ValueError):
        if ipaddress.ip_address(host).version == 4:
            return [(socket.AF_INET, (host, port))]
        return _look_up(host, port)  # nobody is asked for an IPv6 address either
    return await asyncio.get_running_loop().run_in_executor(_RESOLVERS, _look_up, host, port)


def _look_up(host: str, port: int) -> list[Address]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(int(family), address) for family, _, _, _, address in found]


async def dial(addresses: list[Address], within_s: float) -> socket.socket:
    """The first TCP connection that one of the addresses takes, each tried for its share of the time.

    Raises:
        OSError: none did; the last reason.
    """
    loop = asyncio.get_running_loop()
    problem: OSError = OSError("it has no address")
    for count, (family, address) in enumerate(addresses):
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(within_s / (len(addresses) - count)):
                await loop.sock_connect(sock, address)
            return sock
        except OSError as error:
            sock.close()
            problem = error
        except BaseException:
            sock.close()
            raise
    raise problem


async def greeting(sock: socket.socket) -> None:
    """Wait until the host's first byte is there, and leave it there.

    Raises:
        DroppedError: it closed instead.
    """
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()

    def told() -> None:
        if not readable.done():
            readable.set_result(None)

    loop.add_reader(sock, told)
    try:
        await readable
    finally:
        loop.remove_reader(sock)
    if not sock.recv(1, socket.MSG_PEEK):
        raise DroppedError("the host closed the connection before it greeted")
