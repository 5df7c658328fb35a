"""What a running command has told and nobody has taken yet: bounded output, and its end."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import replace

from iotjobs.domain.errors import BadAnswer, DeliveryError, DeviceUnreachable, LinkLost
from iotjobs.transports import shell
from iotjobs.transports.base import CommandEnd, CommandHooks, Stream

# What a stalled reader makes us hold for one command, beside its channel's window.
_HELD_MOST_BYTES = 128 * 1024
_PIECE_MOST_BYTES = 64 * 1024
# A child that still writes after the command's end is not waited for longer than this.
_AFTER_END_MOST_S = 10.0


class Spool:
    """Filled by the callbacks of a channel or a process, emptied by one reader.

    Attributes:
        where: the device, for messages.
        header: takes the header off the output; None where there is none to come.
        sent: the command has left completely.
        end: exit status or signal, once told.
        problem: what makes going on pointless; raised by `follow`.
        lost: why the channel closed, where there is a reason.
    """

    def __init__(self, where: str, nonce: str | None) -> None:
        self.where = where
        self.header = None if nonce is None else shell.Header(nonce)
        self.sent = nonce is None
        self.end: CommandEnd | None = None
        self.problem: DeliveryError | None = None
        self.lost: DeliveryError | None = None
        self._held: deque[tuple[Stream, bytes]] = deque()
        self._held_bytes = 0
        self._paused = False
        self._eof = False
        self._gone = False
        self._enough = self._endless = False
        self._ended_at: float | None = None
        self._waiting: asyncio.Future[None] | None = None

    def pause(self) -> None:
        """Take nothing more from the far side for now."""
        raise AssertionError("a subclass pauses its far side")

    def resume(self) -> None:
        """Undo `pause`; may call `receive` at once."""
        raise AssertionError("a subclass resumes its far side")

    # -- filling ---------------------------------------------------------------------------------

    def receive(self, stream: Stream, data: bytes) -> None:
        """Hold it, and pause when too much is held."""
        if self.header is not None:
            try:
                data = self.header.feed(stream, data)
            except BadAnswer as error:
                self.problem, data = error, b""
        if data:
            self._held.append((stream, data))
            self._held_bytes += len(data)
            if self._held_bytes > _HELD_MOST_BYTES and not self._paused:
                self._paused = True
                self.pause()
        self._wake()

    def ended(self, end: CommandEnd) -> None:
        """The command's end is told; output may still come."""
        self.end = end
        self._wake()

    def closed(self) -> None:
        """No more output will come; the end may."""
        self._eof = True
        self._wake()

    def gone(self, reason: DeliveryError | None) -> None:
        """Nothing more will come."""
        self._gone = True
        self.lost = reason
        self._wake()

    def give_up_header(self) -> None:
        """The device took the command and told nothing since."""
        if self.header is not None and self.header.run is None:
            self.problem = LinkLost(f"{self.where} took the command and did not tell that it started")
            self._wake()

    # -- emptying --------------------------------------------------------------------------------

    def take(self) -> list[tuple[Stream, bytes]]:
        """What is held, neighbours of one stream joined; lets more come when there was nothing."""
        held = self._held
        if self._paused and not held:
            self._paused = False
            self.resume()
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
        if self._held or self._paused:
            return False
        return self._gone or (self.end is not None and (self._eof or self._enough))

    @property
    def left_off(self) -> bool:
        """The end was told, and more output was on its way: the connection was cut, or it took too long."""
        return not self.complete and (self._endless or self.lost is not None)

    @property
    def complete(self) -> bool:
        """The end was told, and all output with it."""
        return self.end is not None and self._eof

    async def news(self, eof_wait_s: float) -> None:
        """Wait until something happens; after the end only so long that late output can come.

        A detached child that keeps the output open keeps the channel open: waiting for its end
        would be waiting for ever.
        """
        if self._paused:
            return
        loop = asyncio.get_running_loop()
        timer = None
        if self.end is not None:
            if self._ended_at is None:
                self._ended_at = loop.time()
            if loop.time() - self._ended_at > _AFTER_END_MOST_S:
                self._enough = self._endless = True
                return
            timer = loop.call_later(eof_wait_s, self._wait_no_more)
        try:
            await self.change()
        finally:
            if timer is not None:
                timer.cancel()

    async def change(self) -> None:
        """Wait until a callback comes."""
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            await self._waiting
        finally:
            self._waiting = None

    def _wait_no_more(self) -> None:
        self._enough = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)


async def follow(spool: Spool, hooks: CommandHooks, header_within_s: float, eof_wait_s: float) -> CommandEnd:
    """Hand on what comes until the command's end is told.

    Raises:
        DeviceUnreachable: it closed before the command had left completely.
        LinkLost, BadAnswer: see `CommandTransport.run`.
    """
    header = spool.header
    told = header is None
    deadline = asyncio.get_running_loop().call_later(header_within_s, spool.give_up_header)
    try:
        while True:
            batch = spool.take()
            if not told and header is not None and header.run is not None:
                told = True
                deadline.cancel()
                await hooks.started(*header.run)
            for stream, data in batch:
                await hooks.output(stream, data)
            if spool.problem is not None:
                raise spool.problem
            if batch:
                continue
            if spool.over:
                break
            await spool.news(eof_wait_s)
    finally:
        deadline.cancel()
        if told and spool.end is not None:
            hooks.exited(spool.end)
    if header is not None and header.run is not None:
        for stream in Stream:
            if rest := header.rest(stream):
                await hooks.output(stream, rest)
    return _end(spool)


def _end(spool: Spool) -> CommandEnd:
    end, header = spool.end, spool.header
    if end is None:
        if not spool.sent:
            raise DeviceUnreachable(f"{spool.where} closed before the command had left")
        raise spool.lost or LinkLost(f"{spool.where} closed without telling how the command ended")
    if header is not None and header.run is None:
        # The header comes right before the command: without it nothing of it has run.
        raise BadAnswer(
            f"the shell of {spool.where} ended with {end.exit_code} before the command started;"
            f" it said: {header.said() or 'nothing'}",
            maybe_executed=False,
        )
    return replace(end, whole=False) if spool.left_off else end
