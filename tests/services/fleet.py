"""A small fleet of real devices that count what they were told, for tests that break things."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from iotjobs_sim.mqtt_devices import Behaviour, PretendDevice
from iotjobs_sim.sshd import SshServer

from tests.services.site import Rest, ended

DEVICES = 5
ALONE_S = 0.2  # a device that meets nobody else when the broker comes back


@asynccontextmanager
async def slow_valve(port: int, *login: str, answer_after_s: float = 0.2) -> AsyncIterator[PretendDevice]:
    """The fleet's device on MQTT, on a broker's port, while the block goes on; it takes its time to answer."""
    valve = PretendDevice(
        "valve",
        "127.0.0.1",
        port,
        *login,
        behaviour=Behaviour.SLOW,
        answer_after_s=answer_after_s,
        spread_s=ALONE_S,
    )
    await valve.start()
    try:
        yield valve
    finally:
        await valve.stop()


class Fleet:
    """What is asked of the site, and what came to pass on the devices.

    Attributes:
        accepted: operations by the ids of the jobs that were promised.
        unanswered: how often a job was asked for and no answer came; it may have been recorded.
    """

    def __init__(self, rest: Rest, folder: Path, valve: PretendDevice) -> None:
        self.rest, self.runs, self.valve = rest, folder / "runs", valve
        self.accepted: dict[str, dict[str, Any]] = {}
        self.unanswered = 0
        self._ways: list[tuple[dict[str, Any], dict[str, Any]]] = []

    async def define(
        self, server: SshServer, *, takes_s: float = 0.3, thing: dict[str, Any] | None = None
    ) -> None:
        """Five SSH devices and a valve, each with operations that may be repeated and that may not."""
        count = f"echo $IOTJOBS_JOB_ID >> {self.runs}; sleep {takes_s}; echo done"
        valve = thing or await self.rest.thing(thing="valve")
        for idempotent in (False, True):
            for number in range(DEVICES):
                owner = await self.rest.device(server)
                given = {"idempotent": idempotent, "concurrent": number % 2 == 0}
                self._ways.append((owner, await self.rest.script(owner, count, **given)))
                program = await self.rest.operation(owner, "program", path="sh", args=["-c", count], **given)
                self._ways.append((owner, program))
            for answer in (None, {"within_s": 5}):
                for _ in range(DEVICES):
                    message = {"topic": "iotjobs/valve/cmd", "message": "{{jobId}}", "answer": answer}
                    operation = await self.rest.operation(
                        valve, "mqtt", idempotent=idempotent, parameters=message
                    )
                    self._ways.append((valve, operation))

    def choose(self, chance: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
        """An owner and one of its operations."""
        return chance.choice(self._ways)

    async def submit(self, chance: random.Random, by: Rest | None = None) -> None:
        """Ask for one job; only one that was accepted counts."""
        owner, operation = self.choose(chance)
        job = await (by or self.rest).execute(owner, operation)
        self.accepted[job["id"]] = operation

    def ran(self) -> list[str]:
        """The jobs that SSH devices began to run, in their order."""
        return self.runs.read_text().split() if self.runs.exists() else []

    def counted(self) -> Counter[str]:
        """How often each job ran, by what devices counted; without what the broker itself repeated.

        It marks what it *may* have sent before: of a message that comes for the first time, too.
        """
        received, repeated = self.valve.received, self.valve.redelivered
        sent = Counter({job_id: max(1, count - repeated[job_id]) for job_id, count in received.items()})
        return Counter(self.ran()) + sent

    def check(self, jobs: dict[str, dict[str, Any]]) -> Counter[str]:
        """None is gone, and every job has a definite end that fits what the devices counted; the outcomes."""
        assert set(self.accepted) <= set(jobs), "accepted jobs are not in the list"
        assert len(jobs) <= len(self.accepted) + self.unanswered
        counts, operations = self.counted(), {operation["id"]: operation for _, operation in self._ways}
        for job_id, job in jobs.items():
            operation = operations[job["operation_id"]]
            assert ended(job), job
            if not operation["idempotent"]:
                assert counts[job_id] <= 1, job
                # A later attempt means that nothing had been sent before; the last one may be lost unsent.
                assert job["attempt"] == 1 or counts[job_id] == 1 or job["outcome"] == "lost", job
            if job["outcome"] == "succeeded":
                assert counts[job_id] >= 1, job
        outcomes = Counter(job["outcome"] for job in jobs.values())
        assert set(outcomes) <= {"succeeded", "lost", "timed_out"}, outcomes
        return outcomes
