"""One SSH channel that runs one command."""

from __future__ import annotations

import asyncio
import math

import asyncssh

from iotjobs.transports import shell
from iotjobs.transports.base import CommandEnd, Stream
from iotjobs.transports.spool import Spool
from iotjobs.transports.ssh_trust import delivery_error

# The window bounds what asyncssh holds while we do not read.
WINDOW_BYTES = 256 * 1024
PACKET_BYTES = 32 * 1024
_CLOSE_WITHIN_S = 5.0


class OpenedTooLateError(Exception):
    """The channel opened when the exec request was not to leave any more; it did not."""


class Session(Spool, asyncssh.SSHClientSession[bytes]):
    """The channel's callbacks.

    Attributes:
        requested: the channel is open, so the exec request has left.
        refused: the exec request was, and nothing ran.
    """

    def __init__(self, where: str, nonce: str | None = None, send_by: float = math.inf) -> None:
        """Nothing is opened yet.

        Args:
            where: the device, for messages.
            nonce: of a run that tells its header; None where none is to come.
            send_by: the loop's time after which the exec request must not leave any more.
        """
        super().__init__(where, nonce)
        self._send_by = send_by
        self.requested = False
        self.refused = False
        self._channel: asyncssh.SSHClientChannel[bytes] | None = None

    # -- asyncssh calls these --------------------------------------------------------------------

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        """The channel is open; the exec request leaves right after, unless this raises."""
        self._channel = chan
        if asyncio.get_running_loop().time() > self._send_by:
            raise OpenedTooLateError
        self.requested = True

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        """Output came."""
        self.receive(Stream.STDOUT if datatype is None else Stream.STDERR, data)

    def eof_received(self) -> bool:
        """Both outputs are closed; the exit status may still come."""
        self.closed()
        return True  # saves the packet of our own EOF: the channel is closed right after

    def exit_status_received(self, status: int) -> None:
        """The command ended by itself."""
        self.ended(CommandEnd(status))

    def exit_signal_received(self, signal: str, _core_dumped: bool, _msg: str, _lang: str) -> None:
        """A signal ended the command."""
        self.ended(shell.end_by_signal(signal))

    def connection_lost(self, exc: Exception | None) -> None:
        """The channel is closed; with the connection, if there is a reason."""
        self._channel = None
        reason = None
        if exc is not None:
            reason = delivery_error(exc, self.where, sent=self.sent)
            reason.__cause__ = exc
        self.gone(reason)

    def resume_writing(self) -> None:
        """The last byte of the command has left."""
        self.sent = True

    # -- the transport calls these ---------------------------------------------------------------

    def pause(self) -> None:
        """Let the far side's window run empty."""
        if self._channel is not None:
            self._channel.pause_reading()

    def resume(self) -> None:
        """Open the window again."""
        if self._channel is not None:
            self._channel.resume_reading()

    def send(self, lines: bytes) -> None:
        """Write what the device waits for; if it waits no more, `follow` tells why."""
        channel = self._channel
        if channel is None or channel.is_closing():
            return
        channel.write(lines)
        if channel.get_write_buffer_size():
            channel.set_write_buffer_limits(0)  # resume_writing tells when the last byte went
        else:
            self.sent = True

    def leave(self) -> None:
        """Be done with the channel, whatever state it is in; what runs on the device is left alone.

        After a complete end the far side closes by itself, and we let it: Dropbear 2022.83 ends the
        whole connection (assertion in common-channel.c) when our close crosses its own.
        """
        if self._channel is None:
            return
        if self.complete:
            asyncio.get_running_loop().call_later(_CLOSE_WITHIN_S, self._abort)
        else:
            self._abort()

    async def closing(self, within_s: float) -> bool:
        """Wait for the far side's close; False when it did not come."""
        try:
            async with asyncio.timeout(within_s):
                while self._channel is not None:
                    await self.change()
        except TimeoutError:
            return False
        return True

    def _abort(self) -> None:
        if self._channel is not None:
            self._channel.abort()
