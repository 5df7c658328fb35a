"""The step from a begun attempt to its first byte, and how what runs on a device is found again."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from iotjobs import clock
from iotjobs.domain.errors import LeaseLost, NotRecorded, StorageFull, StoreUnavailable
from iotjobs.domain.jobs import Job, Transport
from iotjobs.domain.operations import Plan
from iotjobs.engine.presence import Membership
from iotjobs.store import jobs
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction

# A worker that was frozen between its commit and the send must not send any more: by then
# another one may have been given the attempt.
SEND_WITHIN_S = 4.0
_ON_DEVICES = (Transport.SSH, Transport.LOCAL)


@dataclass(frozen=True, slots=True)
class RunMark:
    """How the processes of one attempt are found on the device, and which device that is.

    Attributes:
        group: 0: they are found by the nonce alone.
        sent_to: see `SshTarget.place`; None: not on record.
    """

    nonce: str
    group: int = 0
    sent_to: str | None = None

    @classmethod
    def left_by(cls, job: Job, plan: Plan) -> RunMark | None:
        """The mark of an earlier attempt that may still run, read off a job that waits for its next."""
        if job.nonce is None or job.transport not in _ON_DEVICES or plan.interpreter == "raw":
            return None
        return cls(job.nonce, job.process_group or 0, job.sent_to)


@dataclass(frozen=True, slots=True)
class Begun:
    """An attempt that was begun: the job's row with it, and what to do (secrets resolved).

    Attributes:
        earlier: what has to be gone from the device before anything is sent.
        since: the moment of the monotonic clock before its begin was written; 0 is long ago.
    """

    job: Job
    plan: Plan
    earlier: RunMark | None = None
    since: float = 0.0


def new_nonce() -> str:
    """Marks one attempt's processes on the device; unguessable, letters and digits."""
    return secrets.token_hex(8)


class Sending:
    """The step right before the first byte leaves; knows whether it was taken.

    Attributes:
        sent_at: what the row says; set None when it is known that nothing left.
        announced: the transport came to the point of sending.
        on_device: what of the job may run there; set None when it is known that nothing does.
    """

    def __init__(self, store: Store, begun: Begun, presence: Membership) -> None:
        self._store, self._job, self._presence = store, begun.job, presence
        self._ours_at = begun.since  # when we knew last that the attempt is ours
        self.sent_at, self._sent_to = begun.job.sent_at, begun.job.sent_to
        self.announced = False
        self.on_device = begun.earlier if begun.job.sent_at is None else self._own_mark()

    def _own_mark(self) -> RunMark | None:
        return None if self._job.nonce is None else RunMark(self._job.nonce, 0, self._sent_to)

    def started(self, group: int) -> None:
        """The device told the run's process group, 0 for none of its own."""
        self.on_device = RunMark(self._job.nonce or "", group, self._sent_to)

    def nothing_left(self) -> None:
        """Note that nothing of this attempt left us, although we were about to send it."""
        if self.sent_at is not None:
            self.sent_at = self.on_device = None

    def so_far(self) -> Job:
        """The job's row with what is known now of its device, for the attempt's end."""
        mark = self.on_device
        nonce, group, to = (
            (None, None, None) if mark is None else (mark.nonce, mark.group or None, mark.sent_to)
        )
        return replace(self._job, sent_at=self.sent_at, nonce=nonce, process_group=group, sent_to=to)

    async def before_send(self, to: str | None = None) -> None:
        """Commit `sent_at` and the attempt's mark, unless the begin did, and for the same place.

        Raises:
            LeaseLost: the attempt is not ours any more, or we were frozen too long to send.
            NotRecorded: the store is away or full.
        """
        try:
            if self.sent_at is None or to != self._sent_to:
                await self._write_sent(to)
            while clock.monotonic() - self._ours_at > SEND_WITHIN_S or not self._presence.is_fresh():
                await self._ask()
            self._refuse_if_buried()
        except (StoreUnavailable, StorageFull) as error:
            raise NotRecorded(f"not sent, because it could not be written down first: {error}") from error
        self.announced = True

    async def check_ours(self) -> None:
        """Make sure that the end that was seen is the run's own: one of who was declared dead is killed by others.

        Raises:
            LeaseLost: that is so; they end the attempt as well.
            StoreUnavailable: nobody can tell.
        """
        await self._presence.be_fresh()
        self._refuse_if_buried()

    def _refuse_if_buried(self) -> None:
        """A process that was declared dead lives on under another id: what it had begun is others' now."""
        if self._presence.worker_id != self._job.worker_id:
            raise LeaseLost(f"worker {self._job.worker_id}, which began it, was declared dead")

    async def _write_sent(self, to: str | None) -> None:
        self._refuse_if_buried()
        # The moment before the write counts: we may be frozen between its commit and the next line.
        since, now = clock.monotonic(), clock.now_ms()
        facts = {"sent_at": now, "nonce": self._job.nonce, "process_group": None, "sent_to": to}
        await self._store.write(lambda tx: jobs.note(tx, self._job.id, self._job.attempt, **facts), locks=())
        self.sent_at, self._sent_to, self._ours_at = now, to, since
        self.on_device = self._own_mark()

    async def _ask(self) -> None:
        """Make sure that neither we nor the attempt were given up by the others."""
        since = clock.monotonic()

        def item(tx: Transaction) -> None:
            self._refuse_if_buried()
            self._presence.confirm(tx)
            jobs.note(tx, self._job.id, self._job.attempt, sent_at=self.sent_at)

        await self._store.write(item)
        self._presence.confirmed(since)
        self._ours_at = since
