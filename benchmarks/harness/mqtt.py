"""A lean MQTT 3.1.1 client that reports for many things and takes the commands that follow.

The benchmarks count what lies between a report and its command; a full client beside it on two cores
would be most of what is counted. Packets are encoded before the clock runs.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable, Sequence
from typing import cast

OPENING_AT_ONCE = 50
_PUBLISH, _SUBACK = 3, 9
_WITHIN_S = 10.0


def packet(kind: int, body: bytes) -> bytes:
    """A packet: its first byte, the length of the rest, the rest."""
    length, size = len(body), bytearray()
    while True:
        length, low = divmod(length, 128)
        size.append(low | (128 if length else 0))
        if not length:
            return bytes([kind]) + bytes(size) + body


def _text(text: str) -> bytes:
    return struct.pack("!H", len(text)) + text.encode()


class Load(asyncio.Protocol):
    """One connection. `open` first; `took` is called with the topic of each message that comes."""

    def __init__(self, took: Callable[[str], None], name: str = "load") -> None:
        self._took, self._name = took, name
        self._received = bytearray()
        self._number = 0
        self._let_in: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None

    async def open(self, port: int, subscription: str) -> None:
        """Connect and subscribe with QoS 1.

        Raises:
            TimeoutError: the broker does not answer.
        """
        loop = asyncio.get_running_loop()
        self._let_in = loop.create_future()
        await loop.create_connection(lambda: self, "127.0.0.1", port)
        connect = _text("MQTT") + b"\x04\x02\x00\x00" + _text(self._name)
        subscribe = b"\x00\x01" + _text(subscription) + b"\x01"
        self.send(packet(0x10, connect) + packet(0x82, subscribe))
        async with asyncio.timeout(_WITHIN_S):
            await self._let_in

    def report(self, topic: str, payload: bytes) -> bytes:
        """A QoS 1 publish, to be sent later."""
        self._number = self._number % 65_000 + 1
        return packet(0x32, _text(topic) + struct.pack("!H", self._number) + payload)

    def send(self, data: bytes) -> None:
        """Write packets."""
        assert self._transport is not None, "not open"
        self._transport.write(data)

    def close(self) -> None:
        """Close the connection. Safe before `open` and twice."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        received = self._received
        received += data
        at, answers = 0, bytearray()
        while (end := _end_of(received, at)) is not None:
            start, stop = end
            kind = received[at] >> 4
            if kind == _PUBLISH:
                length = int.from_bytes(received[start : start + 2])
                topic = received[start + 2 : start + 2 + length].decode()
                if received[at] & 6:
                    number = start + 2 + length
                    answers += b"\x40\x02" + received[number : number + 2]
                self._took(topic)
            elif kind == _SUBACK and self._let_in is not None and not self._let_in.done():
                self._let_in.set_result(None)
            at = stop
        del received[:at]
        if answers:
            self.send(bytes(answers))


async def open_all(loads: Sequence[Load], port: int, subscription: str) -> None:
    """Connect all, some at a time; each subscribes, with its number for `{}`. Raises as `Load.open`."""
    gate = asyncio.Semaphore(OPENING_AT_ONCE)

    async def one(number: int, load: Load) -> None:
        async with gate:
            await load.open(port, subscription.format(number))

    await asyncio.gather(*(one(number, load) for number, load in enumerate(loads)))


def _end_of(received: bytearray, at: int) -> tuple[int, int] | None:
    """Where the body of the packet at `at` starts and stops; None while it is not whole."""
    length = 0
    for place in range(4):
        if at + 1 + place >= len(received):
            return None
        byte = received[at + 1 + place]
        length |= (byte & 127) << (7 * place)
        if byte < 128:
            start = at + 2 + place
            return (start, start + length) if start + length <= len(received) else None
    raise ValueError("no MQTT packet is that long")
