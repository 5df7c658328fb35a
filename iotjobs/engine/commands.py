"""One run of a script or program on its device, from the begun attempt to its end."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from iotjobs import clock
from iotjobs.domain import retries
from iotjobs.domain.control import NOT_CONFIRMED
from iotjobs.domain.errors import DeliveryError, IotJobsError, LeaseLost, RequestError, StoreUnavailable
from iotjobs.domain.jobs import Ending
from iotjobs.domain.operations import Plan
from iotjobs.domain.statuses import Outcome
from iotjobs.engine.reach import Reach
from iotjobs.engine.recorder import Recorder
from iotjobs.engine.sending import Begun, RunMark, Sending
from iotjobs.engine.settle import STORE_RETRY_S, OutputEnd, Settler, until_taken
from iotjobs.engine.watch import Watch, Why
from iotjobs.store import jobs
from iotjobs.store.session import Store
from iotjobs.transports.base import CommandEnd, CommandHooks, CommandRequest, Gone, KillProof, Stream

log = logging.getLogger(__name__)

# The process group's number is written this long after the start, so that short runs save the
# write; the nonce, known before, finds the processes as well.
NOTE_GROUP_AFTER_S = 0.25
# A person waits for the proof of a cancel, and not for a slot: the device gets longer to say a word.
ASKED_WORD_S = 5.0
STOPPED_CODE = "serverStopped"
RAW_LEFT = "could not confirm that it is gone: a raw run has no process group"


class CommandRun:
    """One run of a script or program. `run` once; the watch may be told to end it at any time."""

    def __init__(
        self, store: Store, settler: Settler, reach: Reach, begun: Begun, *, sending: Sending, cap_bytes: int
    ) -> None:
        self._store, self._settler, self._reach = store, settler, reach
        self._job, self._plan, self._earlier = begun.job, begun.plan, begun.earlier
        self._recorder = Recorder(
            store, self._job.id, self._job.attempt, cap_bytes, earlier_bytes=self._job.output_bytes
        )
        self._sending = sending
        self.watch = Watch(begun.plan.timeout_s, begun.plan.stall_s)
        self._group = 0
        self._exit: CommandEnd | None = None
        self._note_group: asyncio.TimerHandle | None = None
        self._noting: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Run it, and write its end."""
        try:
            ending = await self._attempt()
            chunks = await self._recorder.close()
        finally:
            if self._note_group is not None:
                self._note_group.cancel()
            if self._noting is not None:
                await self._noting
            self._reach.ended(self._job.nonce or "")
        end = OutputEnd(tuple(chunks), self._recorder.total_bytes, self._recorder.truncated)
        job = self._job  # what succeeded is not tried again, and a copy is a good part of its end's cost
        if ending.outcome is not Outcome.SUCCEEDED or job.sent_at != self._sending.sent_at:
            job = self._sending.so_far()
        try:
            await self._check_ours()
        except LeaseLost as error:
            await self._settler.refused(job, [ending], error)
            return
        if self.watch.why is Why.SERVER_STOPS and ending.error_code == STOPPED_CODE:
            await self._settler.hand_over(job, self._plan, ending, end)
        else:
            await self._settler.end_attempt(job, self._plan, ending, end=end)

    async def _check_ours(self) -> None:
        while True:
            try:
                return await self._sending.check_ours()
            except StoreUnavailable as error:
                told = {"job_id": self._job.id, "why": str(error)}
                log.warning("an end waits for the store", extra=told)
            await clock.sleep(STORE_RETRY_S)

    async def _attempt(self) -> Ending:
        assert self._job.nonce is not None, "a begun attempt has its nonce"
        if self._earlier is not None:
            unsent = await self._end_earlier(self._earlier)
            if unsent is not None:
                return unsent
        if self.watch.why is not None:
            self._sending.nothing_left()
            return self._ended_early("nothing was sent")
        request = command_request(self._job.id, self._job.nonce, self._plan)
        hooks = CommandHooks(self._before_send, self._started, self._output, self._exited)
        try:
            async with self.watch:
                end = await self._reach.run(self._job, request, hooks)
            self._sending.on_device = None
            self._recorder.truncated |= not end.whole
            return ending_of_exit(end)
        except TimeoutError:
            if self._exit is not None:  # its end had come, and only the last of its output had not
                self._sending.on_device = None
                self._recorder.truncated = True
                return ending_of_exit(self._exit)
            return self._ended_early(await self._killed())
        except DeliveryError as error:
            return await self._undelivered(error)
        except RequestError as error:
            # A value that no shell can carry; refused before anything was sent.
            self._sending.nothing_left()
            return Ending(Outcome.REJECTED, error_code=error.code, error_message=error.detail)

    async def _end_earlier(self, earlier: RunMark) -> Ending | None:
        """End what an earlier attempt left on the device; the end of this one where that cannot be proven."""
        proof = await self._reach.kill_first(self._job, earlier, self._plan.kill_after_s)
        if proof.verdict is not Gone.GONE:
            return _beside_earlier(proof)
        self._sending.on_device = None
        if self.watch.why is not None:
            return self._ended_early("nothing was sent")
        said = f"before attempt {self._job.attempt}: no process of an earlier attempt is left"
        await until_taken(
            self._store, lambda tx: jobs.log(tx, self._job.id, clock.now_ms(), "INFO", said), self._job.id
        )
        return None

    async def _before_send(self) -> None:
        await self._sending.before_send(self._reach.went_to(self._job.nonce))
        self.watch.heard()

    async def _started(self, _pid: int, group: int) -> None:
        self._group = group
        self._sending.started(group)
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
        self.watch.heard(busy=True)
        await self._recorder.write(stream.value, data)
        self.watch.heard()

    def _exited(self, end: CommandEnd) -> None:
        self._exit = end

    def _ended_early(self, known: str) -> Ending:
        """The end of an attempt that was not let run to its own; `known`: of what it left on the device."""
        match self.watch.why:
            case Why.SERVER_STOPS:
                said = f"the server was stopped while it ran; {known}"
                return Ending(Outcome.LOST, error_code=STOPPED_CODE, error_message=said)
            case Why.ASKED:
                return Ending(Outcome.LOST, error_code=NOT_CONFIRMED, error_message=known)
            case Why.STALLED:
                said = f"no output for {self._plan.stall_s:g} s; {known}"
                return Ending(Outcome.TIMED_OUT, error_code="stalled", error_message=said)
            case _:
                said = f"not ended after {self._plan.timeout_s:g} s; {known}"
                return Ending(Outcome.TIMED_OUT, error_code="timeOut", error_message=said)

    async def _killed(self) -> str:
        """End what runs on the device, and say what is known of it."""
        if self._sending.sent_at is None:
            return "nothing was sent"
        if self._plan.interpreter == "raw":
            return RAW_LEFT
        first_word_s = ASKED_WORD_S if self.watch.why is Why.ASKED else None
        proof = await self._reach.kill(self._job, self._group, self._plan.kill_after_s, first_word_s)
        if proof.verdict is Gone.GONE:
            self._sending.on_device = None
        return words_of(proof)

    async def _undelivered(self, error: DeliveryError) -> Ending:
        if not error.maybe_executed:
            self._sending.nothing_left()
            return retries.ending_of(error)
        # Nobody listens to it any more, so it must not go on: its job ends here, or is tried again.
        ending = retries.ending_of(error)
        return replace(ending, error_message=f"{error.message}; {await self._killed()}")


def words_of(proof: KillProof) -> str:
    """What a kill could prove, in a sentence's half."""
    return {
        Gone.GONE: "its processes were killed and are gone",
        Gone.LEFT: f"its processes were signalled and some are left ({proof.detail})",
        Gone.UNCONFIRMED: f"could not confirm that its processes are gone ({proof.detail})",
    }[proof.verdict]


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
