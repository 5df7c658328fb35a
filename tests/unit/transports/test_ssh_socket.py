"""What the loop's turn wrote leaves at once, in its order, and before the socket is closed."""

from __future__ import annotations

import asyncio

from iotjobs.transports.ssh_socket import Gathering


class Kernel(asyncio.Transport):
    """What reaches the kernel: one entry a send."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 22)})
        self.sends: list[bytes] = []
        self.ended = ""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended
        self.sends.append(bytes(data))

    def close(self) -> None:
        self.ended = "closed"

    def abort(self) -> None:
        self.ended = "aborted"

    def is_closing(self) -> bool:
        return bool(self.ended)


def gathering() -> tuple[Gathering, Kernel]:
    kernel = Kernel()
    return Gathering(kernel, asyncio.get_running_loop()), kernel


async def test_packets_of_one_turn_leave_in_one_send_and_in_their_order() -> None:
    transport, kernel = gathering()
    for packet in (b"ignore ", b"exec ", bytearray(b"ignore "), memoryview(b"data")):
        transport.write(packet)
    assert kernel.sends == []
    await asyncio.sleep(0)
    assert kernel.sends == [b"ignore exec ignore data"]
    transport.write(b"next")
    await asyncio.sleep(0)
    assert kernel.sends == [b"ignore exec ignore data", b"next"]


async def test_a_buffer_that_is_used_again_is_sent_as_it_was() -> None:
    transport, kernel = gathering()
    packet = bytearray(b"first")
    transport.write(packet)
    packet[:] = b"other"
    await asyncio.sleep(0)
    assert kernel.sends == [b"first"]


async def test_closing_sends_what_waits_and_aborting_does_not() -> None:
    transport, kernel = gathering()
    transport.write(b"goodbye")
    assert not transport.is_closing()
    transport.close()
    assert (kernel.sends, kernel.ended, transport.is_closing()) == ([b"goodbye"], "closed", True)

    transport, kernel = gathering()
    transport.write(b"never")
    transport.abort()
    await asyncio.sleep(0)
    assert (kernel.sends, kernel.ended) == ([], "aborted")
    assert transport.get_extra_info("peername") == ("127.0.0.1", 22)
