"""Keeps timers right when somebody sets the clock.

Between two looks our clock goes on steadily, whatever the system's does: see `iotjobs.clock`. When a look
finds that the clock everybody goes by (the system's, and with PostgreSQL the server's) was set, every
moment that is still to come is moved by as much, and then ours follows: what was to happen in a minute
happens in a minute. A clock that was set while we were stopped can be told from a long stop only when it
went back: then no timer waits longer than it did when we stopped.

Of several nodes the leader moves, once for each time the clock is set: the sum of all moves stands in the row that
the moving transaction changes, and each node knows up to which sum its own clock has followed. Who does not
lead goes on by the old clock until it reads there that everything was moved, and moves it itself if it leads then.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain.errors import LeaseLost, StorageFull, StoreUnavailable
from iotjobs.engine.leases import Standing
from iotjobs.store import moments
from iotjobs.store.moments import Mark
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

log = logging.getLogger(__name__)

# Less is followed without more ado: records and timers do not notice.
LEAP_MS = 1000
# Who does not lead waits for a move only when the leader cannot have taken it for less than a leap.
WAIT_MS = 2 * LEAP_MS
# What a look that took longer found is not known so exactly.
QUICK_MS = 500
WHO_LEADS_S = 0.1
# Below that the way to the server and back is all that is measured.
NOISE_MS = 50


@dataclass(frozen=True, slots=True)
class _Look:
    """What a look found.

    Attributes:
        by_ms: how far the clock everybody goes by is ahead of ours; 0 when it is next to nothing.
        exact: the answer came quickly enough to know.
    """

    by_ms: int
    exact: bool
    mark: Mark


class Timekeeper:
    """Follows the clock in every process; in the one that leads it also moves what is to come."""

    def __init__(self, store: Store, standing: Standing) -> None:
        self._store, self._standing = store, standing
        self._followed: int | None = None  # the sum of moves that our clock has followed; None: not set yet

    def is_behind(self, conn: Connection) -> bool:
        """Whether what is to come was moved with a clock that ours has not followed yet.

        Asked behind what was read of it, or locked: then that is of our time.
        """
        return self._followed is not None and moments.mark(conn).total_ms != self._followed

    async def begin(self) -> None:
        """Take the time from the store's clock; to be called once, before any timer is looked at."""
        look = await self._ask()
        self._follow(look.by_ms, look.mark.total_ms if look.exact else None)
        last = await self._store.read(moments.newest)
        behind = 0 if last is None else last - clock.now_ms()
        if behind >= LEAP_MS and await self._leads_in_the_end():
            log.warning("the clock went back while we were stopped", extra={"behind_s": behind / 1000})
            await self._store.write(partial(self._move, look.mark, -behind, 0))

    async def _leads_in_the_end(self) -> bool:
        """Whether nobody else leads, who would have seen the clock being set: a dead one's lease lasts on for a while."""
        while not (self._standing.leads or self._standing.another_leads):
            await clock.sleep(WHO_LEADS_S)
        return self._standing.leads

    async def look(self) -> None:
        """Follow the clock if it was set; a store that is away or full is tried again at the next look."""
        try:
            look = await self._ask()
            if look.exact:
                await self._look(look)
        except (StoreUnavailable, StorageFull, LeaseLost) as error:
            log.info("the clock cannot be followed yet", extra={"why": str(error)})

    async def _look(self, look: _Look) -> None:
        moved = 0 if self._followed is None else look.mark.total_ms - self._followed
        unmoved = look.by_ms - moved
        if self._followed is None or abs(look.by_ms) < LEAP_MS or abs(unmoved) < LEAP_MS:
            if abs(look.by_ms) >= LEAP_MS:
                log.warning("the clock was set: timers were moved with it", extra={"by_s": look.by_ms / 1000})
            self._follow(look.by_ms, look.mark.total_ms)
        elif self._standing.leads:
            log.warning("the clock was set: timers go on as before", extra={"by_s": unmoved / 1000})
            await self._store.write(partial(self._move, look.mark, unmoved, look.by_ms))
        elif abs(unmoved) < WAIT_MS:
            self._follow(look.by_ms, look.mark.total_ms)

    async def _ask(self) -> _Look:
        asked = clock.now_ms()
        moment, mark = await self._store.look(moments.clock_and_mark)
        answered = clock.now_ms()
        off = moment - (asked + answered) // 2
        return _Look(off if abs(off) > NOISE_MS else 0, answered - asked < QUICK_MS, mark)

    def _move(self, before: Mark, by_ms: int, ahead_ms: int, tx: Transaction) -> None:
        self._standing.check(tx)
        made = moments.shift(tx, by_ms, before, clock.now_ms() + ahead_ms)
        # At once: what is written next has the new time.
        tx.after_commit(partial(self._follow, ahead_ms, made.total_ms))

    def _follow(self, by_ms: int, total_ms: int | None) -> None:
        clock.follow(by_ms)
        self._followed = total_ms
