"""What the site lets begin: whether it dispatches, and how many at once in each queue.

The rows are the truth, and each begin asks the switch's. What stands here is read again every second, and at
once after a change made through this process: another node stops to take tickets, or knows of a queue's
new limit, a second later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sqlalchemy import Connection

from iotjobs import clock
from iotjobs.domain.errors import LeaseLost, TransitionRefused
from iotjobs.domain.jobs import Cause, Ending, Job, JobType
from iotjobs.domain.rights import Caller
from iotjobs.domain.statuses import Outcome
from iotjobs.engine.limits import Limits
from iotjobs.engine.services import LoopService
from iotjobs.engine.settle import Settler
from iotjobs.store import facts, jobs, queues, switch
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
# A drain that takes longer than this is not waited for any more.
DRAIN_MOST_MS = 24 * 3600 * 1000
# A statement that the server began before the switch was committed may see it open so long after that.
SETTLED_AFTER_MS = 2_000
SITE = "site"


class SiteSwitch(LoopService):
    """Reads the switch and the limits, changes them, and ends drains when nothing runs any more.

    Args:
        store: where they are.
        limits: kept as they are.
        settler: ends the jobs that stand for a drain.
        sweep: offers whatever is ready; called when something may go on.

    Attributes:
        swept: jobs that a full queue had held back, and that only a look found a place for; at most, since that
            place may have been on its way to another.
    """

    name = "site"

    def __init__(
        self,
        store: Store,
        limits: Limits,
        settler: Settler,
        sweep: Callable[[], Awaitable[int]],
    ) -> None:
        super().__init__()
        self._store, self._limits, self._settler, self._sweep = store, limits, settler, sweep
        self._one_at_a_time = asyncio.Lock()
        self.swept = 0

    async def _loop(self) -> None:
        while True:
            await self.look()
            await clock.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Read everything anew; let go what was held back and need not be any more."""
        async with self._one_at_a_time:
            is_open, drained, concurrency, held = await self._store.read(_read)
            opened = drained or not self._limits.opened.is_set()
            as_before = self._limits.concurrency == concurrency and not opened
            self._limits.concurrency = concurrency
            let_go = 0
            for name in held if is_open else ():
                limit = self._limits.of(name)
                let_go += await self._store.write(lambda tx, n=name, m=limit: queues.let_go(tx, n, m))  # type: ignore[misc]
            if drained or not is_open:
                await self._store.write(queues.tell_switched)
            offered = await self._switched(is_open, offer=drained or let_go > 0)
            self.swept += offered if as_before and let_go else 0
            if not is_open:
                await self._end_drains()

    async def _switched(self, is_open: bool, *, offer: bool = False) -> int:
        """Remember whether it is open; how many jobs were offered."""
        was_open = self._limits.opened.is_set()
        if not is_open:
            self._limits.opened.clear()
        elif offer or not was_open:
            self._limits.opened.set()
            return await self._sweep()
        return 0

    async def put_queue(self, name: str, concurrency: int | None) -> bool:
        """Make a queue or change its limit; whether it is new."""
        queues.refuse_alias(name)
        is_new = await self._store.write(lambda tx: queues.put(tx, name, concurrency))
        await self.look()
        return is_new

    async def switch(self, *, is_open: bool, caller: Caller) -> str:
        """Open or drain the site; the id of the job that stands for it.

        A drain's job (STOP_APP) runs until nothing holds a worker any more.
        """
        job_id = clock.new_id()

        def item(tx: Transaction) -> None:
            now = clock.now_ms()
            if not is_open:
                tx.lock(switch.SWITCH)
            for drain in queues.drains(tx.conn):
                self._settler.finish(tx, drain, _REPLACED, now)
            if queues.dispatching(tx.conn) is not is_open:
                switch.sign(tx, switch.DISPATCH, caller, now)
            queues.set_dispatching(tx, is_open)
            job = self._inserted(tx, job_id, is_open, caller, now)
            if is_open:
                self._settler.finish(tx, job, Ending(Outcome.SUCCEEDED), now)
            else:
                jobs.begin_attempt(tx, job, worker_id=SITE, nonce=job_id, at=now, sent=False)
                jobs.note(tx, job_id, 1, deadline_at=now + DRAIN_MOST_MS)

        async with self._one_at_a_time:
            await self._store.write(item, reserved=True)
            await self._switched(is_open)
        log.warning("the site was opened" if is_open else "the site is drained", extra={"by": caller.login})
        return job_id

    async def pause(self, *, paused: bool, caller: Caller) -> None:
        """Pause all triggers of the site, or let them fire again. As it is already: nothing changes."""

        def item(tx: Transaction) -> bool:
            if switch.paused(tx.conn) is paused:
                return False
            facts.put(tx, switch.PAUSED, "yes" if paused else "no")
            switch.sign(tx, switch.PAUSED, caller, clock.now_ms())
            return True

        if await self._store.write(item):
            what = "all triggers are paused" if paused else "triggers may fire again"
            log.warning(what, extra={"by": caller.login})

    @staticmethod
    def _inserted(tx: Transaction, job_id: str, is_open: bool, caller: Caller, now: int) -> Job:
        row = {
            "id": job_id,
            "type": JobType.START_APP if is_open else JobType.STOP_APP,
            "label": "open the site" if is_open else "drain the site",
            "owner_id": SITE,
            "owner_type": 0,
            "owner_name": SITE,
            "user_id": caller.user_id,
            "run_by_id": caller.user_id,
            "run_by_name": caller.login,
            "cause": Cause.USER,
            "timestamp": now,
            "queue": "system",
            "abortable": False,  # a drain is taken back by opening the site
        }
        return jobs.inserted(row, jobs.insert_job(tx, row, None, None))

    async def _end_drains(self) -> None:
        drains, running = await self._store.read(lambda conn: (queues.drains(conn), queues.under_way(conn)))
        for drain in drains:
            # Before its beginning: the clock was set back since.
            if running == 0 and not 0 <= clock.now_ms() - drain.timestamp < SETTLED_AFTER_MS:
                await self._end(drain)

    async def _end(self, drain: Job) -> None:
        def item(tx: Transaction) -> None:
            tx.lock(switch.SWITCH)  # what was about to begin, on whichever node, is on record now
            if queues.under_way(tx.conn) == 0:
                self._settler.finish(tx, drain, Ending(Outcome.SUCCEEDED), clock.now_ms())

        try:
            await self._store.write(item, reserved=True)
        except (TransitionRefused, LeaseLost) as error:
            log.info("a drain was ended by somebody else", extra={"job_id": drain.id, "why": str(error)})


def _read(conn: Connection) -> tuple[bool, bool, dict[str, int | None], list[str]]:
    return (
        queues.dispatching(conn),
        queues.any_drained(conn),
        queues.limits(conn),
        queues.holding_back(conn),
    )


_REPLACED = Ending(
    Outcome.FAILED, error_code="replaced", error_message="the site was opened or drained anew before its end"
)
