"""Runs begun attempts, whatever their transport, and ends them early when that is asked for.

Order matters and is the same for every transport: the begin is committed, then what an earlier
attempt may have left on the device is proven gone, then `sent_at` is committed with the attempt's
own mark, then the first byte leaves, then the end is committed. So after a crash the rows tell
whether the device may have been reached, and how to find what may run there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from iotjobs.domain.errors import IotJobsError, LeaseLost
from iotjobs.domain.jobs import Ending, Job, Transport
from iotjobs.domain.statuses import Outcome
from iotjobs.engine.commands import CommandRun
from iotjobs.engine.presence import Membership
from iotjobs.engine.publishing import Publishing
from iotjobs.engine.reach import Reach
from iotjobs.engine.recorder import OUTPUT_CAP_BYTES
from iotjobs.engine.sending import Begun, Sending
from iotjobs.engine.settle import Settler
from iotjobs.engine.volleys import Sent, Volley
from iotjobs.engine.watch import Watch, Why
from iotjobs.store.session import Store

log = logging.getLogger(__name__)

# Messages of one batch of reports that are written as sent before there is a place for them: after a crash
# as many end `lost` at most, though they never left.
MESSAGES_AHEAD = 256


class Executor:
    """Runs begun attempts to their end. Safe for concurrent use."""

    def __init__(
        self,
        store: Store,
        settler: Settler,
        reach: Reach,
        publishing: Publishing,
        *,
        presence: Membership,
        output_cap_bytes: int = OUTPUT_CAP_BYTES,
    ) -> None:
        self.presence = presence
        self.store, self.settler, self.reach, self._publishing = store, settler, reach, publishing
        self.output_cap_bytes = output_cap_bytes
        self._watches: dict[str, tuple[Job, Watch]] = {}
        self._volleys: list[Volley] = []
        self._asked: dict[str, int] = {}  # attempts that were begun, are to be ended, and do not run yet

    def interrupt(self) -> None:
        """The server stops: end every command under way, on the device too, and settle it."""
        for job, watch in self._watches.values():
            if job.transport is not Transport.MQTT:
                watch.end(Why.SERVER_STOPS)

    def end(self, job_id: str, attempt: int) -> None:
        """A person wants this attempt ended, and the row says so; it may be about to run.

        Calling it again changes nothing. Who calls it makes sure that `forget` follows.
        """
        job, watch = self._watches.get(job_id, (None, None))
        if job is None or watch is None:
            self._asked[job_id] = attempt
            for volley in self._volleys:
                volley.stir()
        elif job.attempt == attempt:
            watch.end(Why.ASKED)

    def forget(self, job_id: str) -> None:
        """Nothing of this job is about to run here."""
        self._asked.pop(job_id, None)
        self._publishing.step_out(job_id)

    def ready_to_send(self, job: Job) -> bool:
        """Whether the way to the device is open, so that sending follows the begin at once."""
        if job.transport is Transport.MQTT:
            return self._publishing.ready_for(job.id)
        return job.transport is Transport.SSH and self.open_way(job) is not None

    def open_way(self, job: Job) -> str | None:
        """Where the open connection to an ssh job's device leads; None without one."""
        return self.reach.open_way(job.target_id)

    def ready_soon(self, job_id: str) -> bool:
        """Whether a message of a batch leaves in a moment: it may wait for those of its batch, see `MESSAGES_AHEAD`."""
        return self._publishing.ready_for(job_id, ahead=MESSAGES_AHEAD)

    async def breathe(self) -> None:
        """Wait, not for long, until half of those places are free again."""
        await self._publishing.breathe(MESSAGES_AHEAD // 2)

    def line_up(self, job_id: str) -> None:
        """A message, to be run by `run_messages`, leaves after those that were lined up before it; `forget` must follow."""
        self._publishing.line_up(job_id)

    async def run_messages(self, messages: Sequence[Begun]) -> None:
        """Run attempts of messages that one transaction began."""
        if len(messages) == 1:
            await self.run(messages[0])
            return
        volley = Volley(
            self._publishing,
            self.settler,
            sending=self._sending,
            alone=self.run,
            asked=self._asked.keys(),
        )
        self._volleys.append(volley)
        try:
            await volley.run(messages)
        finally:
            self._volleys.remove(volley)

    def _sending(self, begun: Begun) -> Sending:
        return Sending(self.store, begun, self.presence)

    async def run(self, begun: Begun, sent: Sent | None = None) -> None:
        """Run one attempt; everything that can go wrong ends in its record.

        Args:
            begun: the attempt.
            sent: its message, where that was handed over already.
        """
        job = begun.job
        sending, answer = (self._sending(begun), None) if sent is None else (sent.sending, sent.answer)
        try:
            if job.transport is Transport.MQTT:
                watch = self._watched(job, Watch(begun.plan.timeout_s))
                await self._publishing.publish(job, begun.plan, sending, watch, answer)
            else:
                run = CommandRun(
                    self.store,
                    self.settler,
                    self.reach,
                    begun,
                    sending=sending,
                    cap_bytes=self.output_cap_bytes,
                )
                self._watched(job, run.watch)
                await run.run()
        except LeaseLost as error:
            log.warning("an attempt was taken over", extra={"job_id": job.id, "why": str(error)})
        except IotJobsError as error:
            ending = Ending(Outcome.LOST, error_code="internalError", error_message=str(error))
            await self.settler.end_attempt(sending.so_far(), begun.plan, ending)
        except Exception as error:
            log.exception("an attempt failed in us", extra={"job_id": job.id, "attempt": job.attempt})
            what = f"{type(error).__name__} in iotjobs, see the log"
            ending = Ending(Outcome.LOST, error_code="internalError", error_message=what)
            await self.settler.end_attempt(sending.so_far(), begun.plan, ending)
        finally:
            self._watches.pop(job.id, None)

    def _watched(self, job: Job, watch: Watch) -> Watch:
        self._watches[job.id] = (job, watch)
        if self._asked.get(job.id) == job.attempt:
            watch.end(Why.ASKED)
        return watch
