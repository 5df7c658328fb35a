"""Tells readers what happened: every event once, in order, from wherever they were.

A commit of this process is a hint that there is something to read; that a reader looks now and then
whatever was hinted is the guarantee. A reader that was away resumes by the id of the last event it got.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain.errors import StoreUnavailable
from iotjobs.engine.services import LoopService
from iotjobs.store import events
from iotjobs.store.events import BEGINNING, Event, Position
from iotjobs.store.session import Store

log = logging.getLogger(__name__)

PAGE = 100
# Hints of other nodes may be lost.
POLL_S = 1.0
# Hints come with every commit: so many of them are answered by one look.
GATHER_S = 0.02
LAG_LOOK_EVERY_S = 2.0
LAG_TOLD_S = 10.0


@dataclass(frozen=True, slots=True)
class Gap:
    """Events between the two positions were deleted, or never were: read the lists again."""

    from_: Position
    to: Position


class EventFeed:
    """Events for any number of readers, each at its own place."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._readers: set[asyncio.Event] = set()
        self._over = False
        store.after_writes.append(self.wake)

    def wake(self) -> None:
        """There may be something new; to be called for hints from other nodes too."""
        for reader in self._readers:
            reader.set()

    def let_go(self) -> None:
        """The site stops: every reader comes to its end."""
        self._over = True
        self.wake()

    async def follow(self, after: Position | None = None) -> AsyncGenerator[Event | Gap, None]:
        """Events behind a position as they come, until the site stops; None: only what comes now.

        To be closed by whoever leaves it early (`contextlib.aclosing`). A store that is away is waited for.
        """
        hint = asyncio.Event()
        self._readers.add(hint)
        told = BEGINNING
        try:
            position, gap = await self._begin(after)
            if gap is not None:
                yield gap
            while not self._over:
                hint.clear()
                page, mark = await self._page(position)
                if position < mark and told < mark:
                    told = mark
                    yield Gap(position, mark)
                for event in page:
                    position = event.position
                    yield event
                if len(page) < PAGE:
                    await self._pause(hint)
        finally:
            self._readers.discard(hint)

    async def _begin(self, after: Position | None) -> tuple[Position, Gap | None]:
        newest = await self._store.look(events.newest)
        if after is None:
            return newest, None
        if after > newest:  # of a life of the database that is gone without a restore of ours
            return newest, Gap(after, newest)
        return after, None

    async def _page(self, position: Position) -> tuple[list[Event], Position]:
        def query(conn: Connection) -> tuple[list[Event], Position]:
            return events.after(conn, position, PAGE), events.pruned(conn)

        try:
            return await self._store.look(query)
        except StoreUnavailable as error:
            log.warning("events cannot be read yet", extra={"why": str(error)})
            return [], BEGINNING

    async def _pause(self, hint: asyncio.Event) -> None:
        if self._over:
            return
        await clock.sleep(GATHER_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await hint.wait()


class FeedLag(LoopService):
    """Watches that no transaction that somebody left open holds the events back (PostgreSQL)."""

    name = "feed lag"

    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store
        self.lag_s = 0.0

    def reason(self) -> str | None:
        """What to tell about it; None while all is well."""
        if self.lag_s < LAG_TOLD_S:
            return None
        return f"a transaction that is open on the server holds events back for {self.lag_s:.0f} s"

    async def _loop(self) -> None:
        while True:
            await self.look()
            await clock.sleep(LAG_LOOK_EVERY_S)

    async def look(self) -> None:
        """Measure once."""
        try:
            since = await self._store.read(events.held_since)
        except StoreUnavailable:
            return  # told elsewhere
        self.lag_s = 0.0 if since is None else max(0.0, (clock.now_ms() - since) / 1000)
