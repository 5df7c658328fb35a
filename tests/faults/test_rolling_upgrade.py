"""Two nodes and a worker are stopped and started again in turn, under a steady stream of submits."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from pathlib import Path

import httpx2
import pytest
from iotjobs_sim.mqtt_devices import PretendDevice
from iotjobs_sim.sshd import SshServer

from tests.services.fleet import Fleet
from tests.services.lives import assert_lives
from tests.services.nodes import Nodes
from tests.services.siege import nothing_waits, seeded, shown
from tests.services.site import Answer, Rest, StartServe, eventually, pause

# A machine that cannot keep up is asked more slowly, so that nobody waits for a connection to the database.
AT_ONCE = 16


class Stream:
    """Submits at a steady rate, to the nodes in turn; what one does not take, the other has to."""

    def __init__(self, fleet: Fleet, rests: list[Rest], chance: random.Random, per_s: float) -> None:
        self.fleet, self.rests, self.chance, self.per_s = fleet, rests, chance, per_s
        self.asked = self.passed_on = 0
        self._over, self._places = asyncio.Event(), asyncio.Semaphore(AT_ONCE)

    async def run(self) -> None:
        """Submit until `end`; fails when a job was not taken."""
        async with asyncio.TaskGroup() as group:
            for number in itertools.count():
                await self._places.acquire()
                if self._over.is_set():
                    return
                group.create_task(self._submit(number)).add_done_callback(lambda _: self._places.release())
                await pause(1 / self.per_s)

    def end(self) -> None:
        """Submit no more."""
        self._over.set()

    async def _submit(self, number: int) -> None:
        owner, operation = self.fleet.choose(self.chance)
        path = f"/objects/{owner['id']}/operations/{operation['id']}/execute"
        one, other = self.rests[number % 2], self.rests[1 - number % 2]
        self.asked += 1
        began = time.monotonic()
        answer = await asked(one, path, number)
        if isinstance(answer, str):  # it is being stopped: whether it took the job, the key tells
            self.passed_on += 1
            said, after_s = answer, time.monotonic() - began
            answer = await asked(other, path, number)
            took_s = time.monotonic() - began
            assert not isinstance(answer, str), (one.serve.port, said, after_s, answer, took_s)
        self.fleet.accepted[answer.body["id"]] = operation


async def asked(rest: Rest, path: str, number: int) -> Answer | str:
    """The answer to a submit; what happened instead, when nobody is there, or is about to leave."""
    try:
        answer = await rest.call("POST", path, {}, Idempotency_Key=f"upgrade-{number}")
    except httpx2.TransportError as error:
        return repr(error)
    if answer.status == 503:
        return str(answer.body)
    assert answer.status in (200, 202), answer
    return answer


async def test_nodes_that_are_upgraded_in_turn_lose_nothing_and_leave_no_submit_unanswered(
    nodes: Nodes, valve: PretendDevice, openssh: SshServer, tmp_path: Path, full: bool
) -> None:
    rounds, per_s = 4 if full else 1, 12.0
    seed, chance = seeded()
    other, _ = await asyncio.gather(nodes.add("serve"), nodes.add())
    async with Rest(nodes.serve) as first, Rest(other) as second:
        fleet = Fleet(first, tmp_path, valve)
        await fleet.define(openssh)
        stream = Stream(fleet, [first, second], chance, per_s)
        running = asyncio.create_task(stream.run())
        codes = []
        for node in nodes.all * rounds:
            before = fleet.counted().total()
            await eventually(lambda: running.done() or fleet.counted().total() > before + 10, 20)  # noqa: B023
            codes.append(await node.stop())
            await node.start()
            asks = second if node is nodes.serve else first
            await eventually(lambda: nodes.all_alive(asks), 10)  # noqa: B023
        stream.end()
        await running
        await eventually(lambda: nothing_waits(first), 30, 0.1)
        jobs = {job["id"]: job for job in await first.all_jobs()}
    await assert_lives(nodes.database_url, jobs)

    outcomes = fleet.check(jobs)
    shown(
        f"{len(codes)} restarts of {len(nodes.all)} nodes",
        outcomes,
        seed=seed,
        jobs=len(jobs),
        passed_on=stream.passed_on,
    )
    assert codes == [0] * len(codes)
    assert len(jobs) == len(fleet.accepted) == stream.asked
    assert not outcomes["lost"], "each had the time to end"
    assert not any("Traceback" in node.log for node in nodes.all)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
async def test_fifty_equal_posts_to_two_nodes_and_again_after_a_restart_are_one_job(
    make_serve: StartServe, openssh: SshServer, database: str
) -> None:
    serve = make_serve(database)
    await serve.start()
    nodes = [serve] if database == "sqlite" else [serve, serve.beside("second")]
    try:
        for node in nodes[1:]:
            await node.start()
        async with Rest(serve) as one, Rest(nodes[-1]) as other:
            owner = await one.device(openssh)
            operation = await one.script(owner, "echo once")
            path = f"/objects/{owner['id']}/operations/{operation['id']}/execute"

            async def post(rest: Rest) -> str:
                answer = await rest.call("POST", path, {"priority": 7}, Idempotency_Key="once")
                assert answer.status in (200, 202), answer
                return str(answer.body["id"])

            ids = set(await asyncio.gather(*(post(rest) for rest in (one, other) * 25)))
            for node in nodes:
                await node.restart()
            ids |= set(await asyncio.gather(*(post(rest) for rest in (one, other) * 25)))
            await one.refused(
                "POST",
                path,
                {"priority": 6},
                status=422,
                code="idempotencyMismatch",
                Idempotency_Key="once",
            )
            listed = await one.all_jobs()
    finally:
        for node in nodes:
            await node.kill()

    assert ids == {job["id"] for job in listed}
    assert len(ids) == 1
