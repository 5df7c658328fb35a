"""Hints between nodes: what one has committed, and another may be waiting for.

Given after the commit and outside of it, gathered for a moment, and forgotten when they do not
arrive: who waits also looks each second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

import msgspec
from asyncpg import InterfaceError, PostgresError

from iotjobs import clock
from iotjobs.engine.services import LoopService
from iotjobs.store.hints import PAYLOAD_BYTES, open_line

log = logging.getLogger(__name__)

# What is told within so long goes together: a busy node costs the others twenty looks a second.
GATHER_S = 0.05
AGAIN_AFTER_S = 1.0
# A line that says nothing for so long is tried: one that was cut without a word is noticed by that.
PROBE_EVERY_S = 10.0
_IDS = PAYLOAD_BYTES // 40


class _Hint(msgspec.Struct, omit_defaults=True):
    """What the nodes say to each other; `of` is who says it."""

    of: str
    ended: list[str] = []
    asked: list[str] = []


class Hints(LoopService):
    """Tells the other nodes, and those here who wait, what happened elsewhere.

    Attributes:
        on_events: called when another node has committed something.
        on_ended: called with the id of each job that ended on another node.
        on_asked: called with the id of a worker that is to end something.
    """

    name = "hints"

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url, self._me = url, clock.new_id()
        self._ended: dict[str, None] = {}
        self._asked: dict[str, None] = {}
        self._due = asyncio.Event()
        self._cut = True
        self.on_events: Callable[[], object] = lambda: None
        self.on_ended: Callable[[str], object] = lambda _: None
        self.on_asked: Callable[[str], object] = lambda _: None

    def written(self) -> None:
        """Something was committed here."""
        self._due.set()

    def ended(self, job_id: str) -> None:
        """A job's end was committed here."""
        if not self._cut:
            self._ended[job_id] = None
            self._due.set()

    def asked(self, worker_id: str) -> None:
        """It was committed here that another worker is to end an attempt."""
        if not self._cut:
            self._asked[worker_id] = None
            self._due.set()

    async def _loop(self) -> None:
        while True:
            try:
                await self._until_cut()
            except (OSError, TimeoutError, PostgresError, InterfaceError) as error:
                log.warning("no hints go between the nodes", extra={"why": str(error) or repr(error)})
            await clock.sleep(AGAIN_AFTER_S)

    async def _until_cut(self) -> None:
        line = await open_line(self._url, self._heard, self._on_cut)
        try:
            self._cut = False
            self.on_events()  # what was told while nobody listened
            while not self._cut:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_EVERY_S):
                        await self._due.wait()
                self._due.clear()
                await line.say(self._gathered())
                await clock.sleep(GATHER_S)
        finally:
            self._cut = True
            line.close()

    def _on_cut(self) -> None:
        self._cut = True
        self._due.set()

    def _gathered(self) -> str:
        """The next hint; what does not fit waits for the one after it."""
        ended, asked = list(self._ended)[:_IDS], list(self._asked)[:10]
        for told, kept in ((ended, self._ended), (asked, self._asked)):
            for each in told:
                del kept[each]
        if self._ended or self._asked:
            self._due.set()
        return msgspec.json.encode(_Hint(self._me, ended, asked)).decode()

    def _heard(self, text: str) -> None:
        try:
            hint = msgspec.json.decode(text, type=_Hint)
        except msgspec.MsgspecError as error:
            log.debug("a hint was not understood", extra={"why": str(error)})
            return
        if hint.of == self._me:
            return
        self.on_events()
        for job_id in hint.ended:
            self.on_ended(job_id)
        for worker_id in hint.asked:
            self.on_asked(worker_id)
