"""Keeps timers right when somebody sets the clock.

Between two looks our clock goes on steadily, whatever the system's does: see `iotjobs.clock`. When a look
finds that the clock everybody goes by (the system's, and with PostgreSQL the server's) was set, every
moment that is still to come is moved by as much, and then ours follows: what was to happen in a minute
happens in a minute. A clock that was set while we were stopped can be told from a long stop only when it
went back: then no timer waits longer than it did when we stopped.
"""

from __future__ import annotations

import logging
from functools import partial

from iotjobs import clock
from iotjobs.domain.errors import LeaseLost, StorageFull, StoreUnavailable
from iotjobs.engine.leases import Standing
from iotjobs.store import moments, nodes
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

log = logging.getLogger(__name__)

# Less is followed without more ado: records and timers do not notice.
LEAP_MS = 1000
# What a look that took longer found is not known so exactly.
QUICK_MS = 500
# Below that the way to the server and back is all that is measured.
NOISE_MS = 50


class Timekeeper:
    """Follows the clock in every process; in the one that leads it also moves what is to come."""

    def __init__(self, store: Store, standing: Standing) -> None:
        self._store, self._standing = store, standing

    async def begin(self) -> None:
        """Take the time from the store's clock; to be called once, before any timer is looked at."""
        clock.follow(await self._off_by())
        last = await self._store.read(moments.newest)
        behind = 0 if last is None else last - clock.now_ms()
        if behind >= LEAP_MS and self._standing.leads:
            log.warning("the clock went back while we were stopped", extra={"behind_s": behind / 1000})
            await self._store.write(partial(self._shift, by_ms=-behind))

    async def look(self) -> None:
        """Follow the clock if it was set; a store that is away or full is tried again at the next look."""
        try:
            by = await self._off_by()
            if abs(by) >= LEAP_MS:
                log.warning("the clock was set: timers go on as before", extra={"by_s": by / 1000})
                if self._standing.leads:
                    await self._store.write(partial(self._shift_and_follow, by_ms=by))
                    return
            clock.follow(by)
        except (StoreUnavailable, StorageFull, LeaseLost) as error:
            log.info("the clock cannot be followed yet", extra={"why": str(error)})

    async def _off_by(self) -> int:
        """How far the clock everybody goes by is ahead of ours; 0 when it is not known or next to nothing."""
        asked = clock.now_ms()
        moment = await self._store.look(nodes.clock_ms)
        answered = clock.now_ms()
        off = moment - (asked + answered) // 2
        return off if answered - asked < QUICK_MS and abs(off) > NOISE_MS else 0

    def _shift(self, tx: Transaction, *, by_ms: int) -> None:
        self._standing.check(tx)
        moments.shift(tx, by_ms)

    def _shift_and_follow(self, tx: Transaction, *, by_ms: int) -> None:
        self._shift(tx, by_ms=by_ms)
        tx.after_commit(partial(clock.follow, by_ms))  # at once: what is written next has the new time
