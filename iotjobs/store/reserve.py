"""Room on the disk that is kept for the ends of what runs and for what people ask of it, until the disk is full.

It is a file beside the database, of real blocks. The first write that finds no room lets go of it; until
it could be made again new work is refused, so that what it held is left to those.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path

from iotjobs import clock

log = logging.getLogger(__name__)

# SQLite's log grows to 4 MB before its pages move into the database; then some thousand ends of 1 to 4 kB.
RESERVE_BYTES = 8 * 1024 * 1024
# Made only with half as much left beside it: new work is not let in for a moment, to fail at once again.
NEEDS_BYTES = RESERVE_BYTES * 3 // 2
LOOK_EVERY_S = 1.0


class Reserve:
    """The file. `start` and `stop` may be called twice; it stays for the next start.

    Attributes:
        whole: it is there, or nobody has started to keep one: new work may be taken.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._keeps = False
        self._making: asyncio.Task[None] | None = None
        self.whole = True

    async def start(self) -> None:
        """Make it, now or as soon as there is room."""
        if not self._keeps:
            self._keeps = True
            await self._make()
            if not self.whole:
                log.error("the disk is nearly full: no new work is taken", extra={"needs_bytes": NEEDS_BYTES})
                self._make_later()

    async def stop(self) -> None:
        """Make it no more."""
        self._keeps = False
        task, self._making = self._making, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def release(self) -> None:
        """Let go of the room."""
        with contextlib.suppress(OSError):  # some file systems need room to delete
            self._file.unlink(missing_ok=True)
        if self._keeps and self.whole:
            log.error("the disk is full: new work is refused, ends and cancels use what was kept for them")
            self.whole = False
            self._make_later()

    def _make_later(self) -> None:
        if self._making is None:
            self._making = asyncio.create_task(self._keep_making(), name="reserve")

    async def _keep_making(self) -> None:
        while not self.whole:
            await clock.sleep(LOOK_EVERY_S)
            await self._make()
        self._making = None
        log.warning("there is room on the disk again: new work is taken")

    async def _make(self) -> None:
        made = await asyncio.to_thread(_allocate, self._file)
        self.whole = made and self._file.exists()  # else it was let go of meanwhile


def _allocate(file: Path) -> bool:
    """Whether the file has its blocks now."""
    try:
        if file.exists() and file.stat().st_blocks * 512 >= RESERVE_BYTES:
            return True
        disk = os.statvfs(file.parent)
        if disk.f_bavail * disk.f_frsize < NEEDS_BYTES:
            return False
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
        finally:
            os.close(descriptor)
    except OSError as error:  # a quota, say
        log.info("no room could be kept", extra={"why": str(error)})
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)
        return False
    return True
