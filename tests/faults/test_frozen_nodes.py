"""A worker or the leader stands still for a minute under load, and wakes: it runs nothing twice."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path

import pytest
from iotjobs_sim.mqtt_devices import PretendDevice
from iotjobs_sim.sshd import SshServer

from tests.services.fleet import Fleet
from tests.services.lives import assert_lives
from tests.services.nodes import Nodes
from tests.services.siege import nothing_waits, seeded, shown
from tests.services.site import Rest, Serve, eventually, pause

TAKEN_OVER_WITHIN_S = 20.0
ASKERS = 20


@pytest.mark.check(6)
@pytest.mark.parametrize("which", ["worker", "leader"])
async def test_a_node_that_was_frozen_runs_nothing_twice_and_its_late_writes_are_refused(
    nodes: Nodes, valve: PretendDevice, openssh: SshServer, tmp_path: Path, which: str, full: bool
) -> None:
    count, frozen_s, others = (5_000, 60.0, 4) if full else (250, 14.0, 2)
    seed, chance = seeded()
    other, *workers = await asyncio.gather(nodes.add("serve"), *(nodes.add() for _ in range(others)))
    async with Rest(other) as rest:
        await eventually(lambda: nodes.leads(rest, nodes.serve.pid), 10)
        fleet = Fleet(rest, tmp_path, valve)
        await fleet.define(openssh, takes_s=0.3 if full else 1.0)
        asking = asyncio.create_task(ask(fleet, chance, count))
        frozen = workers[0] if which == "worker" else nodes.serve
        held = await freeze_at_work(nodes, rest, frozen)
        began = time.monotonic()
        taken_over_s = 0.0
        if which == "leader":
            for lease in ("leader", "ingest"):
                await eventually(lambda: led_by_another(nodes, rest, frozen.pid, lease), 30)  # noqa: B023
            taken_over_s = time.monotonic() - began
        await pause(max(0.0, frozen_s - (time.monotonic() - began)))
        await eventually(lambda: nodes.is_dead(rest, frozen.pid), 30, 0.2)
        frozen.thaw()

        await eventually(lambda: "was declared dead" in frozen.log, 15)
        await eventually(lambda: nodes.all_alive(rest), 15)
        await asking
        await eventually(lambda: nothing_waits(rest), 300 if full else 40, 0.2)
        await eventually(lambda: refused(frozen) >= 1, 15)
        jobs = {job["id"]: job for job in await rest.all_jobs()}
        assert await nodes.holder(rest, "leader") != frozen.pid or which == "worker"
    await assert_lives(nodes.database_url, jobs)

    outcomes = fleet.check(jobs)
    shown(
        f"{which} of {len(nodes.all)} processes frozen for {frozen_s:.0f} s",
        outcomes,
        seed=seed,
        jobs=len(jobs),
        held=held,
        refused=refused(frozen),
        taken_over_s=f"{taken_over_s:.1f}",
    )
    assert len(jobs) == count
    assert taken_over_s < TAKEN_OVER_WITHIN_S
    assert outcomes["lost"] <= held
    if which == "leader":
        assert "this process leads no more" in frozen.log
    assert not any("Traceback" in node.log for node in nodes.all)


async def ask(fleet: Fleet, chance: random.Random, count: int) -> None:
    left = iter(range(count))

    async def one() -> None:
        for _ in left:
            await fleet.submit(chance)

    await asyncio.gather(*(one() for _ in range(ASKERS)))


async def freeze_at_work(nodes: Nodes, rest: Rest, node: Serve) -> int:
    """Freeze a node while attempts are under way on it; how many those were."""
    worker_id = (await nodes.workers(rest))[node.pid]["id"]
    for _ in range(50):
        await eventually(lambda: nodes.held(worker_id), 20)
        node.freeze()
        if (held := await nodes.held(worker_id)) >= 2:
            return held
        node.thaw()
    raise AssertionError("it never had two attempts under way")


async def led_by_another(nodes: Nodes, rest: Rest, pid: int, lease: str) -> bool:
    return await nodes.holder(rest, lease) not in (None, pid)


def refused(node: Serve) -> int:
    """How many late writes of a node its log tells of."""
    return sum(node.log.count(phrase) for phrase in ("a late end was refused", "an attempt was taken over"))
