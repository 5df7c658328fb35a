"""One attempt of a job, from its begin to its end.

Order matters and is the same for every transport: the begin is committed, then `sent_at`, then
the first byte leaves, then the end is committed. So after a crash the rows tell whether the
device may have been reached.
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
from iotjobs.engine.publishing import Publishing
from iotjobs.engine.reach import Reach
from iotjobs.engine.recorder import OUTPUT_CAP_BYTES, Recorder
from iotjobs.engine.settle import OutputEnd, Settler
from iotjobs.store import jobs
from iotjobs.store.session import Store
from iotjobs.transports.base import CommandEnd, CommandHooks, CommandRequest, Gone, Stream

log = logging.getLogger(__name__)

# A worker that was frozen between its commit and the send must not send any more: by then
# another one may have been given the attempt.
SEND_WITHIN_S = 4.0
# The process group's number is written this long after the start, so that short runs save the
# write; the nonce, known before, finds the processes as well.
NOTE_GROUP_AFTER_S = 0.25
STOPPED_CODE = "serverStopped"


@dataclass(frozen=True, slots=True)
class Begun:
    """An attempt that was begun: the job's row with it, and what to do (secrets resolved)."""

    job: Job
    plan: Plan


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
        output_cap_bytes: int = OUTPUT_CAP_BYTES,
    ) -> None:
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
        try:
            if begun.job.transport is Transport.MQTT:
                await self._publishing.publish(begun.job, begun.plan, Sending(self.store, begun.job))
            else:
                await _CommandRun(self, begun).run()
        except LeaseLost as error:
            log.warning("an attempt was taken over", extra={"job_id": begun.job.id, "why": str(error)})
        except IotJobsError as error:
            await self._end(begun, Ending(Outcome.LOST, error_code="internalError", error_message=str(error)))
        except Exception as error:
            log.exception(
                "an attempt failed in us", extra={"job_id": begun.job.id, "attempt": begun.job.attempt}
            )
            what = f"{type(error).__name__} in iotjobs, see the log"
            await self._end(begun, Ending(Outcome.LOST, error_code="internalError", error_message=what))

    async def _end(self, begun: Begun, ending: Ending) -> None:
        await self.settler.end_attempt(begun.job, begun.plan, ending)


class Sending:
    """The step right before the first byte leaves; knows whether it was taken.

    Attributes:
        sent_at: what the row says; set None when it is known that nothing left.
        announced: the transport came to the point of sending.
    """

    def __init__(self, store: Store, job: Job) -> None:
        self._store, self._job = store, job
        self._committed = clock.monotonic()
        self.sent_at = job.sent_at
        self.announced = False

    async def before_send(self) -> None:
        """Commit `sent_at`, unless the begin did.

        Raises:
            LeaseLost: the attempt is not ours any more, or we were frozen too long to send.
        """
        if self.sent_at is None:
            now = clock.now_ms()
            try:
                await self._store.write(
                    lambda tx: jobs.note(tx, self._job.id, self._job.attempt, sent_at=now)
                )
            except (StoreUnavailable, StorageFull) as error:
                raise DeviceUnreachable(
                    f"not sent, because it could not be written down first: {error}"
                ) from error
            self.sent_at, self._committed = now, clock.monotonic()
        elif clock.monotonic() - self._committed > SEND_WITHIN_S:
            job = await self._store.look(lambda conn: jobs.get(conn, self._job.id))
            if job.attempt != self._job.attempt or jobs.ended(job):
                raise LeaseLost(
                    f"attempt {self._job.attempt} of job {self._job.id} was given to another worker"
                )
        self.announced = True


class _CommandRun:
    """One run of a script or program."""

    def __init__(self, executor: Executor, begun: Begun) -> None:
        self._store, self._settler, self._reach = executor.store, executor.settler, executor.reach
        self._job, self._plan = begun.job, begun.plan
        self._recorder = Recorder(self._store, self._job.id, self._job.attempt, executor.output_cap_bytes)
        self._sending = Sending(self._store, self._job)
        self._group = 0
        self._deadline = asyncio.timeout(begun.plan.timeout_s)
        self._under_way = self._interrupted = False
        self._runs = executor.command_runs
        self._note_group: asyncio.TimerHandle | None = None
        self._noting: asyncio.Task[None] | None = None

    def interrupt(self) -> None:
        """End it now, as if its deadline had passed; one that is ending already goes on with that."""
        if self._under_way and not self._deadline.expired():
            self._interrupted = True
            self._deadline.reschedule(asyncio.get_running_loop().time())

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
        job = self._job
        if job.sent_at != self._sending.sent_at:
            job = replace(job, sent_at=self._sending.sent_at)
        if self._interrupted and ending.error_code == STOPPED_CODE:
            await self._settler.hand_over(job, self._plan, ending, end)
        else:
            await self._settler.end_attempt(job, self._plan, ending, end=end)

    async def _attempt(self) -> Ending:
        assert self._job.nonce is not None, "a begun attempt has its nonce"
        request = command_request(self._job.id, self._job.nonce, self._plan)
        hooks = CommandHooks(self._sending.before_send, self._started, self._output)
        try:
            async with self._deadline:
                self._under_way = True
                try:
                    end = await self._reach.run(self._job, request, hooks)
                finally:
                    self._under_way = False
            return ending_of_exit(end)
        except TimeoutError:
            return await (self._stopped() if self._interrupted else self._timed_out())
        except DeliveryError as error:
            return await self._undelivered(error)
        except RequestError as error:
            # A value that no shell can carry; refused before anything was sent.
            self._sending.sent_at = None
            return Ending(Outcome.REJECTED, error_code=error.code, error_message=error.detail)

    async def _started(self, _pid: int, group: int) -> None:
        self._group = group
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
        return {
            Gone.GONE: "its processes were killed and are gone",
            Gone.LEFT: f"its processes were signalled and some are left ({proof.detail})",
            Gone.UNCONFIRMED: f"could not confirm that its processes are gone ({proof.detail})",
        }[proof.verdict]

    async def _undelivered(self, error: DeliveryError) -> Ending:
        if not error.maybe_executed:
            self._sending.sent_at = None
            return retries.ending_of(error)
        ending = retries.ending_of(error)
        if self._plan.interpreter == "raw" or self._job.transport is not Transport.SSH:
            return ending
        proof = await self._reach.probe(self._job, self._group)
        told = {
            Gone.GONE: "a probe afterwards found nothing of it running",
            Gone.LEFT: f"a probe afterwards found it running ({proof.detail})",
            Gone.UNCONFIRMED: f"a probe afterwards could not reach the device ({proof.detail})",
        }[proof.verdict]
        return replace(ending, error_message=f"{error.message}; {told}")


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
