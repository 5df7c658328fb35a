"""Nobody listens for a while: what devices say then waits at the broker, and time waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from paho.mqtt import publish

from iotjobs import clock
from iotjobs.engine.listening import GRACE_S
from tests.services.mosquitto import Mosquitto
from tests.services.nodes import Nodes
from tests.services.postgres import PostgresServer
from tests.services.site import Rest, Serve, StartServe, eventually
from tests.services.wire import Wire

StartMosquitto = Callable[..., Mosquitto]
CANCELED = ("hold_canceled", "left alarm for working while nobody listened: perhaps before its time")


async def begun(
    make_serve: StartServe, start_mosquitto: StartMosquitto, database: str = "sqlite"
) -> tuple[Mosquitto, Serve]:
    """A broker, and a site that listens there."""
    broker = start_mosquitto()
    serve = make_serve(database, mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
    await serve.start()
    return broker, serve


async def say(port: int, topic: str, payload: str) -> None:
    """Publish as a device; returns once the broker keeps it."""
    await asyncio.to_thread(publish.single, topic, payload, qos=1, port=port)


async def asked(rest: Rest, within_s: float, thing: str = "valve", **settings: Any) -> dict[str, Any]:
    """A job whose device was asked, and has not answered yet."""
    owner = await rest.thing(thing=thing)
    message = {"topic": "x/valve", "message": "open", "answer": {"within_s": within_s}}
    job = await rest.execute(owner, await rest.operation(owner, "mqtt", parameters=message, **settings))
    return await rest.job_that(job["id"], lambda job: job["delivery"] == "acknowledged")


async def until(moment_ms: int) -> None:
    await eventually(lambda: clock.now_ms() > moment_ms, 60, 0.1)


async def test_an_answer_that_came_in_time_while_we_were_away_counts(
    make_serve: StartServe, start_mosquitto: StartMosquitto
) -> None:
    broker, serve = await begun(make_serve, start_mosquitto)
    async with Rest(serve) as rest:
        job = await asked(rest, 3)
        late_at = clock.now_ms() + 3000
    await serve.kill()
    await say(broker.port, f"iotjobs/valve/jobs/{job['id']}/answer", '{"ok": true}')
    await until(late_at)
    await serve.start()

    async with Rest(serve) as rest:
        found = await rest.ended(job["id"])
    assert (found["outcome"], found["error"]) == ("succeeded", None)
    assert [result["payload"] for result in found["results"]] == [{"ok": True}]


async def test_an_answer_that_never_comes_is_late_soon_after_we_are_back(
    make_serve: StartServe, start_mosquitto: StartMosquitto
) -> None:
    _broker, serve = await begun(make_serve, start_mosquitto)
    async with Rest(serve) as rest:
        job = await asked(rest, 1)
    await serve.restart()

    async with Rest(serve) as rest:
        found = await rest.ended(job["id"], 15)
    assert (found["outcome"], found["error"]["code"]) == ("timed_out", "noAnswer")


async def test_an_answer_that_came_while_the_broker_was_cut_off_counts(
    make_serve: StartServe, start_mosquitto: StartMosquitto
) -> None:
    broker = start_mosquitto()
    async with Wire(broker.port) as wire:
        serve = make_serve(mqtt_url=f"mqtt://127.0.0.1:{wire.port}")
        await serve.start()
        async with Rest(serve) as rest:
            job = await asked(rest, 4)
            late_at = clock.now_ms() + 4000
            wire.cut()
            await eventually(lambda: "mqtt connection ended" in serve.log)
            await say(broker.port, f"iotjobs/valve/jobs/{job['id']}/answer", '{"ok": true}')
            await until(late_at + 1000)
            wire.mend()

            found = await rest.ended(job["id"], 60)
    assert (found["outcome"], found["error"]) == ("succeeded", None)


async def test_a_device_that_reported_while_we_were_away_is_not_taken_for_silent(
    make_serve: StartServe, start_mosquitto: StartMosquitto
) -> None:
    broker, serve = await begun(make_serve, start_mosquitto)
    async with Rest(serve) as rest:
        pump = await rest.thing(name="pump", thing="pump", no_data_after_s=3)
        path = f"/objects/{pump['id']}"
        operation = await rest.operation(pump, "mqtt", topic="line/off", message="off")
        items = [{"name": "silent", "states": ["no_data"], "operation_id": operation["id"]}]
        assert (await rest.call("PUT", f"{path}/state-triggers", items)).status == 200
        await say(broker.port, "iotjobs/pump/report", '{"t": 1}')
        await eventually(lambda: rest.get(f"{path}/state"))
        began = clock.now_ms()
    await serve.kill()
    for second in range(1, 6):
        await until(began + second * 1000)
        await say(broker.port, "iotjobs/pump/report", f'{{"t": {second + 1}}}')
    await serve.start()

    async with Rest(serve) as rest:

        async def heard() -> bool:
            return bool((await rest.get(f"/objects/{pump['id']}"))["properties"].get("t") == 6)

        await eventually(heard)
        assert await rest.all_jobs(type="EXECUTE_LISTENER") == []

        async def silent() -> bool:
            return bool((await rest.get(f"{path}/state"))["state"] == "no_data")

        await eventually(silent, 15)  # now it says nothing
        changes = (await rest.get("/state-changes", entity_id=pump["id"]))["items"]
        assert [change["to"] for change in changes].count("no_data") == 1, changes


async def test_an_answer_that_came_while_the_listener_was_dead_counts(nodes: Nodes) -> None:
    other = await nodes.add("serve")
    async with Rest(other) as rest:
        await eventually(lambda: nodes.leads(rest, nodes.serve.pid, "ingest"), 10)
        job = await asked(rest, 4)
        late_at = clock.now_ms() + 4000
        await nodes.serve.kill()
        await say(nodes.broker_port, f"iotjobs/valve/jobs/{job['id']}/answer", '{"ok": true}')
        await until(late_at)
        await eventually(lambda: nodes.leads(rest, other.pid, "ingest"), 25)

        found = await rest.ended(job["id"], 20)
    assert (found["outcome"], found["error"]) == ("succeeded", None)


async def test_an_answer_that_waits_behind_a_locked_row_is_not_late(
    make_serve: StartServe, start_mosquitto: StartMosquitto, postgres_server: PostgresServer
) -> None:
    broker, serve = await begun(make_serve, start_mosquitto, "postgresql")
    database = serve.database_url.rpartition("/")[2]
    async with Rest(serve) as rest:
        await until(clock.now_ms() + int((GRACE_S + 1) * 1000))  # else they would wait for that
        locked, job = await asked(rest, 60, "locked"), await asked(rest, 4)
        lock = f"BEGIN; SELECT 1 FROM job WHERE id = '{locked['id']}' FOR UPDATE; SELECT pg_sleep(8); COMMIT"
        holding = asyncio.create_task(asyncio.to_thread(postgres_server.execute, lock, database=database))
        sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        await eventually(lambda: postgres_server.execute(sleeping) == "1")
        for thing, one in (("locked", locked), ("valve", job)):
            await say(broker.port, f"iotjobs/{thing}/jobs/{one['id']}/answer", '{"ok": true}')
        await holding

        for one in (locked, job):
            found = await rest.ended(one["id"], 20)
            assert (found["outcome"], found["error"]) == ("succeeded", None)


async def hot(
    rest: Rest, port: int, names: Sequence[str], alarm_after_s: float = 0, **trigger: Any
) -> dict[str, str]:
    """Objects that are in alarm by what they said, each with one trigger; their ids by their names."""
    made = {}
    for name in names:
        owner = await rest.thing(name=name, thing=name)
        made[name], path = owner["id"], f"/objects/{owner['id']}"
        operation = await rest.operation(owner, "mqtt", topic=f"line/{name}", message="off")
        conditions = [{"state": "alarm", "when": "t > 80", "hold_s": alarm_after_s}]
        assert (await rest.call("PUT", f"{path}/state-conditions", conditions)).status == 200
        items = [{"name": "hot", "states": ["alarm"], "operation_id": operation["id"], **trigger}]
        assert (await rest.call("PUT", f"{path}/state-triggers", items)).status == 200
        await say(port, f"iotjobs/{name}/report", '{"t": 90}')
        await eventually(partial(knows, rest, owner["id"], 90), 10)
    return made


async def knows(rest: Rest, owner_id: str, value: int) -> bool:
    """Whether a report with this value was taken."""
    return bool((await rest.get(f"/objects/{owner_id}"))["properties"].get("t") == value)


async def decided(rest: Rest, owner_id: str) -> list[tuple[str, str]]:
    """What its trigger decided about alarms, and why."""
    found = (await rest.get("/trigger-traces", owner_id=owner_id))["items"]
    return [(one["decision"], one["reason"]) for one in reversed(found) if one["decision"] != "not_in_states"]


async def left_and_stayed(rest: Rest, made: dict[str, str]) -> None:
    """Once somebody listens again: who has left its state does not fire, who has stayed there fires once."""

    async def over() -> bool:
        return [decision for decision, _ in await decided(rest, made["stayed"])] == ["fired"]

    await eventually(partial(knows, rest, made["left"], 1), 40)
    assert await decided(rest, made["left"]) == [CANCELED]
    await eventually(over, 20)
    assert await decided(rest, made["left"]) == [CANCELED]
    jobs = await rest.all_jobs(type="EXECUTE_LISTENER")
    assert [job["owner_id"] for job in jobs] == [made["stayed"]]


async def dies_until_holds_are_over(serve: Serve, port: int) -> None:
    """Be killed; both say that they are in alarm, then one leaves it, and we are back behind the holds of 3 s."""
    due_at = clock.now_ms() + 3000
    await serve.kill()
    for name, value in (("left", 91), ("stayed", 91), ("left", 1)):
        await say(port, f"iotjobs/{name}/report", f'{{"t": {value}}}')
    await until(due_at)
    await serve.start()


async def test_a_hold_that_was_left_while_we_were_away_is_canceled_and_another_fires_once(
    make_serve: StartServe, start_mosquitto: StartMosquitto
) -> None:
    broker, serve = await begun(make_serve, start_mosquitto)
    async with Rest(serve) as rest:
        made = await hot(rest, broker.port, ["left", "stayed"], hold_s=3)
    await dies_until_holds_are_over(serve, broker.port)

    async with Rest(serve) as rest:
        await left_and_stayed(rest, made)


async def test_a_condition_s_hold_that_was_broken_while_we_were_away_leads_to_nothing(
    make_serve: StartServe, start_mosquitto: StartMosquitto
) -> None:
    broker, serve = await begun(make_serve, start_mosquitto)
    async with Rest(serve) as rest:
        made = await hot(rest, broker.port, ["left", "stayed"], alarm_after_s=3)
    await dies_until_holds_are_over(serve, broker.port)

    async with Rest(serve) as rest:

        async def alarmed(name: str) -> int:
            changes = (await rest.get("/state-changes", entity_id=made[name]))["items"]
            return [change["to"] for change in changes].count("alarm")

        async def stayed() -> bool:
            return await alarmed("stayed") == 1

        await eventually(partial(knows, rest, made["left"], 1), 10)
        await eventually(stayed, 20)
        assert await alarmed("left") == 0
        await serve.restart()  # what was over before stays so
    async with Rest(serve) as rest:
        await say(broker.port, "iotjobs/stayed/report", '{"t": 92}')
        await eventually(partial(knows, rest, made["stayed"], 92), 10)
        assert (await alarmed("stayed"), await alarmed("left")) == (1, 0)
        jobs = await rest.all_jobs(type="EXECUTE_LISTENER")
        assert [job["owner_id"] for job in jobs] == [made["stayed"]]


async def test_holds_wait_while_the_broker_is_cut_off(
    make_serve: StartServe, start_mosquitto: StartMosquitto
) -> None:
    broker = start_mosquitto()
    async with Wire(broker.port) as wire:
        serve = make_serve(mqtt_url=f"mqtt://127.0.0.1:{wire.port}")
        await serve.start()
        async with Rest(serve) as rest:
            await until(clock.now_ms() + int((GRACE_S + 1) * 1000))  # else they would wait for that
            made = await hot(rest, broker.port, ["left", "stayed"], hold_s=5)
            due_at = clock.now_ms() + 5000
            wire.cut()
            await eventually(lambda: "mqtt connection ended" in serve.log)
            await say(broker.port, "iotjobs/left/report", '{"t": 1}')
            await until(due_at + 1000)
            assert [decision for decision, _ in await decided(rest, made["left"])] == ["held"]
            wire.mend()

            await left_and_stayed(rest, made)


async def test_repeats_wait_while_the_broker_is_cut_off(
    make_serve: StartServe, start_mosquitto: StartMosquitto
) -> None:
    broker = start_mosquitto()
    async with Wire(broker.port) as wire:
        serve = make_serve(mqtt_url=f"mqtt://127.0.0.1:{wire.port}")
        await serve.start()
        async with Rest(serve) as rest:
            await until(clock.now_ms() + int((GRACE_S + 1) * 1000))
            made = await hot(rest, broker.port, ["left"], repeat_s=5)
            due_at = clock.now_ms() + 5000
            wire.cut()
            await eventually(lambda: "mqtt connection ended" in serve.log)
            await say(broker.port, "iotjobs/left/report", '{"t": 1}')
            await until(due_at + 1000)
            wire.mend()

            await eventually(partial(knows, rest, made["left"], 1), 40)
            assert [decision for decision, _ in await decided(rest, made["left"])] == ["fired"]
            assert len(await rest.all_jobs(type="EXECUTE_LISTENER")) == 1


async def test_holds_wait_while_the_listener_is_dead(nodes: Nodes) -> None:
    other = await nodes.add("serve")
    async with Rest(other) as rest:
        await eventually(partial(nodes.leads, rest, nodes.serve.pid, "ingest"), 10)
        made = await hot(rest, nodes.broker_port, ["left", "stayed"], hold_s=4)
        due_at = clock.now_ms() + 4000
        await nodes.serve.kill()
        await say(nodes.broker_port, "iotjobs/left/report", '{"t": 1}')
        await until(due_at)
        await eventually(partial(nodes.leads, rest, other.pid, "ingest"), 25)

        await left_and_stayed(rest, made)
