"""A worker's network is cut under load: it needs no restart, and no job is gone or ran twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from iotjobs_sim.sshd import SshServer

from tests.services.fleet import Fleet, slow_valve
from tests.services.lives import assert_lives
from tests.services.mosquitto import Mosquitto
from tests.services.network import Namespace
from tests.services.nodes import Nodes
from tests.services.postgres import PostgresServer
from tests.services.siege import nothing_waits, seeded, shown
from tests.services.site import Rest, Serve, StartServe, eventually, pause
from tests.services.wire import Wire


async def test_a_worker_whose_network_is_cut_needs_no_restart_and_loses_nothing(
    namespace: Namespace,
    make_serve: StartServe,
    start_mosquitto: Callable[..., Mosquitto],
    openssh: SshServer,
    fresh_database: Callable[[], str],
    postgres_server: PostgresServer,
    tmp_path: Path,
    full: bool,
) -> None:
    count, cut_s = (400, 20.0) if full else (60, 13.0)
    seed, chance = seeded()
    broker, here = start_mosquitto(), namespace.address
    async with (
        slow_valve(broker.port) as valve,
        Wire(postgres_server.port, here) as database,
        Wire(broker.port, here) as mqtt,
        Wire(openssh.port, here) as ssh,
    ):
        serve = make_serve(mqtt_url=f"mqtt://{here}:{mqtt.port}", stop_grace_s="5")
        url = fresh_database()
        serve.database_url = url.replace(f"127.0.0.1:{postgres_server.port}/", f"{here}:{database.port}/")
        nodes = Nodes(serve)
        worker = serve.beside("cut", "worker")
        worker.prefix = namespace.prefix
        nodes.all.append(worker)
        try:
            await serve.start()
            await worker.start()
            pid = worker.pid
            async with Rest(serve) as rest:
                fleet = Fleet(rest, tmp_path, valve)
                await fleet.define(replace(openssh, host=here, port=ssh.port), takes_s=1.0)
                ways = [(namespace.silence, namespace.mend), (namespace.unplug, namespace.plug)]
                for cut, mend in ways if full else ways[:1]:
                    await asyncio.gather(*(fleet.submit(chance) for _ in range(count)))
                    former = await at_work(nodes, rest, worker)
                    cut()
                    await pause(cut_s)
                    mend()
                    await eventually(lambda: alive_again(nodes, rest, worker, former), 30, 0.1)  # noqa: B023
                    await eventually(lambda: nothing_waits(rest), 60, 0.1)
                    await eventually(lambda: works_again(fleet, chance, nodes, worker), 30, 0.1)
                await eventually(lambda: nothing_waits(rest), 30, 0.1)
                jobs = {job["id"]: job for job in await rest.all_jobs()}
            await assert_lives(url, jobs)
            assert worker.pid == pid
        finally:
            for node in nodes.all:
                await node.kill()

    outcomes = fleet.check(jobs)
    shown(f"a worker cut off for {cut_s:.0f} s", outcomes, seed=seed, jobs=len(jobs))
    assert not any("Traceback" in node.log for node in nodes.all)


async def at_work(nodes: Nodes, rest: Rest, worker: Serve) -> str:
    """The id of the worker, once attempts are under way on it."""
    worker_id: str = (await nodes.workers(rest))[worker.pid]["id"]
    await eventually(lambda: nodes.held(worker_id), 20, 0.05)
    return worker_id


async def alive_again(nodes: Nodes, rest: Rest, worker: Serve, former: str) -> bool:
    """Whether it is back: it was declared dead, so under another id."""
    found = (await nodes.workers(rest)).get(worker.pid)
    return found is not None and found["id"] != former


async def works_again(fleet: Fleet, chance: random.Random, nodes: Nodes, worker: Serve) -> bool:
    """Whether it takes jobs: some more are asked for."""
    await asyncio.gather(*(fleet.submit(chance) for _ in range(10)))
    worker_id = (await nodes.workers(fleet.rest))[worker.pid]["id"]
    return await nodes.held(worker_id) > 0
