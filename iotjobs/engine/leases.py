"""What one process at a time does: a lease by the database's clock, and the check of its epoch.

That clock may be set back while the holder is dead. So who watched a lease for its whole length, on a
clock that nobody sets, and did not see it renewed, takes it too.

A holder that froze may still believe in its lease when it wakes. So every write of a leader begins
with `check`: the epoch has to be the newest, and stays so until the transaction ends.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from iotjobs import clock
from iotjobs.domain.errors import IotJobsError, LeaseLost
from iotjobs.engine.services import LoopService
from iotjobs.engine.silence import Silence
from iotjobs.store import nodes
from iotjobs.store.nodes import LeaseState
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

log = logging.getLogger(__name__)

RENEW_EVERY_S = 5.0
TRY_EVERY_S = 2.0  # with the lease's 15 s: taken over within 17
LOOK_EVERY_S = 0.25


class Standing(Protocol):
    """Whether this process does what one alone does."""

    @property
    def leads(self) -> bool:
        """Whether it is this process, as far as it can know without asking."""

    @property
    def another_leads(self) -> bool:
        """Whether somebody else was seen to renew or take the lease, and we have not had it since."""

    @property
    def epoch(self) -> int | None:
        """Another one each time that the lease is taken; None while it is not ours."""

    def check(self, tx: Transaction) -> None:
        """Refuse a late write.

        Raises:
            LeaseLost: somebody else has taken over.
        """


class Always:
    """The embedded side: there is nobody else."""

    leads, another_leads, epoch = True, False, 1
    fit: Callable[[], bool] = staticmethod(lambda: True)

    def check(self, tx: Transaction) -> None:
        """See `Standing`."""


class Lease(LoopService):
    """See `Standing`; takes the lease when it is free, renews it, and gives it up at the stop.

    Args:
        store: where the lease is.
        lease: its name.
        holder: gives the id of this process's worker.

    Attributes:
        fit: whether this process can do what the lease is for; one that cannot lets go of it.
    """

    def __init__(self, store: Store, lease: str, holder: Callable[[], str]) -> None:
        super().__init__()
        self.name = f"{lease} lease"
        self._store, self._lease, self._holder = store, lease, holder
        self.fit: Callable[[], bool] = lambda: True
        self._epoch: int | None = None
        self._held_as = ""
        self._until = float("-inf")
        self._silence: Silence[LeaseState] = Silence(nodes.LEASE_MS / 1000)
        self._silent: LeaseState | None = None  # somebody else's, not renewed for as long as it lasts
        self._first_seen: LeaseState | None = None  # somebody else's, as we found it
        self.another_leads = False

    @property
    def leads(self) -> bool:
        """Whether it is ours, as far as we can know without asking."""
        return self._epoch is not None and clock.monotonic() < self._until

    @property
    def epoch(self) -> int | None:
        """See `Standing`."""
        return self._epoch

    def check(self, tx: Transaction) -> None:
        """See `Standing`."""
        epoch = self._epoch
        if epoch is None or not nodes.is_newest(tx, self._lease, epoch):
            self._lost()
            log.warning("a late write was refused", extra={"lease": self._lease, "epoch": epoch})
            raise LeaseLost(f"the {self._lease} lease of epoch {epoch} was taken over")

    async def stop(self) -> None:
        """See `Service`."""
        await super().stop()
        await self._give_up()

    async def _give_up(self) -> None:
        if self._epoch is not None:
            self._epoch = None
            try:
                await self._store.write(lambda tx: nodes.give_up_lease(tx, self._lease, self._held_as))
            except IotJobsError as error:
                log.warning("a lease was not given up", extra={"lease": self._lease, "why": str(error)})

    async def _loop(self) -> None:
        while True:
            await self._wait_until_fit()
            try:
                await self.seek()
            except IotJobsError as error:
                log.warning("a lease cannot be renewed", extra={"lease": self._lease, "why": str(error)})
            if not await self._stay_fit(RENEW_EVERY_S if self.leads else TRY_EVERY_S) and self.leads:
                log.warning("this process cannot lead: another one may", extra={"lease": self._lease})
                await self._give_up()
                await clock.sleep(TRY_EVERY_S)  # by then each of the others has had its turn

    async def _wait_until_fit(self) -> None:
        while not self.fit():
            await clock.sleep(LOOK_EVERY_S)

    async def _stay_fit(self, for_s: float) -> bool:
        """Let so much time pass, or less when we are not fit any more; whether we are."""
        until = clock.monotonic() + for_s
        while self.fit() and (left_s := until - clock.monotonic()) > 0:
            await clock.sleep(min(left_s, LOOK_EVERY_S))
        return self.fit()

    async def seek(self) -> bool:
        """Take or renew it; whether it is ours."""
        began, holder, silent = clock.monotonic(), self._holder(), self._silent
        found = await self._store.write(lambda tx: nodes.take_lease(tx, self._lease, holder, silent))
        self._silent = self._silence.of({self._lease: found}, began).get(self._lease)
        if found.holder != holder:
            self._first_seen = self._first_seen or found
            self.another_leads = found != self._first_seen
            self._lost()
            return False
        self._first_seen, self.another_leads = None, False
        if found.epoch != self._epoch:
            log.info("this process leads now", extra={"lease": self._lease, "epoch": found.epoch})
        self._epoch, self._held_as, self._until = found.epoch, holder, began + nodes.LEASE_MS / 1000
        return True

    def _lost(self) -> None:
        if self._epoch is not None:
            self._epoch = None
            log.warning("this process leads no more", extra={"lease": self._lease})
