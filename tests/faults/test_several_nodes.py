"""Several nodes on one PostgreSQL and one broker: what one of them alone does, and what of its death."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from iotjobs_sim.mqtt_devices import Behaviour, PretendDevice
from iotjobs_sim.sshd import SshServer
from paho.mqtt import publish

from iotjobs import clock
from tests.services.fleet import ALONE_S
from tests.services.mosquitto import Mosquitto
from tests.services.nodes import Nodes
from tests.services.programs import free_port
from tests.services.site import Rest, StartServe, eventually, log_has
from tests.services.wire import Wire

TAKEN_OVER_WITHIN_S = 20.0


async def test_jobs_are_shared_and_who_waits_is_told_wherever_they_end(
    nodes: Nodes, openssh: SshServer
) -> None:
    await nodes.add()
    other = await nodes.add("serve")
    async with Rest(nodes.serve) as rest, Rest(other) as elsewhere:
        assert set(await nodes.workers(rest)) == {node.pid for node in nodes.all}
        assert set(await nodes.workers(elsewhere)) == {node.pid for node in nodes.all}
        owner = await rest.device(openssh)
        script = await rest.script(owner, "sleep 0.2; echo done", concurrent=True)

        done = await asyncio.gather(
            *((rest, elsewhere)[turn % 2].run(owner, script, wait=30) for turn in range(24))
        )

        assert {job["outcome"] for job in done} == {"succeeded"}
        _, token = await rest.user("viewer")
        async with Rest(other, token) as viewer:
            await viewer.refused("GET", "/workers", status=403, code="notAllowed")
    assert [await node.stop() for node in nodes.all] == [0, 0, 0]


async def test_a_dead_workers_jobs_end_and_its_devices_messages_go_on(
    nodes: Nodes, openssh: SshServer, tmp_path: Path
) -> None:
    worker = await nodes.add()
    runs = tmp_path / "runs"
    valve = PretendDevice(
        "valve",
        "127.0.0.1",
        nodes.broker_port,
        behaviour=Behaviour.SLOW,
        answer_after_s=0.1,
        spread_s=ALONE_S,
    )
    await valve.start()
    try:
        async with Rest(nodes.serve) as rest:
            owner = await rest.device(openssh)
            text = f"echo $IOTJOBS_JOB_ID >> {runs}; sleep 4; echo done"
            once = await rest.script(owner, text, concurrent=True)
            repeated = await rest.script(owner, text, concurrent=True, idempotent=True)
            jobs = [await rest.execute(owner, one) for one in [once, repeated] * 6]
            await eventually(lambda: runs.exists() and len(runs.read_text().split()) == len(jobs), 15)
            held = (await nodes.workers(rest))[worker.pid]["id"]

            await worker.kill()
            ends = [await rest.ended(job["id"], 45) for job in jobs]

            thing = await rest.thing(thing="valve")
            message = {"topic": "iotjobs/valve/cmd", "message": "{{jobId}}", "answer": {"within_s": 20}}
            asked = await rest.operation(thing, "mqtt", parameters=message)
            answered = await rest.run(thing, asked, wait=30)
            dead = [one for one in (await rest.get("/workers"))["items"] if one["id"] == held]
    finally:
        await valve.stop()

    counts = Counter(runs.read_text().split())
    outcomes = Counter(job["outcome"] for job in ends)
    print(f"outcomes {dict(outcomes)}")  # noqa: T201 - shown when it fails
    for job, operation in zip(ends, [once, repeated] * 6, strict=True):
        if operation is once:
            assert (counts[job["id"]], job["outcome"]) in ((1, "succeeded"), (1, "lost")), job
        else:
            assert job["outcome"] == "succeeded", job
    assert answered["outcome"] == "succeeded"
    assert [one["state"] for one in dead] == ["dead"]


@pytest.mark.parametrize("way", ["frozen", "killed"])
async def test_the_leader_is_replaced_within_twenty_seconds_and_writes_nothing_when_it_wakes(
    nodes: Nodes, openssh: SshServer, way: str
) -> None:
    leader = nodes.serve
    other = await nodes.add("serve")
    async with Rest(other) as rest:
        await eventually(lambda: nodes.leads(rest, leader.pid), 10)
        owner = await rest.device(openssh)
        script = await rest.script(owner, "true")
        began = time.monotonic()
        leader.freeze() if way == "frozen" else await leader.kill()
        due = await rest.execute(owner, script, start_at=in_ms(3000))

        for lease in ("leader", "ingest"):
            await eventually(lambda: nodes.leads(rest, other.pid, lease), TAKEN_OVER_WITHIN_S + 5)  # noqa: B023
        took = time.monotonic() - began
        assert (await rest.ended(due["id"], 10))["outcome"] == "succeeded"
        print(f"{way}: taken over after {took:.1f} s")  # noqa: T201 - a figure

        if way == "frozen":
            await eventually(lambda: nodes.is_dead(rest, leader.pid), 5)
            leader.thaw()
            await eventually(lambda: "leads no more" in leader.log, 10)
            await eventually(lambda: "was declared dead" in leader.log, 10)
            await eventually(lambda: nodes.all_alive(rest), 10)
            assert await nodes.holder(rest, "leader") == other.pid
            again = await rest.run(owner, script, wait=20)
            assert again["outcome"] == "succeeded"
    assert took < TAKEN_OVER_WITHIN_S


def in_ms(ms: int) -> str:
    moment = clock.rfc3339(clock.now_ms() + ms)
    assert moment is not None
    return moment


async def test_a_node_without_a_broker_leaves_messages_to_those_that_have_one(nodes: Nodes) -> None:
    without = nodes.serve.beside("without", "worker")
    del without.settings["mqtt_url"]
    nodes.all.append(without)
    await without.start()
    async with Rest(nodes.serve) as rest:
        thing = await rest.thing(thing="valve")
        message = {"topic": "iotjobs/valve/cmd", "message": "{{jobId}}"}
        tell = await rest.operation(thing, "mqtt", parameters=message)
        jobs = await asyncio.gather(*(rest.run(thing, tell, wait=30) for _ in range(60)))

        assert Counter(job["outcome"] for job in jobs) == {"succeeded": 60}
        assert "this worker runs without MQTT" in without.log

        await eventually(lambda: nodes.leads(rest, nodes.serve.pid), 10)
        waits = await rest.execute(thing, tell, start_at=in_ms(2000))
        await nodes.serve.kill()
    await eventually(lambda: "this process leads now" in without.log, TAKEN_OVER_WITHIN_S + 5)
    await nodes.serve.start()
    async with Rest(nodes.serve) as rest:
        assert (await rest.ended(waits["id"], 20))["outcome"] == "succeeded"
        await eventually(lambda: nodes.leads(rest, nodes.serve.pid, "ingest"), 10)


async def test_a_node_that_is_cut_off_from_the_broker_leaves_messages_to_those_that_are_connected(
    nodes: Nodes,
) -> None:
    await nodes.add(mqtt_url=f"mqtt://127.0.0.1:{free_port()}")
    async with Rest(nodes.serve) as rest:
        owner = await rest.thing(thing="valve")
        tell = await rest.operation(owner, "mqtt", topic="x/valve", message="open")
        jobs = await asyncio.gather(*(rest.run(owner, tell, wait=30) for _ in range(60)))

        assert Counter(job["outcome"] for job in jobs) == {"succeeded": 60}


async def test_a_node_that_is_cut_off_from_the_broker_lets_another_one_listen(
    make_serve: StartServe, start_mosquitto: Callable[..., Mosquitto]
) -> None:
    broker = start_mosquitto()
    async with Wire(broker.port) as wire:
        serve = make_serve("postgresql", mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
        serve.environment()
        cut_off = serve.beside("cut-off", "worker", mqtt_url=f"mqtt://127.0.0.1:{wire.port}")
        nodes = Nodes(serve)
        await cut_off.start()
        try:
            await eventually(lambda: log_has(cut_off, "leads now lease=ingest"), 10)
            await serve.start()
            async with Rest(serve) as rest:
                await rest.thing(name="pump", thing="pump")
                assert await nodes.leads(rest, cut_off.pid, "ingest")
                assert await nodes.leads(rest, cut_off.pid)  # and stays the leader
                wire.cut()
                await eventually(lambda: nobody_listens(rest), 15)
                await eventually(lambda: nodes.leads(rest, serve.pid, "ingest"), 15)
                await asyncio.to_thread(
                    publish.single, "iotjobs/pump/report", '{"t": 1}', qos=1, port=broker.port
                )
                await eventually(lambda: reported(rest), 10)
                assert await nodes.leads(rest, cut_off.pid)
                await eventually(lambda: is_ready(rest), 10)
        finally:
            await cut_off.stop()


async def nobody_listens(rest: Rest) -> bool:
    found = await rest.get("/readyz")
    return found["status"] == "degraded" and found["reasons"]["ingest"].startswith("nobody listens")


async def is_ready(rest: Rest) -> bool:
    return (await rest.get("/readyz")) == {"status": "ready", "reasons": {}}


async def reported(rest: Rest) -> bool:
    [pump] = (await rest.get("/objects", name="pump"))["items"]
    return pump["properties"] == {"t": 1}


async def test_a_worker_refuses_sqlite_and_says_what_to_do(make_serve: StartServe) -> None:
    worker = make_serve().beside("worker", "worker")
    process = worker.process = worker.launch()

    assert await eventually(process.poll, 20) == 2
    assert "a worker needs PostgreSQL: set IOTJOBS_DATABASE_URL" in worker.log


async def test_a_site_of_one_lists_itself(make_serve: StartServe) -> None:
    serve = make_serve()
    await serve.start()
    async with Rest(serve) as rest:
        [worker] = (await rest.get("/workers"))["items"]

    assert (worker["pid"], worker["state"], worker["running"]) == (serve.pid, "alive", 0)
    assert worker["leases"] == ["leader", "ingest"]
