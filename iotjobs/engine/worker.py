"""Takes tickets and begins attempts, as many at once as the site allows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Container
from dataclasses import replace
from itertools import chain

import msgspec

from iotjobs import clock
from iotjobs.domain.control import ASKED
from iotjobs.domain.errors import IotJobsError, LeaseLost, StorageFull, StoreUnavailable, TransitionRefused
from iotjobs.domain.jobs import Ending, Job, Transport
from iotjobs.domain.operations import Plan
from iotjobs.domain.statuses import Outcome, Status
from iotjobs.engine.dispatch import Dispatcher
from iotjobs.engine.execution import Executor
from iotjobs.engine.intake import Fired
from iotjobs.engine.limits import Limits
from iotjobs.engine.presence import Membership
from iotjobs.engine.sending import Begun, RunMark, Sending, new_nonce
from iotjobs.engine.services import LoopService
from iotjobs.engine.settle import until_taken
from iotjobs.store import jobs, queue, switch
from iotjobs.store.queue import Ticket
from iotjobs.store.secrets import Secrets
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

log = logging.getLogger(__name__)

_UNSURE = Ending(
    Outcome.LOST,
    error_code="internalError",
    error_message="not sent: the store did not say that it had begun",
)

DRAIN_S = 30.0  # how long running attempts may go on after a stop was asked for

INTERRUPT_S = 7.0  # ending commands on their devices then: TERM, KILL after 5 s by default, a look
LEAVE_S = 1.0  # what is cut off after that takes its leave: all together so much, and no longer
UNCERTAIN_S = 3600.0  # longer than a database is away
FULL_DISK_S = 1.0  # a begin is tried so often on a full disk


class Worker(LoopService):
    """Runs attempts.

    Args:
        store: where jobs are.
        secrets: opens the plans of jobs with secret arguments.
        dispatcher: gives tickets.
        executor: runs what was begun.
        presence: whose id is written on every attempt.
        limits: what may begin.
        at_once: attempts under way at the same time.
    """

    name = "worker"

    def __init__(
        self,
        store: Store,
        secrets: Secrets,
        dispatcher: Dispatcher,
        executor: Executor,
        *,
        limits: Limits,
        presence: Membership,
        at_once: int,
    ) -> None:
        super().__init__()
        self._store, self._secrets, self._limits = store, secrets, limits
        self._dispatcher, self._executor = dispatcher, executor
        self._presence = presence
        self._places = asyncio.Semaphore(at_once)
        self._running: dict[asyncio.Task[None], list[str]] = {}
        self._adopted: list[Begun] = []  # what runs from the next turn of the loop on
        self._adopted_ids: list[str] = []
        self._uncertain: dict[str, float] = {}  # begun with a commit that has not been answered; since when
        self._left: set[str] = set()
        self._drains = False

    @property
    def worker_id(self) -> str:
        """What is written on attempts that begin now."""
        return self._presence.worker_id

    @property
    def running(self) -> int:
        """Attempts under way here."""
        return sum(map(len, self._running.values()))

    def under_way(self) -> set[str]:
        """Ids of the jobs that it has a ticket of, and of those that a drain left as they were.

        A job is among them before its attempt begins and until after its end is written.
        """
        return {*chain.from_iterable(self._running.values()), *self._left}

    def unsent(self) -> Container[str]:
        """Ids of jobs that may be on record as begun and sent, and of which nothing has left here.

        Their transaction failed, or the answer to its COMMIT was lost.
        """
        before = clock.monotonic() - UNCERTAIN_S
        self._uncertain = {job_id: at for job_id, at in self._uncertain.items() if at > before}
        return self._uncertain

    def begin_at_once(self, tx: Transaction, fired: Fired) -> bool:
        """Insert a message's job as begun, and send it with the commit.

        Only where nothing stands in its way: it waits for no answer, the site is open, its queue has a
        place, the broker takes it in a moment. Else nothing is done, and the caller inserts and offers the job.
        """
        row, plan = fired.row, fired.plan
        if (
            self._drains
            or plan is None
            or row["transport"] is not Transport.MQTT
            or plan.answer_within_s is not None
            or not self._limits.opened.is_set()
            or self._limits.of(row["queue"]) is not None
            or not self._presence.is_fresh()
            or not self._executor.ready_soon(row["id"])
            or not switch.stays_open(tx)
        ):
            return False
        since = clock.monotonic()
        job = jobs.insert_begun(tx, row, plan, worker_id=self.worker_id, nonce=new_nonce(), at=clock.now_ms())
        begun = Begun(job, plan, since=since)
        self._uncertain[job.id] = since
        tx.after_commit(lambda: self._adopt(begun))
        return True

    async def breathe(self) -> None:
        """See `AtOnce`."""
        await self._executor.breathe()

    def _adopt(self, begun: Begun) -> None:
        """Run what has begun, together with the others of its commit: they take no place, for they end in a moment."""
        self._uncertain.pop(begun.job.id, None)
        if not self._adopted:
            task = asyncio.create_task(self._run_adopted(), name="messages of reports")
            self._running[task] = self._adopted_ids
            task.add_done_callback(lambda done: self._running.pop(done, None))
        self._adopted.append(begun)
        self._adopted_ids.append(begun.job.id)
        self._executor.line_up(begun.job.id)

    async def _run_adopted(self) -> None:
        messages, self._adopted, self._adopted_ids = self._adopted, [], []
        try:
            await self._executor.run_messages(messages)
        except IotJobsError as error:
            log.info("its end came first", extra={"job_id": messages[0].job.id, "why": str(error)})
        finally:
            for begun in messages:
                self._executor.forget(begun.job.id)

    def end(self, job_id: str, attempt: int) -> None:
        """A cancel or stop was committed: end the attempt on its device, if it is under way here."""
        if any(job_id in ids for ids in self._running.values()):
            self._executor.end(job_id, attempt)

    async def _loop(self) -> None:
        while True:
            await self._places.acquire()
            taken = False
            try:
                await self._limits.opened.wait()
                if self._store.full:  # so that what waits is not taken, refused and logged again and again
                    await clock.sleep(FULL_DISK_S)
                ticket = await self._dispatcher.take()
                taken = True
            finally:
                if not taken:
                    self._places.release()
            task = asyncio.create_task(self._work(ticket), name=f"job {ticket.job_id}")
            self._running[task] = [ticket.job_id]
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.pop(task, None)
        self._places.release()

    async def drain(self, within_s: float = DRAIN_S) -> list[str]:
        """Stop taking, let what runs end, then end it; the ids of the jobs that are left all the same.

        Those are as they were in the store: the next start gives them their definite end.
        """
        self._drains = True  # of reports, that still come
        await self.stop()
        self._dispatcher.give_back()
        if self._running:
            await asyncio.wait(list(self._running), timeout=within_s)
        if self._running:
            self._executor.interrupt()
            await asyncio.wait(list(self._running), timeout=INTERRUPT_S)
        if not self._running:
            return []
        tasks = list(self._running)
        cut_off = set(chain.from_iterable(self._running.values()))
        self._left |= cut_off
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=LEAVE_S)
        left = await self._still_held(cut_off)
        for job_id in left:
            log.warning("a job was left under way", extra={"job_id": job_id})
        return left

    async def _still_held(self, cut_off: set[str]) -> list[str]:
        """Those of them that have no end: it may have been on its way to the disk when they were cut off."""
        try:
            async with asyncio.timeout(LEAVE_S):
                # A write, though it writes nothing: it comes after every end that was given to the writer.
                held = await self._store.write(lambda tx: queue.held(tx.conn, self.worker_id), reserved=True)
        except (TimeoutError, StorageFull, StoreUnavailable):
            return sorted(cut_off)
        return sorted(cut_off & {job_id for job_id, _ in held})

    async def _work(self, ticket: Ticket) -> None:
        try:
            await self._presence.be_fresh()
            begun = await self._begun(ticket)
            if begun is not None:
                await self._executor.run(begun)
        except (StoreUnavailable, StorageFull) as error:
            log.warning("an attempt waits for the store", extra={"job_id": ticket.job_id, "why": str(error)})
        except (LeaseLost, TransitionRefused) as error:
            log.info("somebody else was quicker", extra={"job_id": ticket.job_id, "why": str(error)})
        except Exception:
            # The edge of one attempt: the sweep finds the job again if it is still ready.
            log.exception("an attempt could not be begun", extra={"job_id": ticket.job_id})
        finally:
            self._executor.forget(ticket.job_id)
            self._dispatcher.done(ticket)

    async def _begun(self, ticket: Ticket) -> Begun | None:
        """Begin an attempt, and know that it has begun: if that cannot be known, nothing is sent, and it is taken back."""
        since = clock.monotonic()
        last: Begun | None = None

        def item(tx: Transaction) -> Begun | None:
            nonlocal last
            last = None
            last = self._begin(tx, ticket)
            return last

        locks = self._limits.locks_of(ticket)
        try:
            begun = await self._store.write(item, locks=locks, ahead=(queue.candidates, ticket.job_id))
        except StoreUnavailable:
            if last is not None:
                await self._take_back(last)
            raise
        return None if begun is None else replace(begun, since=since)

    async def _take_back(self, begun: Begun) -> None:
        """Give a job its next attempt if this one is in its row: the answer to the COMMIT may have been lost."""
        sending = Sending(self._store, begun, self._presence)
        sending.nothing_left()
        unsent, settler = sending.so_far(), self._executor.settler

        def item(tx: Transaction) -> None:
            row, now = jobs.locked(tx, unsent.id), clock.now_ms()
            if (row.attempt, row.worker_id) != (unsent.attempt, unsent.worker_id):
                return
            if row.status is Status.RUNNING:
                settler.again_now(tx, unsent, _UNSURE, now)
            elif row.status in ASKED:
                settler.end_asked(tx, replace(unsent, status=row.status, cancel=row.cancel), _UNSURE, now)

        await until_taken(self._store, item, unsent.id, locks=self._limits.locks_of(unsent))

    def _begin(self, tx: Transaction, ticket: Ticket) -> Begun | None:
        """Begin the next attempt if the job is ready; a ticket is only a hint.

        One that leads to nothing is withdrawn under the lane's lock: what makes the job ready a moment
        later has to offer it anew, and not to find this one still there.
        """
        tx.lock(*self._limits.locks_of(ticket))
        found, now = queue.candidate(tx, ticket.job_id), clock.now_ms()
        if (
            found is None
            or found.lane_taken
            or not _ready(found.job, now)
            or not self._limits.may_begin(tx, found, self._dispatcher)
        ):
            self._dispatcher.withdraw(tx, ticket)
            if found is not None and _lapsed(found.job, now):  # its end is written later, or by another node
                queue.offer_next(tx, found.job.lane, now, self._dispatcher)
            return None
        job, stored = found.job, found.plan
        if found.secret is not None:
            stored = msgspec.json.decode(self._secrets.open(found.secret, f"plan:{job.id}"))
        plan = Plan.from_json(stored)
        earlier = RunMark.left_by(job, plan)
        sent = earlier is None and self._executor.ready_to_send(job)
        return replace(self._begin_attempt(tx, job, plan, sent=sent), earlier=earlier)

    def _begin_attempt(self, tx: Transaction, job: Job, plan: Plan, *, sent: bool) -> Begun:
        now, nonce = clock.now_ms(), new_nonce()
        sent_to = self._executor.open_way(job) if sent and job.transport is Transport.SSH else None
        number = jobs.begin_attempt(
            tx, job, worker_id=self.worker_id, nonce=nonce, at=now, sent=sent, sent_to=sent_to
        )
        job = replace(
            job,
            status=Status.RUNNING,
            attempt=number,
            nonce=nonce,
            process_group=None,
            sent_to=sent_to,
            worker_id=self.worker_id,
            started_at=job.started_at or now,
            begun_at=now,
            sent_at=now if sent else None,
            deadline_at=None,
            start_at=None,
        )
        return Begun(job, plan)


def _ready(job: Job, now: int) -> bool:
    return (
        job.status is Status.PENDING
        and (job.start_at is None or job.start_at <= now)
        and not _lapsed(job, now)
    )


def _lapsed(job: Job, now: int) -> bool:
    return job.expires_at is not None and job.expires_at <= now
