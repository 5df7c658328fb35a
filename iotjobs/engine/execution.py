"""One attempt of a job, from its begin to its end.

Order matters and is the same for every transport: the begin is committed, then what an earlier
attempt may have left on the device is proven gone, then `sent_at` is committed with the attempt's
own mark, then the first byte leaves, then the end is committed. So after a crash the rows tell
whether the device may have been reached, and how to find what may run there.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from dataclasses import dataclass, replace

from iotjobs import clock
from iotjobs.domain import retries
from iotjobs.domain.errors import (
    DeliveryError,
    DeviceUnreachable,
    IotJobsError,
    LeaseLost,
    RequestError,
    StorageFull,
    StoreUnavailable,
)
from iotjobs.domain.jobs import Ending, Job, Transport
from iotjobs.domain.operations import Plan
from iotjobs.domain.statuses import Outcome
from iotjobs.engine.presence import Alone, Membership
from iotjobs.engine.publishing import Publishing
from iotjobs.engine.reach import Reach
from iotjobs.engine.recorder import OUTPUT_CAP_BYTES, Recorder
from iotjobs.engine.settle import OutputEnd, Settler, until_taken
from iotjobs.store import jobs
from iotjobs.store.session import Store
from iotjobs.store.writer import Transaction
from iotjobs.transports.base import CommandEnd, CommandHooks, CommandRequest, Gone, KillProof, Stream

log = logging.getLogger(__name__)

# A worker that was frozen between its commit and the send must not send any more: by then
# another one may have been given the attempt.
SEND_WITHIN_S = 4.0
# The process group's number is written this long after the start, so that short runs save the
# write; the nonce, known before, finds the processes as well.
NOTE_GROUP_AFTER_S = 0.25
STOPPED_CODE = "serverStopped"
_ON_DEVICES = (Transport.SSH, Transport.LOCAL)


@dataclass(frozen=True, slots=True)
class RunMark:
    """How the processes of one attempt are found on the device; `group` 0: by the nonce alone."""

    nonce: str
    group: int = 0

    @classmethod
    def left_by(cls, job: Job, plan: Plan) -> RunMark | None:
        """The mark of an earlier attempt that may still run, read off a job that waits for its next."""
        if job.nonce is None or job.transport not in _ON_DEVICES or plan.interpreter == "raw":
            return None
        return cls(job.nonce, job.process_group or 0)


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


class Executor:
    """Runs begun attempts to their end. Safe for concurrent use."""

    def __init__(
        self,
        store: Store,
        settler: Settler,
        reach: Reach,
        publishing: Publishing,
        *,
        presence: Membership | None = None,
        output_cap_bytes: int = OUTPUT_CAP_BYTES,
    ) -> None:
        self.presence = presence or Alone("")
        self.store, self.settler, self.reach, self._publishing = store, settler, reach, publishing
        self.output_cap_bytes = output_cap_bytes
        self.command_runs: set[_CommandRun] = set()

    def interrupt(self) -> None:
        """The server stops: end every command under way, on the device too, and settle it."""
        for run in self.command_runs:
            run.interrupt()

    def ready_to_send(self, job: Job) -> bool:
        """Whether the way to the device is open, so that sending follows the begin at once."""
        if job.transport is Transport.MQTT:
            return self._publishing.ready_for(job.id)
        return job.transport is Transport.SSH and self.reach.is_warm(job.target_id)

    async def run(self, begun: Begun) -> None:
        """Run one attempt; everything that can go wrong ends in its record."""
        sending = Sending(self.store, begun, self.presence)
        try:
            if begun.job.transport is Transport.MQTT:
                await self._publishing.publish(begun.job, begun.plan, sending)
            else:
                await _CommandRun(self, begun, sending).run()
        except LeaseLost as error:
            log.warning("an attempt was taken over", extra={"job_id": begun.job.id, "why": str(error)})
        except IotJobsError as error:
            ending = Ending(Outcome.LOST, error_code="internalError", error_message=str(error))
            await self.settler.end_attempt(sending.so_far(), begun.plan, ending)
        except Exception as error:
            log.exception(
                "an attempt failed in us", extra={"job_id": begun.job.id, "attempt": begun.job.attempt}
            )
            what = f"{type(error).__name__} in iotjobs, see the log"
            ending = Ending(Outcome.LOST, error_code="internalError", error_message=what)
            await self.settler.end_attempt(sending.so_far(), begun.plan, ending)


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
        self.sent_at = begun.job.sent_at
        self.announced = False
        self.on_device = begun.earlier if begun.job.sent_at is None else self._own_mark()

    def _own_mark(self) -> RunMark | None:
        return None if self._job.nonce is None else RunMark(self._job.nonce)

    def nothing_left(self) -> None:
        """Note that nothing of this attempt left us, although we were about to send it."""
        if self.sent_at is not None:
            self.sent_at = self.on_device = None

    def so_far(self) -> Job:
        """The job's row with what is known now of its device, for the attempt's end."""
        mark = self.on_device
        nonce, group = (None, None) if mark is None else (mark.nonce, mark.group or None)
        return replace(self._job, sent_at=self.sent_at, nonce=nonce, process_group=group)

    async def before_send(self) -> None:
        """Commit `sent_at` and the attempt's mark, unless the begin did.

        Raises:
            LeaseLost: the attempt is not ours any more, or we were frozen too long to send.
        """
        try:
            if self.sent_at is None:
                await self._write_sent()
            while clock.monotonic() - self._ours_at > SEND_WITHIN_S or not self._presence.is_fresh():
                await self._ask()
        except (StoreUnavailable, StorageFull) as error:
            raise DeviceUnreachable(
                f"not sent, because it could not be written down first: {error}"
            ) from error
        self.announced = True

    async def _write_sent(self) -> None:
        # The moment before the write counts: we may be frozen between its commit and the next line.
        since, now = clock.monotonic(), clock.now_ms()
        facts = {"sent_at": now, "nonce": self._job.nonce, "process_group": None}
        await self._store.write(lambda tx: jobs.note(tx, self._job.id, self._job.attempt, **facts))
        self.sent_at, self._ours_at = now, since
        self.on_device = self._own_mark()

    async def _ask(self) -> None:
        """Make sure that neither we nor the attempt were given up by the others."""
        since = clock.monotonic()

        def item(tx: Transaction) -> None:
            self._presence.confirm(tx)
            jobs.note(tx, self._job.id, self._job.attempt, sent_at=self.sent_at)

        await self._store.write(item)
        self._presence.confirmed(since)
        self._ours_at = since


class _CommandRun:
    """One run of a script or program."""

    def __init__(self, executor: Executor, begun: Begun, sending: Sending) -> None:
        self._store, self._settler, self._reach = executor.store, executor.settler, executor.reach
        self._job, self._plan, self._earlier = begun.job, begun.plan, begun.earlier
        self._recorder = Recorder(self._store, self._job.id, self._job.attempt, executor.output_cap_bytes)
        self._sending = sending
        self._group = 0
        self._deadline = asyncio.timeout(begun.plan.timeout_s)
        self._under_way = self._ending_earlier = self._interrupted = False
        self._runs = executor.command_runs
        self._note_group: asyncio.TimerHandle | None = None
        self._noting: asyncio.Task[None] | None = None

    def interrupt(self) -> None:
        """End it now, as if its deadline had passed; one that is ending already goes on with that."""
        if self._under_way and not self._deadline.expired():
            self._interrupted = True
            self._deadline.reschedule(asyncio.get_running_loop().time())
        elif self._ending_earlier:
            self._interrupted = True

    async def run(self) -> None:
        self._runs.add(self)
        try:
            ending = await self._attempt()
            chunks = await self._recorder.close()
        finally:
            self._runs.discard(self)
            if self._note_group is not None:
                self._note_group.cancel()
            if self._noting is not None:
                await self._noting
        end = OutputEnd(tuple(chunks), self._recorder.total_bytes, self._recorder.truncated)
        job = self._job  # what succeeded is not tried again, and a copy is a good part of its end's cost
        if ending.outcome is not Outcome.SUCCEEDED or job.sent_at != self._sending.sent_at:
            job = self._sending.so_far()
        if self._interrupted and ending.error_code == STOPPED_CODE:
            await self._settler.hand_over(job, self._plan, ending, end)
        else:
            await self._settler.end_attempt(job, self._plan, ending, end=end)

    async def _attempt(self) -> Ending:
        assert self._job.nonce is not None, "a begun attempt has its nonce"
        if self._earlier is not None:
            unsent = await self._end_earlier(self._earlier)
            if unsent is not None:
                return unsent
        request = command_request(self._job.id, self._job.nonce, self._plan)
        hooks = CommandHooks(self._sending.before_send, self._started, self._output)
        try:
            async with self._deadline:
                self._under_way = True
                try:
                    end = await self._reach.run(self._job, request, hooks)
                finally:
                    self._under_way = False
            self._sending.on_device = None
            return ending_of_exit(end)
        except TimeoutError:
            return await (self._stopped() if self._interrupted else self._timed_out())
        except DeliveryError as error:
            return await self._undelivered(error)
        except RequestError as error:
            # A value that no shell can carry; refused before anything was sent.
            self._sending.nothing_left()
            return Ending(Outcome.REJECTED, error_code=error.code, error_message=error.detail)

    async def _end_earlier(self, earlier: RunMark) -> Ending | None:
        """End what an earlier attempt left on the device; the end of this one where that cannot be proven."""
        self._ending_earlier = True
        job = replace(self._job, nonce=earlier.nonce)
        proof = await self._reach.kill_first(job, earlier.group, self._plan.kill_after_s)
        self._ending_earlier = False
        if proof.verdict is not Gone.GONE:
            return _beside_earlier(proof)
        self._sending.on_device = None
        if self._interrupted:
            return Ending(Outcome.LOST, error_code=STOPPED_CODE, error_message="the server was stopped")
        said = f"before attempt {self._job.attempt}: no process of an earlier attempt is left"
        await until_taken(
            self._store, lambda tx: jobs.log(tx, self._job.id, clock.now_ms(), "INFO", said), self._job.id
        )
        return None

    async def _started(self, _pid: int, group: int) -> None:
        self._group = group
        self._sending.on_device = RunMark(self._job.nonce or "", group)
        self._note_group = asyncio.get_running_loop().call_later(NOTE_GROUP_AFTER_S, self._begin_noting)

    def _begin_noting(self) -> None:
        self._note_group = None
        self._noting = asyncio.create_task(self._write_group(), name=f"group of {self._job.id}")

    async def _write_group(self) -> None:
        try:
            await self._store.write(
                lambda tx: jobs.note(tx, self._job.id, self._job.attempt, process_group=self._group)
            )
        except IotJobsError as error:
            log.info("a process group was not noted", extra={"job_id": self._job.id, "why": str(error)})

    async def _output(self, stream: Stream, data: bytes) -> None:
        await self._recorder.write(stream.value, data)

    async def _timed_out(self) -> Ending:
        said = f"not ended after {self._plan.timeout_s:g} s; {await self._killed()}"
        return Ending(Outcome.TIMED_OUT, error_code="timeOut", error_message=said)

    async def _stopped(self) -> Ending:
        said = f"the server was stopped while it ran; {await self._killed()}"
        return Ending(Outcome.LOST, error_code=STOPPED_CODE, error_message=said)

    async def _killed(self) -> str:
        """End what runs on the device, and say what is known of it."""
        if self._sending.sent_at is None:
            return "nothing was sent"
        if self._plan.interpreter == "raw":
            return "a raw run has no process group: what it started may still run"
        proof = await self._reach.kill(self._job, self._group, self._plan.kill_after_s)
        if proof.verdict is Gone.GONE:
            self._sending.on_device = None
        return {
            Gone.GONE: "its processes were killed and are gone",
            Gone.LEFT: f"its processes were signalled and some are left ({proof.detail})",
            Gone.UNCONFIRMED: f"could not confirm that its processes are gone ({proof.detail})",
        }[proof.verdict]

    async def _undelivered(self, error: DeliveryError) -> Ending:
        if not error.maybe_executed:
            self._sending.nothing_left()
            return retries.ending_of(error)
        # Nobody listens to it any more, so it must not go on: its job ends here, or is tried again.
        ending = retries.ending_of(error)
        return replace(ending, error_message=f"{error.message}; {await self._killed()}")


def _beside_earlier(proof: KillProof) -> Ending:
    """Nothing was sent, because it could have run beside what an earlier attempt left behind."""
    said = {
        Gone.LEFT: "processes of an earlier attempt were signalled and some are left",
        Gone.UNCONFIRMED: "could not confirm that the processes of an earlier attempt are gone",
    }[proof.verdict]
    return Ending(
        Outcome.LOST,
        error_code="earlierNotEnded",
        error_message=f"{said} ({proof.detail}), so it was not sent again",
    )


def command_request(job_id: str, nonce: str, plan: Plan) -> CommandRequest:
    """The plan as a transport is asked for it."""
    return CommandRequest(
        nonce=nonce,
        script=plan.script,
        interpreter=plan.interpreter,
        argv=plan.argv,
        args=plan.args,
        env={**plan.env, "IOTJOBS_JOB_ID": job_id},
        cwd=plan.cwd,
        run_as=plan.run_as,
    )


def ending_of_exit(end: CommandEnd) -> Ending:
    """What an exit means: 0 succeeded, all else failed; a signal is named."""
    if end.exit_code == 0:
        return Ending(Outcome.SUCCEEDED, exit_code=0)
    if end.signal is not None:
        return Ending(
            Outcome.FAILED,
            exit_code=end.exit_code,
            error_code="signal",
            error_message=f"ended by signal {end.signal}",
        )
    return Ending(
        Outcome.FAILED,
        exit_code=end.exit_code,
        error_code="exitCode",
        error_message=f"exit code {end.exit_code}",
    )
