"""kill -9 of three nodes on one PostgreSQL: no job is gone, none is stuck, none ran twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from iotjobs_sim.sshd import SshServer

from tests.services.fleet import Fleet, slow_valve
from tests.services.lives import assert_lives
from tests.services.mosquitto import Mosquitto
from tests.services.siege import Siege, clients, seeded, shown
from tests.services.site import StartServe

JOBS_A_KILL = 40
DEFINITE_WITHIN_S = 30


@pytest.mark.check(1)
async def test_after_kills_of_random_nodes_every_job_has_its_end_and_none_ran_twice(
    make_serve: StartServe,
    start_mosquitto: Callable[..., Mosquitto],
    openssh: SshServer,
    tmp_path: Path,
    full: bool,
) -> None:
    kills = 50 if full else 3
    seed, chance = seeded()
    broker = start_mosquitto()
    first = make_serve("postgresql", mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
    nodes = [first, first.beside("second"), first.beside("third", "worker")]
    await first.start()
    await asyncio.gather(*(node.start() for node in nodes[1:]))
    try:
        async with AsyncExitStack() as stack:
            valve = await stack.enter_async_context(slow_valve(broker.port))
            rests = await clients(stack, nodes)
            fleet = Fleet(rests[0], tmp_path, valve)
            await fleet.define(openssh)
            siege = Siege(fleet, nodes, rests, chance)
            await siege.lay(kills, kills * JOBS_A_KILL)
            took, jobs = await siege.all_definite(DEFINITE_WITHIN_S)
        assert first.database_url is not None
        await assert_lives(first.database_url, jobs)
    finally:
        for node in nodes:
            await node.kill()

    outcomes = fleet.check(jobs)
    shown(
        "three nodes",
        outcomes,
        seed=seed,
        kills=kills,
        jobs=len(jobs),
        met=siege.met,
        definite_s=f"{took:.1f}",
    )
    assert not any("Traceback" in node.log for node in nodes)
