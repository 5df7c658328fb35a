"""Gives the attempts of a dead process their definite end, by the one decision of `domain.retries`.

Attached attempts end with their worker: what had sent nothing, or may be repeated, gets its next
attempt; everything else is lost, and says so. Parked attempts hold no worker: they just go on.
"""

from __future__ import annotations

import logging

from iotjobs import clock
from iotjobs.domain import retries
from iotjobs.domain.errors import LeaseLost, TransitionRefused
from iotjobs.domain.jobs import Ending, Job
from iotjobs.domain.operations import Plan
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.settle import Settler
from iotjobs.store import jobs, queue
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

log = logging.getLogger(__name__)

_GONE = Ending(Outcome.LOST, error_code="workerDied", error_message="the process that ran it ended")


async def rescue(store: Store, settler: Settler, worker_id: str) -> int:
    """End or repeat every attached attempt that another worker holds; how many there were.

    To be called when those workers are known to be dead, before this one takes its first ticket.
    """
    count = 0
    while True:
        found = await store.read(lambda conn: queue.orphans(conn, worker_id))
        if not found:
            return count
        for job in found:
            await _rescue_one(store, settler, job)
        count += len(found)


async def _rescue_one(store: Store, settler: Settler, job: Job) -> None:
    def item(tx: Transaction) -> None:
        plan = Plan.from_json(jobs.plan_of(tx.conn, job.id)[0])
        sent = job.sent_at is not None
        now = clock.now_ms()
        if job.status is not Status.RUNNING:
            settler.finish(tx, job, _lost(sent), now)
        elif retries.redelivery(sent=sent, idempotent=plan.idempotent) is retries.Redelivery.NEXT_ATTEMPT:
            settler.again_now(tx, job, _GONE, now)
        else:
            settler.finish(tx, job, _lost(sent), now)

    try:
        await store.write(item)
    except (LeaseLost, TransitionRefused) as error:
        log.info("a rescue came second", extra={"job_id": job.id, "why": str(error)})


def _lost(sent: bool) -> Ending:
    what = "after it was sent; it may have run" if sent else "before it was sent"
    return Ending(
        Outcome.LOST, error_code="workerDied", error_message=f"the process that ran it ended {what}"
    )
