"""kill -9 of random nodes at random moments, while jobs of every kind are asked for and run."""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx2

from tests.services.fleet import Fleet
from tests.services.site import Rest, Serve, eventually

# So many may wait when more are asked for: each kill meets some, and the last one leaves no backlog.
FEW = 30


def seeded() -> tuple[int, random.Random]:
    """The seed of this run, printed, and the chance that it makes; `IOTJOBS_TEST_SEED` repeats one."""
    seed = int(os.environ.get("IOTJOBS_TEST_SEED") or random.randrange(10**6))
    print(f"seed {seed}: IOTJOBS_TEST_SEED={seed} repeats it")  # noqa: T201 - shown when it fails
    return seed, random.Random(seed)


@dataclass(slots=True)
class Siege:
    """Asks the nodes that have the API for jobs, and kills any of them.

    Attributes:
        fleet: what is asked for, and what counts it.
        nodes: those that may be killed, all up.
        rests: clients of those that have the API.
        chance: when, and whom.
        met: how many jobs waited or ran at the kills.
    """

    fleet: Fleet
    nodes: list[Serve]
    rests: list[Rest]
    chance: random.Random
    met: int = 0

    async def lay(self, kills: int, jobs: int) -> None:
        """Ask for so many jobs amid so many kills; every node is up again afterwards."""
        wanted = asyncio.Semaphore(0)
        asking = [asyncio.create_task(self._ask(rest, wanted)) for rest in self.rests for _ in range(2)]
        try:
            for kill in range(1, kills + 1):
                await eventually(self._few_wait, 60, 0.1)
                more = jobs * kill // kills - jobs * (kill - 1) // kills
                before, seen = self.fleet.counted().total(), self.chance.randrange(1, more)
                for _ in range(more):
                    wanted.release()
                await eventually(lambda: self.fleet.counted().total() - before >= seen, 30, 0.002)  # noqa: B023
                self.met += len(await waiting(self.rests[0]))
                await self.chance.choice(self.nodes).restart()
            await eventually(lambda: len(self.fleet.accepted) >= jobs, 60)
        finally:
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)

    async def all_definite(self, within_s: float) -> tuple[float, dict[str, dict[str, Any]]]:
        """How long it took until nothing waited any more, and every job of the list."""
        began = time.monotonic()
        await eventually(lambda: nothing_waits(self.rests[0]), within_s)
        return time.monotonic() - began, {job["id"]: job for job in await self.rests[0].all_jobs()}

    async def _few_wait(self) -> bool:
        return len(await waiting(self.rests[0])) <= FEW

    async def _ask(self, rest: Rest, wanted: asyncio.Semaphore) -> None:
        """Ask for as many jobs as are wanted; what is not answered does not count, and is asked for anew."""
        while True:
            await wanted.acquire()
            try:
                await self.fleet.submit(self.chance, rest)
            except httpx2.TransportError:
                self.fleet.unanswered += 1
                wanted.release()
                await asyncio.to_thread(rest.serve.wait_up)


async def waiting(rest: Rest) -> list[dict[str, Any]]:
    """The jobs that have not ended, of at most a page."""
    jobs: list[dict[str, Any]] = (await rest.get("/jobs", status="PENDING,RUNNING", limit=100))["items"]
    return jobs


async def nothing_waits(rest: Rest) -> bool:
    """Whether every job of the site has ended."""
    return not await waiting(rest)


async def clients(stack: AsyncExitStack, nodes: list[Serve]) -> list[Rest]:
    """One client for each node that has the API, as long as the stack lives."""
    return [await stack.enter_async_context(Rest(node)) for node in nodes if node.command == "serve"]


def shown(what: str, outcomes: Counter[str], **figures: object) -> None:
    """Print a run's figures, for the table of docs/explanation/guarantees.md."""
    told = ", ".join(f"{name} {value}" for name, value in figures.items())
    print(f"{what}: {told}, outcomes {dict(outcomes)}")  # noqa: T201
