"""One SSH channel that runs one command: bounded output, and how the command ended."""

from __future__ import annotations

import asyncio
from collections import deque

import asyncssh

from iotjobs.domain.errors import BadAnswer, DeliveryError, DeviceUnreachable, LinkLost
from iotjobs.transports import shell
from iotjobs.transports.base import CommandEnd, Stream

# What a stalled reader makes us hold for one channel: the window in asyncssh, and _HELD_MOST_BYTES
# here.
WINDOW_BYTES = 256 * 1024
PACKET_BYTES = 32 * 1024
_HELD_MOST_BYTES = 128 * 1024
_PIECE_MOST_BYTES = 64 * 1024
# A child that still writes after the exit status is not waited for longer than this.
_AFTER_END_MOST_S = 10.0


class Session(asyncssh.SSHClientSession[bytes]):
    """One channel: holds a bounded piece of output until it is taken, and how the command ended.

    Attributes:
        header: takes the header off the output; None where there is none to come.
        requested: the channel is open, so the exec request has left.
        refused: the exec request was, and nothing ran.
        sent: the command has left completely.
        end: exit status or signal, once told.
        lost: why the connection ended, if it did.
        problem: what the far side did that cannot be answered by going on.
    """

    def __init__(self, nonce: str | None) -> None:
        self.header = None if nonce is None else shell.Header(nonce)
        self.requested = False
        self.refused = False
        self.sent = nonce is None
        self.end: CommandEnd | None = None
        self.lost: Exception | None = None
        self.problem: DeliveryError | None = None
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None
        self._held: deque[tuple[Stream, bytes]] = deque()
        self._held_bytes = 0
        self._paused = False
        self._eof = False
        self._gone = False
        self._enough = False
        self._ended_at: float | None = None
        self._waiting: asyncio.Future[None] | None = None

    # -- asyncssh calls these --------------------------------------------------------------------

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """The channel is open; the exec request leaves right after."""
        self._channel = chan
        self.requested = True

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Hold it, and stop the reading when too much is held."""
        stream = Stream.STDOUT if datatype is None else Stream.STDERR
        if self.header is not None:
            try:
                data = self.header.feed(stream, data)
            except BadAnswer as error:
                self.problem = error
        if data:
            self._held.append((stream, data))
            self._held_bytes += len(data)
            if self._held_bytes > _HELD_MOST_BYTES and not self._paused and self._channel is not None:
                self._paused = True
                self._channel.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """Both outputs are closed; the exit status may still come."""
        self._eof = True
        self._wake()
        return True  # saves the packet of our own EOF: the channel is closed right after

    def exit_status_received(self, status: int) -> None:
        """The command ended by itself."""
        self.end = CommandEnd(status)
        self._wake()

    def exit_signal_received(self, signal: str, _core_dumped: bool, _msg: str, _lang: str) -> None:
        """A signal ended the command."""
        self.end = shell.end_by_signal(signal)
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is closed; with the connection, if there is a reason."""
        self._gone = True
        self.lost = exc
        self._wake()

    def resume_writing(self) -> None:
        """The last byte of the command has left."""
        self.sent = True

    # -- the transport calls these ---------------------------------------------------------------

    def send(self, lines: bytes) -> None:
        """Write what the device waits for.

        Raises:
            DeviceUnreachable: the channel is closed.
        """
        assert self._channel is not None
        try:
            self._channel.write(lines)
        except OSError as error:
            raise DeviceUnreachable("the channel was closed before the command had left") from error
        if self._channel.get_write_buffer_size():
            self._channel.set_write_buffer_limits(0)  # resume_writing tells when the last byte went
        else:
            self.sent = True

    def take(self) -> list[tuple[Stream, bytes]]:
        """What is held, neighbours of one stream joined; lets more come when there was nothing."""
        held = self._held
        if self._paused and not held and self._channel is not None:
            self._paused = False
            self._channel.resume_reading()
        pieces: list[tuple[Stream, bytes]] = []
        while held:
            stream, data = held.popleft()
            if held and held[0][0] is stream:
                joined = bytearray(data)
                while held and held[0][0] is stream and len(joined) < _PIECE_MOST_BYTES:
                    joined += held.popleft()[1]
                data = bytes(joined)
            pieces.append((stream, data))
        self._held_bytes = 0
        return pieces

    @property
    def over(self) -> bool:
        """Nothing is held and nothing worth waiting for will come."""
        if self._held:
            return False
        return self._gone or (self.end is not None and (self._eof or self._enough))

    async def news(self, eof_wait_s: float) -> None:
        """Wait until something happens; after the end only so long that late output can come.

        A detached child that keeps the output open keeps the channel open: waiting for its end
        would be waiting for ever.
        """
        loop = asyncio.get_running_loop()
        timer = None
        if self.end is not None:
            if self._ended_at is None:
                self._ended_at = loop.time()
            if loop.time() - self._ended_at > _AFTER_END_MOST_S:
                self._enough = True
                return
            timer = loop.call_later(eof_wait_s, self._wait_no_more)
        self._waiting = loop.create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None
            if timer is not None:
                timer.cancel()

    def give_up_header(self, where: str) -> None:
        """The device took the command and told nothing since."""
        if self.header is not None and self.header.run is None:
            self.problem = LinkLost(f"{where} took the command and did not tell that it started")
            self._wake()

    def abandon(self) -> None:
        """Close the channel, whatever state it is in; what runs on the device is left alone."""
        if self._channel is not None and not self._gone:
            self._channel.abort()

    def _wait_no_more(self) -> None:
        self._enough = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)
