"""The rules that docs/reference/mqtt.md gives for the devices of other makers, with what these really send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import tomllib
from collections.abc import AsyncIterator, Callable
from typing import Any

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt import publish
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.architecture.source import DOCS
from tests.services.mosquitto import Mosquitto
from tests.services.site import Rest, Serve, StartServe, eventually, log_has, new_name


def documented() -> list[dict[str, Any]]:
    """All rules of the page, in its order."""
    page = (DOCS / "reference" / "mqtt.md").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in page.split("```toml\n")[1:]]
    return [rule for block in blocks for rule in tomllib.loads(block)["ingest"]]


async def site(make_serve: StartServe) -> Serve:
    serve = make_serve(ingest=json.dumps(documented()))
    await serve.start()
    return serve


class Gadget:
    """A client as these makers have it: MQTT 3.1.1, with a retained last will."""

    def __init__(self, client: mqtt.Client) -> None:
        self._client = client

    def say(self, topic: str, payload: str, *, retain: bool = False, qos: int = 0) -> None:
        self._client.publish(topic, payload, qos, retain=retain)

    def lose_power(self) -> None:
        """Go without a word: the broker sends the last will."""
        sock = self._client.socket()
        assert sock is not None
        sock.shutdown(2)
        self._client.loop_stop()


@contextlib.asynccontextmanager
async def gadget(
    rest: Rest, root: str, will: tuple[str, str] | None = None
) -> AsyncIterator[tuple[dict[str, Any], Gadget]]:
    """An object that may write below a root, and its client, connected."""
    name = new_name("thing")
    write = {"read": [], "write": [f"{root}/#" for root in root.split()]}
    owner = await rest.thing(name=name, thing=name, external_id=f"own of {name}", mqtt=write)
    login = (await rest.call("POST", f"/objects/{owner['id']}/enrol")).body
    client = mqtt.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv311)
    client.username_pw_set(login["username"], login["password"])
    if will is not None:
        client.will_set(*will, 1, retain=True)
    connected = asyncio.Event()
    loop = asyncio.get_running_loop()
    client.on_connect = lambda *_: loop.call_soon_threadsafe(connected.set)
    await asyncio.to_thread(client.connect, "127.0.0.1", rest.serve.mqtt_port)
    client.loop_start()
    try:
        async with asyncio.timeout(10):
            await connected.wait()
        yield owner, Gadget(client)
    finally:
        client.disconnect()
        await asyncio.to_thread(client.loop_stop)


async def named(rest: Rest, external_id: str) -> str:
    """An object of another maker, by what that maker calls it; its path."""
    return f"/objects/{(await rest.thing(name=new_name('gadget'), external_id=external_id))['id']}"


async def has(rest: Rest, path: str, expected: dict[str, Any]) -> None:
    async def look() -> bool:
        return bool(await rest.get(f"{path}/properties") == expected)

    await eventually(look, 10)


async def becomes(rest: Rest, path: str, state: str) -> dict[str, Any]:
    async def look() -> Any:
        found = await rest.get(f"{path}/state")
        return found["state"] == state and found

    found: dict[str, Any] = await eventually(look, 10)
    return found


async def test_a_shelly_is_on_is_told_so_and_goes(make_serve: StartServe) -> None:
    serve, own = await site(make_serve), "shelly1pm-B929CC"
    root = f"shellies/{own}"
    async with Rest(serve) as rest, gadget(rest, "shellies", (f"{root}/online", "false")) as (_, shelly):
        path = await named(rest, own)
        await rest.call(
            "PUT",
            f"{path}/state-conditions",
            [{"state": "overloaded", "when": 'properties["relay/0/power"] > 2000'}],
        )
        shelly.say(f"{root}/online", "true", retain=True)
        shelly.say("shellies/announce", json.dumps({"id": own, "model": "SHSW-PM"}))
        said = {"relay/0": "on", "relay/0/power": "12.5", "relay/0/energy": "1234", "input/0": "0"}
        said |= {"temperature": "35.26", "overtemperature": "0"}
        for name, value in said.items():
            shelly.say(f"{root}/{name}", value)
        expected = {"relay/0": "on", "relay/0/power": 12.5, "relay/0/energy": 1234, "input/0": 0}
        expected |= {"temperature": 35.26, "overtemperature": 0}
        await has(rest, path, expected)
        assert (await becomes(rest, path, "working"))["reports"] == len(said)  # none came twice

        # What we tell it to do is no word of its own.
        switch = {"topic": f"{root}/relay/0/command", "message": "off"}
        operation = await rest.operation({"id": path.removeprefix("/objects/")}, "mqtt", parameters=switch)
        job = await rest.run({"id": path.removeprefix("/objects/")}, operation)
        assert job["outcome"] == "succeeded"
        shelly.say(f"{root}/relay/0/power", "2100")
        await becomes(rest, path, "overloaded")
        assert "relay/0/command" not in await rest.get(f"{path}/properties")
        history = await rest.get(f"{path}/properties/relay/0/power/history")
        assert [entry["value"] for entry in history["items"]] == [2100, 12.5]

        shelly.say(f"{root}/online", "perhaps", qos=1)
        await eventually(lambda: log_has(serve, "a status is true or false"), 10)
        shelly.lose_power()
        await becomes(rest, path, "down")


async def test_a_tasmota_measures_switches_and_goes(make_serve: StartServe) -> None:
    serve, own = await site(make_serve), "tasmota_4F3A"
    async with Rest(serve) as rest, gadget(rest, "tele stat", (f"tele/{own}/LWT", "Offline")) as (_, plug):
        path = await named(rest, own)
        await rest.call(
            "PUT", f"{path}/state-conditions", [{"state": "alarm", "when": "sensor_ENERGY.Power > 5"}]
        )
        energy = {"TotalStartTime": "2026-01-01T00:00:00", "Total": 1.234, "Power": 4, "Voltage": 230}
        state = {"Time": "2026-11-22T10:00:00", "Uptime": "0T00:10:11", "POWER": "OFF"}
        plug.say(f"tele/{own}/LWT", "Online", retain=True)
        plug.say(f"tele/{own}/STATE", json.dumps(state))
        plug.say(f"stat/{own}/RESULT", '{"POWER":"ON"}')
        plug.say(f"stat/{own}/POWER", "ON")
        for power in (4, 7):
            sensor = {"Time": "2026-11-22T10:00:00", "ENERGY": {**energy, "Power": power}}
            plug.say(f"tele/{own}/SENSOR", json.dumps(sensor))
        expected = {
            **state,
            "POWER": "ON",
            "RESULT": {"POWER": "ON"},
            "sensor_Time": "2026-11-22T10:00:00",
            "sensor_ENERGY": {**energy, "Power": 7},
        }
        await has(rest, path, expected)
        await becomes(rest, path, "alarm")
        plug.lose_power()
        await becomes(rest, path, "down")


@pytest.mark.parametrize("spelt", ["WORD", '{"state":"WORD"}'])
async def test_the_lamps_of_a_zigbee_gateway_come_and_go(make_serve: StartServe, spelt: str) -> None:
    serve = await site(make_serve)
    online, offline = (spelt.replace("WORD", word) for word in ("online", "offline"))
    will = ("zigbee2mqtt/bridge/state", offline)
    async with Rest(serve) as rest, gadget(rest, "zigbee2mqtt", will) as (_, gateway):
        bridge, lamp = await named(rest, "bridge"), await named(rest, "Kitchen lamp")
        gateway.say("zigbee2mqtt/bridge/state", online, retain=True)
        gateway.say("zigbee2mqtt/bridge/info", '{"version":"2.0.0"}')
        gateway.say("zigbee2mqtt/Kitchen lamp/availability", online, retain=True)
        gateway.say("zigbee2mqtt/Kitchen lamp", '{"state":"ON","brightness":254,"linkquality":90}')
        gateway.say("zigbee2mqtt/Kitchen lamp/set", '{"state":"OFF"}')
        await has(rest, lamp, {"state": "ON", "brightness": 254, "linkquality": 90})
        gateway.say("zigbee2mqtt/Kitchen lamp/availability", offline, retain=True)
        await becomes(rest, lamp, "down")
        gateway.say("zigbee2mqtt/Kitchen lamp/availability", online, retain=True)
        await becomes(rest, lamp, "working")
        gateway.lose_power()
        await becomes(rest, bridge, "down")


async def test_a_last_will_that_the_broker_had_kept_counts_where_nothing_was_heard_since(
    make_serve: StartServe, start_mosquitto: Callable[..., Mosquitto]
) -> None:
    broker = start_mosquitto()
    url = f"mqtt://127.0.0.1:{broker.port}"
    serve = make_serve(ingest=json.dumps(documented()), mqtt_url=url)

    async def keep(topic: str, payload: str) -> None:
        await asyncio.to_thread(publish.single, topic, payload, qos=1, retain=True, port=broker.port)

    await serve.start()
    async with Rest(serve) as rest:
        missed, answered = await named(rest, "missed"), await named(rest, "answered")
        await keep("tele/missed/LWT", "Online")
        await keep("tele/missed/STATE", '{"POWER":"ON"}')
        await becomes(rest, missed, "working")
        await keep("tele/answered/LWT", "Offline")
        await becomes(rest, answered, "down")
        await keep("tele/answered/STATE", '{"POWER":"ON"}')
        before = await becomes(rest, answered, "working")
        await serve.stop()
        await keep("tele/missed/LWT", "Offline")
        with contextlib.closing(sqlite3.connect(serve.data / "iotjobs.db")) as database:
            database.execute("DELETE FROM site WHERE name = 'mqtt_client_id'")  # so that its session is new
            database.commit()
        await serve.start()
        await becomes(rest, missed, "down")
        after = await becomes(rest, answered, "working")
        assert (after["state_change_id"], after["heard_at"]) == (
            before["state_change_id"],
            before["heard_at"],
        )


async def test_a_rule_that_can_never_be_reached_is_refused_at_the_start(make_serve: StartServe) -> None:
    serve = make_serve(ingest=json.dumps(list(reversed(documented()))))
    with pytest.raises(Exception, match="is never reached"):
        await serve.start()


async def test_what_a_rule_that_is_gone_had_subscribed_to_is_taken_back(
    make_serve: StartServe, start_mosquitto: Callable[..., Mosquitto]
) -> None:
    broker = start_mosquitto()
    serve = make_serve(mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
    for rule in ("shellies/{external_id}/+", "tele/{external_id}/SENSOR"):
        serve.settings["ingest"] = json.dumps([{"topic": rule}])
        await serve.start()
        async with Rest(serve) as rest:
            thing = await rest.thing(thing=new_name("thing"))
            for topic in ("shellies/nobody/x", "tele/nobody/SENSOR", f"iotjobs/{thing['thing']}/report"):
                await asyncio.to_thread(
                    publish.single, topic, "{}", 1, hostname="127.0.0.1", port=broker.port
                )

            async def heard(of: dict[str, Any] = thing, rest: Rest = rest) -> bool:
                return bool((await rest.get(f"/objects/{of['id']}/state"))["reports"])

            await eventually(heard, 10)
        await serve.stop()
    told = [line for line in serve.log.splitlines() if "no effect" in line]
    assert [sum(topic in line for line in told) for topic in ("shellies/nobody/x", "tele/nobody/SENSOR")] == [
        1,
        1,
    ]
