"""A TCP wire between two programs on loopback that a test can cut, freeze and mend."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType


class Wire:
    """Forwards connections to a port; `async with` it.

    Args:
        to_port: on 127.0.0.1.
        address: of this machine, where it takes connections.

    Attributes:
        port: where to connect instead.
    """

    def __init__(self, to_port: int, address: str = "127.0.0.1") -> None:
        self.port, self._address = 0, address
        self._to_port = to_port
        self._passing = asyncio.Event()
        self._passing.set()
        self._speaking = asyncio.Event()
        self._speaking.set()
        self._refusing = False
        self._question: bytes | None = None
        self._stays_cut = False
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._connected, self._address, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cut()
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Close what is open, and whatever connects from now on."""
        self._refusing = True
        for writer in list(self._open):
            writer.transport.abort()

    def freeze(self) -> None:
        """Pass nothing on, and say nothing of it: what a router that is gone looks like."""
        self._passing.clear()

    def mute(self) -> None:
        """Pass on what is answered only, and nothing more of what those say who have connected."""
        self._speaking.clear()

    def lose_answer_to(self, question: bytes, *, until_mended: bool = False) -> None:
        """Cut the next connection that asks this, once the answer is on its way; or everything, until it is mended."""
        self._question, self._stays_cut = question, until_mended

    def mend(self) -> None:
        """Pass everything on again."""
        self._refusing = False
        self._passing.set()
        self._speaking.set()

    async def outage(self, seconds: float, *, silent: float = 0.5) -> None:
        """Be away for so long: silent at first, as without a network, then refusing, as without a server.

        Args:
            seconds: in all.
            silent: the share of them; after 1, what waited on the way comes through.
        """
        self.freeze()
        await asyncio.sleep(seconds * silent)
        if silent < 1:
            self.cut()
            await asyncio.sleep(seconds * (1 - silent))
        self.mend()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._open.add(writer)
        try:
            await self._passing.wait()
            if self._refusing:
                return
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
            self._open.add(far_writer)
            try:
                lost = asyncio.Event()
                await asyncio.gather(
                    self._pass(reader, far_writer, lost, asks=True), self._pass(far_reader, writer, lost)
                )
            finally:
                self._open.discard(far_writer)
                far_writer.close()
        except (OSError, asyncio.CancelledError):
            return  # asyncio's streams complain of a callback that was cancelled
        finally:
            self._tasks.discard(task)
            self._open.discard(writer)
            writer.close()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lost: asyncio.Event,
        *,
        asks: bool = False,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(64 * 1024):
                await self._passing.wait()
                if asks:
                    await self._speaking.wait()
                if asks and self._question is not None and self._question in data:
                    self._question = None
                    lost.set()
                elif lost.is_set():
                    writer.transport.abort()
                    if self._stays_cut:
                        self.cut()
                    return
                writer.write(data)
                await writer.drain()
        writer.close()
