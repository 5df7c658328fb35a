"""Keeps the output of one attempt: buffered a little, written in chunks, capped in the middle.

The first half of the cap is kept as it comes; behind it a window of the newest bytes moves
along. The exact size is counted whatever is kept. Nothing is buffered whole: `write` waits for
the store, and that is the back-pressure which the device feels.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from dataclasses import dataclass, field, replace

from iotjobs import clock
from iotjobs.domain.errors import LeaseLost, StorageFull, StoreUnavailable
from iotjobs.engine.settle import STORE_RETRY_S
from iotjobs.store import jobs, output
from iotjobs.store.output import Chunk
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

log = logging.getLogger(__name__)

OUTPUT_CAP_BYTES = 16 * 1024 * 1024
# Short outputs travel with the settling transaction and cost no write of their own; longer ones
# are on disk, and visible, after this long or this many bytes.
FLUSH_AFTER_S = 0.25
FLUSH_BYTES = 64 * 1024
# Of what a stream still says with the end, on a full disk.
FULL_DISK_BYTES = 4096


@dataclass(slots=True)
class _Buffer:
    position: int = 0
    data: bytearray = field(default_factory=bytearray)


class Recorder:
    """The output of one attempt. One writer at a time; `close` once.

    Attributes:
        total_bytes: what the job said: in this attempt, and in those before (`earlier_bytes`), which is kept too.
        truncated: not all of this attempt's is kept.
    """

    def __init__(
        self,
        store: Store,
        job_id: str,
        attempt: int,
        cap_bytes: int = OUTPUT_CAP_BYTES,
        *,
        earlier_bytes: int = 0,
    ) -> None:
        self._store, self._job_id, self._attempt = store, job_id, attempt
        self._half = cap_bytes // 2
        self._buffers: dict[str, _Buffer] = {}
        self._number = 0
        self._head_bytes = 0
        self._window: deque[tuple[int, int]] = deque()  # (chunk number, its bytes) behind the head
        self._window_bytes = 0
        self._pending = 0
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()
        self.total_bytes = earlier_bytes
        self.truncated = False

    async def write(self, stream: str, data: bytes) -> None:
        """Take bytes of a stream, in their order.

        Raises:
            LeaseLost: the attempt is not the newest any more.
        """
        buffer = self._buffers.setdefault(stream, _Buffer())
        buffer.data += data
        self.total_bytes += len(data)
        self._pending += len(data)
        if self._pending >= FLUSH_BYTES:
            await self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_AFTER_S, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._flushing = asyncio.create_task(self._flush_quietly(), name=f"output of {self._job_id}")

    async def _flush_quietly(self) -> None:
        try:
            await self.flush()
        except LeaseLost:
            return  # the next write, or the settling, says so where it matters

    async def flush(self) -> None:
        """Put what is buffered on disk."""
        async with self._lock:
            chunks, dropped = self._take()
            if not chunks:
                return
            # A deadline that cancels us must not take these bytes along: they are on their way.
            self._keeping = asyncio.create_task(self._keep(chunks, dropped), name=f"chunks of {self._job_id}")
            await asyncio.shield(self._keeping)

    async def _keep(self, chunks: list[Chunk], dropped: list[int]) -> None:
        total, size = self.total_bytes, sum(len(chunk.data) for chunk in chunks)

        def item(tx: Transaction) -> None:
            if again:  # the answer to the first may have been lost, and not what it wrote
                output.drop(tx, self._job_id, self._attempt, [chunk.number for chunk in chunks])
            jobs.note(tx, self._job_id, self._attempt, output_bytes=total, output_truncated=self.truncated)
            output.append(tx, self._job_id, self._attempt, chunks)
            output.drop(tx, self._job_id, self._attempt, dropped)

        again = False
        while True:
            try:
                await self._store.write(item, size=size, locks=())
            except StoreUnavailable:
                again = True
                await clock.sleep(STORE_RETRY_S)  # the device waits: that is the back-pressure
                continue
            except StorageFull:
                self.truncated = True  # how the run ends is worth more than what it says
                log.warning("no room for output", extra={"job_id": self._job_id, "bytes": size})
            return

    async def close(self) -> list[Chunk]:
        """End the timer and hand over what is still buffered, for the settling transaction."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._flushing is not None:
            await self._flushing
        if self._keeping is not None:
            await self._keeping
        if self._head_bytes + self._pending > self._half:
            await self.flush()  # chunks may fall out of the window: a write of its own
            return []
        chunks = self._take()[0]
        if self._store.full:  # the end has to fit, and those of others
            self.truncated |= any(len(chunk.data) > FULL_DISK_BYTES for chunk in chunks)
            chunks = [replace(chunk, data=chunk.data[:FULL_DISK_BYTES]) for chunk in chunks]
        return chunks

    def _take(self) -> tuple[list[Chunk], list[int]]:
        """Buffered bytes as chunks, and the numbers of chunks that fall out of the window."""
        chunks = []
        for stream, buffer in self._buffers.items():
            while buffer.data:
                room = self._half - self._head_bytes
                size = min(len(buffer.data), room) if room > 0 else len(buffer.data)
                chunks.append(Chunk(self._number, stream, buffer.position, bytes(buffer.data[:size])))
                del buffer.data[:size]
                buffer.position += size
                if room > 0:
                    self._head_bytes += size
                else:
                    self._window.append((self._number, size))
                    self._window_bytes += size
                self._number += 1
        self._pending = 0
        dropped = []
        while self._window and self._window_bytes - self._window[0][1] >= self._half:
            number, size = self._window.popleft()
            self._window_bytes -= size
            dropped.append(number)
            self.truncated = True
        return [chunk for chunk in chunks if chunk.number not in dropped], dropped
