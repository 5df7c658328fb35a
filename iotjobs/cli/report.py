"""What came of the jobs of one command: tells it as it comes, keeps what the end needs."""

from __future__ import annotations

from collections.abc import Sequence

from iotjobs.cli import exitcodes, printing
from iotjobs.cli.exitcodes import ExitCode
from iotjobs.cli.running import Order
from iotjobs.client.errors import ClientError, Unreachable
from iotjobs.client.shapes import Job


class Report:
    """The jobs of one command.

    Attributes:
        waits: jobs are told when they end, not when they start.
        as_json: the records are told together, at the end.
        orders: what was asked for, in the order in which the end tells it.
        codes: one for each job or failure so far.
    """

    def __init__(self, *, waits: bool, as_json: bool) -> None:
        self.waits, self.as_json = waits, as_json
        self.orders: Sequence[Order] = ()
        self.codes: list[ExitCode] = []
        self._jobs: dict[str, Job] = {}  # the newest of each, by its id
        self._of_owner: dict[str, str] = {}

    def started(self, order: Order, job: Job) -> None:
        """A job is on record, and has perhaps ended already."""
        self._jobs[job.id] = job
        self._of_owner[order.owner.id] = job.id
        if not self.waits:
            self.codes.append(ExitCode.OK)
            if not self.as_json:
                printing.put_started(job)
        elif job.ended:
            self._tell(job)
        else:
            printing.say(f"started {job.label}: job {job.id}")

    def not_started(self, order: Order, error: ClientError, key: str) -> None:
        """There is no job, or none that we know of."""
        printing.complain(error, about=order.owner.name)
        if isinstance(error, Unreachable) and error.maybe_done:
            printing.say(f"  it may have been started; with --idempotency-key {key} it is not started twice")
        self.codes.append(exitcodes.of_error(error))

    def followed(self, before: Job, now: Job | None, error: ClientError | None) -> None:
        """A job has ended, or was waited for long enough, or can no longer be asked for."""
        if now is not None:
            self._jobs[now.id] = now
            self._tell(now)
        if error is not None:
            printing.complain(error, about=f"{before.label}, job {before.id}")
            self.codes.append(exitcodes.of_error(error))

    def _tell(self, job: Job) -> None:
        self.codes.append(exitcodes.of_job(job))
        if not self.as_json:
            printing.put_ended(job)
        if not job.ended:
            printing.say(f"iotjobs: timed out waiting; it goes on: {job.label}, job {job.id}")

    def going(self) -> list[Job]:
        """The jobs that have not ended."""
        return [job for job in self._jobs.values() if not job.ended]

    def interrupted(self) -> None:
        """Somebody pressed Ctrl-C."""
        self.codes.append(ExitCode.INTERRUPTED)
        printing.say("iotjobs: interrupted")
        for job in self.going():
            printing.say(f"  it goes on: {job.label}, job {job.id}")

    def end(self) -> ExitCode:
        """Tell what is told at the end; the exit code."""
        if self.as_json and self.orders:
            known = [self._of_owner.get(order.owner.id) for order in self.orders]
            printing.put_json([self._jobs[job_id] for job_id in known if job_id is not None])
        return exitcodes.together(self.codes)
