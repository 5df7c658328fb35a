"""The broker goes away, and comes back, while messages are under way."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from iotjobs_sim.mqtt_devices import PretendDevice

from tests.services.fleet import ALONE_S
from tests.services.mosquitto import Mosquitto
from tests.services.site import Rest, StartServe, eventually

StartMosquitto = Callable[..., Mosquitto]
DEFINITE = {"succeeded", "failed", "lost"}


async def test_without_a_broker_a_job_is_tried_as_often_as_asked_and_fails_clearly(
    make_serve: StartServe, start_mosquitto: StartMosquitto
) -> None:
    broker = start_mosquitto()
    serve = make_serve(mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
    await serve.start()
    async with Rest(serve) as rest:
        owner = await rest.thing(thing="valve")
        message = {"topic": "line/1", "message": "on"}
        retried = await rest.operation(
            owner, "mqtt", retry={"attempts": 2, "on": ["unreachable"], "backoff_s": 0.2}, **message
        )
        patient = await rest.operation(
            owner, "mqtt", retry={"attempts": 50, "on": ["unreachable"], "backoff_s": 0.2}, **message
        )
        await asyncio.to_thread(broker.stop)
        await eventually(lambda: degraded(rest), 15)

        waiting = await rest.execute(owner, patient)
        job = await rest.run(owner, retried, wait=30)
        await asyncio.to_thread(broker.start)
        later = await rest.ended(waiting["id"], 25)

    assert (job["outcome"], job["attempt"], job["delivery"]) == ("failed", 2, "queued")
    assert job["error"]["code"] == "unreachable"
    assert job["error"]["message"].startswith("no connection to the broker")
    assert later["outcome"] == "succeeded"
    assert later["attempt"] > 1


async def degraded(rest: Rest) -> bool:
    answer = await rest.call("GET", "/readyz")
    return bool(
        answer.status == 200
        and answer.body == {"status": "degraded", "reasons": {"broker": "the broker is down"}}
    )


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
async def test_a_broker_that_restarts_amid_a_hundred_messages_leaves_each_job_its_end_and_none_sent_twice(
    make_serve: StartServe, start_mosquitto: StartMosquitto, how: str
) -> None:
    broker = start_mosquitto()
    serve = make_serve(mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
    await serve.start()
    device = PretendDevice("valve", "127.0.0.1", broker.port, spread_s=ALONE_S)
    await device.start()
    try:
        async with Rest(serve) as rest:
            owner = await rest.thing(thing="valve")
            operation = await rest.operation(
                owner,
                "mqtt",
                retry={"attempts": 20, "on": ["unreachable"], "backoff_s": 0.2},
                topic="iotjobs/valve/cmd",
                message="{{jobId}}",
            )

            def submit(count: int) -> None:
                submits.extend(asyncio.create_task(rest.execute(owner, operation)) for _ in range(count))

            submits: list[asyncio.Task[dict[str, Any]]] = []
            submit(60)
            await device.wait_for(lambda: device.received.total() >= 20)
            broker.freeze()  # what is published from here on cannot be acknowledged before the stop
            submit(20)
            await asyncio.gather(*submits)
            await eventually(lambda: running(rest), 10)
            under_way = await running(rest)
            submit(20)
            await asyncio.to_thread(broker.stop, signal.Signals[how])
            await asyncio.to_thread(broker.start)
            jobs = await asyncio.gather(*submits)
            await eventually(lambda: all_ended(rest), 40)
            found = {job["id"]: job for job in await rest.all_jobs()}
    finally:
        await device.stop()

    assert len(under_way) >= 20, "too little was under way at the stop: it proves nothing"
    assert set(found) == {job["id"] for job in jobs}
    assert len(found) == 100
    outcomes = Counter(job["outcome"] for job in found.values())
    assert set(outcomes) <= DEFINITE, outcomes
    assert outcomes["succeeded"] >= 20
    for job_id, count in device.received.items():
        assert count - device.redelivered[job_id] <= 1, found[job_id]
    for job in found.values():
        if job["outcome"] == "lost":
            assert job["error"]["code"] == "linkLost"


async def running(rest: Rest) -> list[str]:
    """The jobs that were published and not acknowledged, once there are twenty."""
    items = (await rest.get("/jobs", status="RUNNING", limit=100))["items"]
    return [job["id"] for job in items] if len(items) >= 20 else []


async def all_ended(rest: Rest) -> bool:
    return not (await rest.get("/jobs", status="PENDING,RUNNING"))["items"]
