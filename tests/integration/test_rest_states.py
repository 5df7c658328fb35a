"""Properties, states and triggers over REST and MQTT, on a running server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from paho.mqtt import publish

from tests.integration.test_device_messages import command, enrolled, login, say
from tests.services.mosquitto import Mosquitto
from tests.services.site import Rest, StartServe, eventually, log_has, new_name


async def alarming(
    rest: Rest, owner: dict[str, Any], folder: str = "objects", **trigger: Any
) -> dict[str, Any]:
    """Give an object conditions and one trigger on its alarm that sends it a command; the trigger."""
    operation = await command(rest, owner)
    path = f"/{folder}/{owner['id']}"
    put = await rest.call("PUT", f"{path}/state-conditions", [{"state": "alarm", "when": "temperature > 80"}])
    assert put.status == 200, put
    items = [{"name": "cool it", "states": ["alarm"], "operation_id": operation["id"], **trigger}]
    answer = await rest.call("PUT", f"{path}/state-triggers", {"items": items})
    assert answer.status == 200, answer
    made: dict[str, Any] = answer.body["items"][0]
    return made


async def traces(rest: Rest, owner: dict[str, Any], **query: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await rest.get("/trigger-traces", owner_id=owner["id"], **query))["items"]
    return found


async def test_a_device_that_gets_hot_is_told_so_and_every_step_is_on_record(rest: Rest) -> None:
    async with enrolled(rest) as (owner, device):
        trigger = await alarming(rest, owner)
        say(device, f"iotjobs/{owner['thing']}/report", b'{"temperature": 20}')
        say(device, f"iotjobs/{owner['thing']}/report", b'{"temperature": 90, "fan": "off"}')

        async def fired() -> Any:
            return [trace for trace in await traces(rest, owner) if trace["decision"] == "fired"]

        [trace] = await eventually(fired, 10)
        job = await rest.ended(trace["job_id"])
        await device.wait_for(lambda: device.received[job["id"]] == 1)

    assert (job["outcome"], job["cause"], job["type"]) == ("succeeded", "trigger", "EXECUTE_LISTENER")
    assert (job["user_id"], job["run_by"]) == (None, None)
    assert job["process_meta"] == {
        "triggerStates": ["alarm"],
        "state": "alarm",
        "from": "working",
        "trigger_id": trigger["id"],
        "state_change_id": trace["state_change_id"],
    }
    assert job["data"]["listenerName"] == "cool it"
    state = await rest.get(f"/objects/{owner['id']}/state")
    assert (state["state"], state["forced"], state["reports"]) == ("alarm", None, 2)
    assert (state["why"]["when"], state["why"]["values"]) == ("temperature > 80", {"temperature": 90})
    changes = (await rest.get("/state-changes", entity_id=owner["id"]))["items"]
    assert [(change["from"], change["to"]) for change in changes] == [
        ("working", "alarm"),
        ("created", "working"),
    ]
    assert changes[0]["id"] == trace["state_change_id"]
    assert [one["decision"] for one in await traces(rest, owner)] == ["fired", "not_in_states"]
    assert await rest.get(f"/objects/{owner['id']}/properties") == {"temperature": 90, "fan": "off"}
    history = (await rest.get(f"/objects/{owner['id']}/properties/temperature/history"))["items"]
    assert [(entry["value"], entry["by"]) for entry in history] == [(90, None), (20, None)]


async def test_a_shadow_s_update_is_a_report_and_a_last_will_is_down(rest: Rest) -> None:
    async with enrolled(rest) as (owner, device):
        await alarming(rest, owner)
        update = {"state": {"reported": {"temperature": 95}, "desired": {"temperature": 20}}}
        say(device, f"$aws/things/{owner['thing']}/shadow/update", json.dumps(update).encode())

        async def state() -> str:
            found: str = (await rest.get(f"/objects/{owner['id']}/state"))["state"]
            return found

        async def alarm() -> bool:
            return await state() == "alarm"

        await eventually(alarm, 10)
        say(device, f"iotjobs/{owner['thing']}/status", b"offline", retain=True)

        async def down() -> bool:
            return await state() == "down"

        await eventually(down, 10)
        say(device, f"iotjobs/{owner['thing']}/status", b"online", retain=True)
        await eventually(alarm, 10)


async def test_hold_and_silence_need_nobody_to_look(rest: Rest) -> None:
    owner = await rest.thing(no_data_after_s=1.5)
    operation = await rest.operation(owner, "mqtt", topic="a/b", message="x")
    path = f"/objects/{owner['id']}"
    conditions = [{"state": "alarm", "when": "temperature > 80", "hold_s": 0.3}]
    assert (await rest.call("PUT", f"{path}/state-conditions", conditions)).status == 200
    items = [{"name": "t", "states": ["alarm"], "operation_id": operation["id"], "hold_s": 0.3}]
    assert (await rest.call("PUT", f"{path}/state-triggers", items)).status == 200
    assert (await rest.call("POST", f"{path}/report", {"temperature": 90})).status == 200

    async def fired() -> Any:
        return [one for one in await traces(rest, owner) if one["decision"] == "fired"]

    await eventually(fired, 10)

    async def silent() -> bool:
        return bool((await rest.get(f"{path}/state"))["state"] == "no_data")

    await eventually(silent, 10)
    changes = (await rest.get("/state-changes", entity_id=owner["id"]))["items"]
    assert [change["to"] for change in reversed(changes)] == ["working", "alarm", "no_data"]


async def test_a_report_over_rest_is_answered_with_all_properties_and_once(rest: Rest) -> None:
    owner = await rest.thing(properties={"unit": "C"})
    path = f"/objects/{owner['id']}/report"
    first = await rest.call("POST", path, {"temperature": 1}, Idempotency_Key="r-1")
    assert (first.status, first.body) == (200, {"unit": "C", "temperature": 1})
    await rest.call("POST", path, {"temperature": 2, "_id": "r-2"})
    repeated = await rest.call("POST", path, {"temperature": 1}, Idempotency_Key="r-1")
    assert repeated.body["temperature"] == 2
    state = await rest.get(f"/objects/{owner['id']}/state")
    assert (state["reports"], state["repeated"], state["refused"], state["last_refusal"]) == (2, 1, 0, None)
    await rest.refused("POST", path, [1], status=400, code="badRequest")
    target = (await rest.thing())["id"]
    other = await rest.make("/links", name=new_name("link"), source=owner["id"], target=target)
    for method, where in (
        ("POST", path),
        ("PATCH", f"/objects/{owner['id']}/properties"),
        ("POST", f"/links/{other['id']}/report"),
        ("PATCH", f"/links/{other['id']}/properties"),
    ):
        twice = b'{"door": 1, "o": {"a": 1, "a": 2}}'
        problem = await rest.refused(method, where, content=twice, status=400, code="badRequest")
        assert "the name a stands twice" in problem["detail"]
    assert (await rest.get(f"/objects/{owner['id']}/properties"))["temperature"] == 2
    await rest.refused("POST", path, {"x" * 201: 1}, status=400, code="badRequest")
    await rest.refused("POST", "/objects/nothing/report", {}, status=404, code="notFound")


@pytest.mark.check(43)
async def test_a_loop_over_reports_by_rest_is_stopped_at_the_fifth(rest: Rest) -> None:
    owner = await rest.thing()
    operation = await rest.operation(owner, "mqtt", topic="a/b", message="{{jobId}}")
    path = f"/objects/{owner['id']}"
    conditions = [{"state": "alarm", "when": "temperature > 80"}]
    assert (await rest.call("PUT", f"{path}/state-conditions", conditions)).status == 200
    items = [{"name": "t", "states": ["alarm"], "operation_id": operation["id"]}]
    assert (await rest.call("PUT", f"{path}/state-triggers", items)).status == 200

    await rest.call("POST", f"{path}/report", {"temperature": 90})
    for number in range(7):  # as a device, or a script of the job, that tells of its own doing
        job_id = (await traces(rest, owner, decision="fired"))[0]["job_id"]
        for temperature in (20, 90):
            report = {"temperature": temperature}
            if number % 2:
                answer = await rest.call("POST", f"{path}/report", report, Job_Id=job_id)
            else:
                answer = await rest.call("POST", f"{path}/report", {**report, "_job_id": job_id})
            assert (answer.status, answer.body) == (200, report)

    decisions = [one["decision"] for one in await traces(rest, owner)]
    assert (decisions.count("fired"), decisions.count("loop_guard")) == (5, 3)
    await rest.refused("POST", f"{path}/report", {"_job_id": 7}, status=400, code="badRequest")
    writes = (("POST", f"{path}/report"), ("PATCH", f"{path}/properties"), ("PATCH", path))
    for (method, where), none in product(writes, ("nope", "9" * 18, "f" * 32)):
        body = {"properties": {"temperature": 1}} if where == path else {"temperature": 1}
        problem = await rest.refused(method, where, body, status=400, code="badRequest", Job_Id=none)
        assert (problem["errors"][0]["field"], none in problem["detail"]) == ("Job-Id", True)
    seq = (await rest.get(f"/jobs/{job_id}"))["seq"]
    for temperature in (20, 90):
        report = {"temperature": temperature}
        assert (await rest.call("POST", f"{path}/report", report, Job_Id=str(seq))).status == 200
    assert (await traces(rest, owner))[0]["decision"] == "loop_guard"
    await rest.refused("PATCH", f"{path}/properties", {"_job_id": "x"}, status=400, code="badRequest")


@pytest.mark.check(43)
@pytest.mark.parametrize("way", ["properties", "definition", "link", "forced"])
async def test_a_loop_over_what_a_script_writes_is_stopped_whichever_way_it_writes(
    rest: Rest, way: str
) -> None:
    owner = await rest.thing()
    path, entity, folder, when = f"/objects/{owner['id']}", owner, "objects", "t > 80"
    if way == "link":
        entity = await rest.make(
            "/links", name=new_name("link"), source=owner["id"], target=(await rest.thing())["id"]
        )
        folder, when = "links", "source.t > 80"
    operation = await rest.operation(entity, "mqtt", owners=folder, topic="a/b", message="x")
    of_entity = f"/{folder}/{entity['id']}"
    await rest.call("PUT", f"{of_entity}/state-conditions", [{"state": "alarm", "when": when}])
    items = [{"name": "t", "states": ["alarm", "working"], "operation_id": operation["id"]}]
    assert (await rest.call("PUT", f"{of_entity}/state-triggers", items)).status == 200
    assert (await rest.call("POST", f"{path}/report", {"t": 20})).status == 200

    for number in range(10):
        values, hot = {"t": 20 if number % 2 else 90}, number % 2 == 0
        job_id = (await traces(rest, entity, decision="fired"))[0]["job_id"]
        if way == "properties":
            answer = await rest.call("PATCH", f"{path}/properties", values, Job_Id=job_id)
        elif way != "forced":
            answer = await rest.call("PATCH", path, {"properties": values}, Job_Id=job_id)
        elif hot:
            forced = {"state": "alarm", "reason": "x"}
            answer = await rest.call("PUT", f"{path}/forced-state", forced, Job_Id=job_id)
        else:
            answer = await rest.call("DELETE", f"{path}/forced-state", Job_Id=job_id)
        assert answer.status == 200, answer

    decisions = [one["decision"] for one in await traces(rest, entity)]
    assert (decisions.count("fired"), decisions.count("loop_guard")) == (5, 6)


@pytest.mark.check(43)
async def test_a_write_of_properties_says_which_job_does_it_and_what_it_runs_says_so_too(rest: Rest) -> None:
    owner = await rest.thing(property_types={"setpoint": "readwrite"})
    path = f"/objects/{owner['id']}"
    operation = await rest.operation(owner, "mqtt", topic="a/b", message="{{jobId}}")
    parameters = {"topic": "things/set", "message": "x"}
    await rest.make(
        f"{path}/operations", name="push", type="mqtt", run_on_property_change=True, parameters=parameters
    )
    await rest.call("PUT", f"{path}/state-conditions", [{"state": "alarm", "when": "temperature > 80"}])
    items = [{"name": "t", "states": ["alarm"], "operation_id": operation["id"]}]
    assert (await rest.call("PUT", f"{path}/state-triggers", items)).status == 200
    await rest.call("POST", f"{path}/report", {"temperature": 90})
    job_id = (await traces(rest, owner, decision="fired"))[0]["job_id"]

    for where, body in ((f"{path}/properties", {"setpoint": 1}), (path, {"properties": {"setpoint": 2}})):
        assert (await rest.call("PATCH", where, body, Job_Id=job_id)).status == 200
    listed = (await rest.get(f"{path}/jobs"))["items"]
    whole = [await rest.get(f"/jobs/{job['id']}") for job in listed if job["cause"] == "property"]
    assert [job["process_meta"] for job in whole] == [{"triggers_before": 1}] * 2


async def test_people_write_properties_and_a_readwrite_one_runs_what_asks_for_it(rest: Rest) -> None:
    owner = await rest.thing(property_types={"setpoint": "readwrite", "serial": "readonly"})
    path = f"/objects/{owner['id']}"
    given = {"name": "push", "type": "mqtt", "run_on_property_change": True}
    message = {"topic": "things/set", "message": {"to": "{{properties.setpoint}}"}}
    await rest.make(f"{path}/operations", **given, parameters=message)

    answer = await rest.call("PATCH", f"{path}/properties", {"setpoint": 21.5})
    assert (answer.status, answer.body) == (200, {"setpoint": 21.5})
    [job] = (await rest.get(f"{path}/jobs"))["items"]
    done = await rest.ended(job["id"])
    assert (done["cause"], done["type"], done["process_meta"]) == ("property", "EXECUTE_LISTENER", None)
    assert done["description"]["message"] == '{"to":21.5}'
    assert done["run_by"]["name"] == "admin"

    problem = await rest.refused(
        "PATCH", f"{path}/properties", {"serial": "x"}, status=400, code="badRequest"
    )
    assert problem["errors"][0]["field"] == "serial"
    _, token = await rest.user("viewer")
    async with Rest(rest.serve, token) as viewer:
        await viewer.refused("PATCH", f"{path}/properties", {"a": 1}, status=403, code="notAllowed")
        await viewer.refused("POST", f"{path}/report", {"a": 1}, status=403, code="notAllowed")
        assert (await viewer.get(f"{path}/properties"))["setpoint"] == 21.5


async def test_properties_set_with_the_definition_have_their_history_and_what_follows(rest: Rest) -> None:
    types = {"setpoint": "readwrite", "serial": "readonly"}
    class_ = await rest.make("/classes", name=new_name("class"), properties={"limit": 5})
    owner = await rest.thing(
        class_id=class_["id"], property_types=types, properties={"serial": "a", "limit": 9}
    )
    path = f"/objects/{owner['id']}"
    await rest.call("PUT", f"{path}/state-conditions", [{"state": "alarm", "when": "setpoint > limit"}])
    message = {"topic": "things/set", "message": {"to": "{{properties.setpoint}}"}}
    await rest.make(
        f"{path}/operations", name="push", type="mqtt", run_on_property_change=True, parameters=message
    )

    async def state() -> str:
        found: str = (await rest.get(f"{path}/state"))["state"]
        return found

    changed = await rest.call("PATCH", path, {"properties": {"setpoint": 7}, "tags": ["x"]})
    assert (changed.status, changed.body["version"]) == (200, owner["version"] + 1)
    assert await state() == "created"
    [job] = (await rest.get(f"{path}/jobs"))["items"]
    assert (job["cause"], job["run_by"]["name"]) == ("property", "admin")
    gone = await rest.call("PATCH", path, {"properties": {"limit": None}})
    assert (gone.body["properties"], await state()) == ({"serial": "a", "setpoint": 7}, "alarm")

    async def history(name: str) -> list[tuple[Any, bool]]:
        found = (await rest.get(f"{path}/properties/{name}/history"))["items"]
        return [(entry["value"], entry["by"] is not None) for entry in found]

    assert await history("setpoint") == [(7, True)]
    assert await history("limit") == [(5, True), (9, True)]
    for properties, field in (({"serial": "b"}, "serial"), ({"_id": "r"}, "_id")):
        for where, body in ((path, {"properties": properties}), (f"{path}/properties", properties)):
            problem = await rest.refused("PATCH", where, body, status=400, code="badRequest")
            assert problem["errors"][0]["field"] == field
    again = await rest.call("PATCH", path, {"properties": {"serial": "a", "setpoint": 7}})
    assert (again.body["properties"], await history("serial")) == (
        {"serial": "a", "setpoint": 7},
        [("a", True)],
    )
    assert len((await rest.get(f"{path}/jobs"))["items"]) == 1
    assert (await rest.call("PATCH", path, {"properties": {"serial": None}})).status == 200


async def test_properties_set_with_a_link_s_definition_decide_its_state_at_once(rest: Rest) -> None:
    source, target = await rest.thing(), await rest.thing()
    link = await rest.make("/links", name=new_name("link"), source=source["id"], target=target["id"])
    path = f"/links/{link['id']}"
    conditions = [{"state": "alarm", "when": "source.flow > limit"}]
    await rest.call("PUT", f"{path}/state-conditions", conditions)
    assert (await rest.call("PATCH", path, {"properties": {"limit": 5}})).status == 200
    assert (await rest.call("PATCH", f"/objects/{source['id']}", {"properties": {"flow": 6}})).status == 200

    changes = (await rest.get("/state-changes", entity_id=link["id"]))["items"]
    assert changes[0]["to"] == "alarm"
    assert changes[0]["why"]["values"] == {"source.flow": 6, "limit": 5}
    assert len((await rest.get(f"{path}/properties/limit/history"))["items"]) == 1


async def test_the_state_is_answered_with_what_is_true_now_and_what_cannot_be_judged(rest: Rest) -> None:
    owner, other = await rest.thing(no_data_after_s=3600), await rest.thing()
    link = await rest.make("/links", name=new_name("link"), source=owner["id"], target=other["id"])
    for folder, entity, value in (("objects", owner, "temperature"), ("links", link, "source.temperature")):
        conditions = [{"state": "alarm", "when": f"{value} > 80"}]
        await rest.call("PUT", f"/{folder}/{entity['id']}/state-conditions", conditions)
    assert (await rest.get(f"/objects/{owner['id']}/state"))["now"] == {
        "state": "created",
        "why": {"by": "default"},
        "waiting": [],
        "problems": [{"when": "temperature > 80", "problem": "there is no property temperature"}],
    }
    path = f"/objects/{owner['id']}/report"
    await rest.call("POST", path, {"temperature": 90})
    await rest.call("POST", path, {"temperature": 95})
    for folder, entity, value in (("objects", owner, "temperature"), ("links", link, "source.temperature")):
        state = await rest.get(f"/{folder}/{entity['id']}/state")
        assert (state["state"], state["why"]["values"]) == ("alarm", {value: 90})
        assert (state["now"]["state"], state["now"]["why"]["values"]) == ("alarm", {value: 95})
        assert state["now"]["problems"] == []
    await rest.call("POST", path, {"temperature": 20})
    await rest.call("POST", path, {"temperature": "hot"})  # no change: `why` tells nothing of it
    state = await rest.get(f"/objects/{owner['id']}/state")
    assert (state["state"], state["why"]) == ("working", {"by": "default"})
    said = "temperature is a text and 80 is a number: > compares numbers, or texts"
    assert state["now"]["problems"] == [{"when": "temperature > 80", "problem": said}]


async def test_a_condition_that_has_to_hold_on_is_told_with_when_it_counts(rest: Rest) -> None:
    owner = await rest.thing()
    path = f"/objects/{owner['id']}"
    given = [{"state": "alarm", "when": "temperature > 80", "hold_s": 300}]
    await rest.call("PUT", f"{path}/state-conditions", given)
    await rest.call("POST", f"{path}/report", {"temperature": 90})
    state = await rest.get(f"{path}/state")
    since = state["heard_at"]
    counts_at = datetime.fromisoformat(since) + timedelta(seconds=300)
    [waiting] = state["now"]["waiting"]
    assert (state["state"], state["now"]["why"]) == ("working", {"by": "default"})
    assert datetime.fromisoformat(waiting.pop("counts_at")) == counts_at
    assert waiting == {"state": "alarm", "when": "temperature > 80", "waits_for": "hold", "since": since}


async def test_a_state_is_forced_with_a_reason_and_taken_back(rest: Rest) -> None:
    owner = await rest.thing()
    path = f"/objects/{owner['id']}"
    assert (await rest.get(f"{path}/state"))["state"] == "created"
    answer = await rest.call("PUT", f"{path}/forced-state", {"state": "disabled", "reason": "service"})
    assert (answer.status, answer.body["state"], answer.body["forced"]["reason"]) == (
        200,
        "disabled",
        "service",
    )
    user = {"id": answer.body["forced"]["user"]["id"], "name": "admin"}
    assert len(user["id"]) == 32
    assert set(answer.body["forced"]) == {"state", "user", "reason", "since", "until"}
    [change] = (await rest.get("/state-changes", entity_id=owner["id"]))["items"]
    for told in (answer.body["forced"], answer.body["why"], answer.body["now"]["why"], change["why"]):
        assert told["user"] == user
    assert answer.body["why"]["by"] == "forced"
    back = await rest.call("DELETE", f"{path}/forced-state")
    assert (back.status, back.body["state"], back.body["forced"]) == (200, "working", None)
    for body in (
        {"state": "nosuch", "reason": "x"},
        {"state": "alarm"},
        {"state": "alarm", "reason": "x", "until": "2001-01-01T00:00:00Z"},
        {"state": "alarm", "reason": "x", "until": "tomorrow"},
    ):
        await rest.refused("PUT", f"{path}/forced-state", body, status=400, code="badRequest")


async def test_until_when_a_state_is_forced_is_told_as_every_other_moment(rest: Rest) -> None:
    owner = await rest.thing()
    path, until = f"/objects/{owner['id']}", "2126-01-02T03:04:05.678Z"
    given = {"state": "disabled", "reason": "service", "until": until}
    state = (await rest.call("PUT", f"{path}/forced-state", given)).body
    changes = await rest.get(f"/state-changes?entity_id={owner['id']}")
    whys = [state["why"], state["now"]["why"], changes["items"][0]["why"]]
    assert [why["until"] for why in whys] == [state["forced"]["until"]] * 3 == [until] * 3
    endless = (await rest.call("PUT", f"{path}/forced-state", {**given, "until": None})).body
    assert endless["now"]["why"]["until"] is None


async def test_conditions_of_a_class_are_inherited_live_and_overridden(rest: Rest) -> None:
    class_ = await rest.make("/classes", name=new_name("class"))
    owner = await rest.thing(class_id=class_["id"], properties={"temperature": 90})
    path = f"/objects/{owner['id']}"
    hot = [{"state": "alarm", "when": "temperature > 80", "description": "too hot"}]
    put = await rest.call("PUT", f"/classes/{class_['id']}/state-conditions", hot)
    assert put.body["items"][0]["id"]

    async def state_is(name: str) -> bool:
        return bool((await rest.get(f"{path}/state"))["state"] == name)

    await eventually(lambda: state_is("alarm"), 10)
    assert (await rest.get(f"{path}/state-conditions"))["items"] == put.body["items"]
    assert (await rest.call("PUT", f"{path}/state-conditions", [])).status == 200
    await eventually(lambda: state_is("working"), 10)
    assert (await rest.call("DELETE", f"{path}/state-conditions")).status == 204
    await eventually(lambda: state_is("alarm"), 10)
    await rest.call("PATCH", f"/classes/{class_['id']}", {"properties": {"temperature": 10}})
    await rest.call("PATCH", path, {"properties": {"temperature": None}})
    await eventually(lambda: state_is("working"), 10)


@pytest.mark.parametrize(
    ("conditions", "field", "said"),
    [
        ([{"state": "alarm", "when": "temperature >"}], "items[0].when", "line 1, column 14"),
        ([{"state": "alarm", "when": "a > 1 && size(tags)"}], "items[0].when", "line 1, column 10"),
        (
            [{"state": "alarm", "when": "source.a > 1"}],
            "items[0].when",
            "only links have one (line 1, column 1)",
        ),
        ([{"state": "nosuch", "when": "a == 1"}], "items[0].state", "POST /states"),
        ([{"state": "alarm", "when": "a", "hold_s": -1}], "items[0].hold_s", "0"),
        ([{"state": "alarm", "when": "a", "period": {"zone": "Mars"}}], "items[0].period.zone", "IANA"),
        ([{"state": "alarm", "when": "a", "period": {"from": "25:00"}}], "items[0].period.from", "HH:MM"),
        ([{"id": "x", "state": "alarm", "when": "a"}] * 2, "items[1].id", "twice"),
    ],
)
async def test_a_condition_that_cannot_be_is_refused_with_its_place(
    rest: Rest, conditions: list[dict[str, Any]], field: str, said: str
) -> None:
    owner = await rest.thing()
    path = f"/objects/{owner['id']}/state-conditions"
    problem = await rest.refused("PUT", path, conditions, status=400, code="badRequest")
    assert (problem["errors"][0]["field"], said in problem["errors"][0]["message"]) == (field, True), problem
    assert (await rest.get(path))["items"] == []
    proposed = {"owner_kind": "object", "owner_id": owner["id"], "items": conditions}
    problem = await rest.refused("POST", "/state-conditions/replay", proposed, status=400, code="badRequest")
    assert (problem["errors"][0]["field"], said in problem["errors"][0]["message"]) == (field, True), problem


async def test_links_and_classes_may_read_their_ends(rest: Rest) -> None:
    one, other = await rest.thing(), await rest.thing()
    link = await rest.make("/links", name=new_name("link"), source=one["id"], target=other["id"])
    class_ = await rest.make("/classes", name=new_name("class"))
    for path in (f"/links/{link['id']}", f"/classes/{class_['id']}"):
        items = [{"state": "alarm", "when": "source.a > target.a"}]
        assert (await rest.call("PUT", f"{path}/state-conditions", items)).status == 200


async def test_a_trigger_starts_operations_of_its_owner_only(rest: Rest) -> None:
    owner, other = await rest.thing(), await rest.thing()
    operation = await rest.operation(other, "mqtt", topic="a", message="b")
    path = f"/objects/{owner['id']}/state-triggers"
    item = {"name": "t", "states": ["alarm"], "operation_id": operation["id"]}
    problem = await rest.refused("PUT", path, [item], status=400, code="badRequest")
    assert problem["errors"][0]["field"] == "items[0].operation_id"
    for wrong in ({"states": []}, {"states": ["nosuch"]}, {"repeat_s": 0}, {"unknown": 1}):
        await rest.refused("PUT", path, [{**item, **wrong}], status=400, code="badRequest")


async def test_a_report_cannot_lock_its_object_s_definition(rest: Rest) -> None:
    owner = await rest.thing()
    path = f"/objects/{owner['id']}"
    for name in ("a\nb", " ", "a\u2028"):
        await rest.refused("POST", f"{path}/report", {name: 1, "t": 1}, status=400, code="badRequest")
        await rest.refused("PATCH", f"{path}/properties", {name: 1}, status=400, code="badRequest")

    assert (await rest.call("PATCH", path, {"tags": ["x"]})).status == 200
    assert await rest.get(f"{path}/properties") == {}


async def test_triggers_are_put_back_as_they_were_read(rest: Rest) -> None:
    kind = await rest.make("/classes", name=new_name("class"))
    owner = await rest.thing(class_id=kind["id"])
    of_class = await rest.operation(kind, "mqtt", owners="classes", topic="a", message="b")
    own = await rest.operation(owner, "mqtt", topic="a", message="b")
    for path, operation in ((f"/classes/{kind['id']}", of_class), (f"/objects/{owner['id']}", own)):
        item = {"name": "t", "states": ["alarm"], "operation_id": operation["id"]}
        assert (await rest.call("PUT", f"{path}/state-triggers", [item])).status == 200

    path = f"/objects/{owner['id']}/state-triggers"
    read = (await rest.get(path))["items"]
    assert [trigger["owner_kind"] for trigger in read] == ["object", "class"]
    assert (await rest.call("PUT", path, read)).body["items"] == read[:1]
    assert (await rest.get(path))["items"] == read

    other = await rest.thing()
    await rest.refused("PUT", f"/objects/{other['id']}/state-triggers", read, status=400, code="badRequest")


async def test_states_of_the_site_s_own(rest: Rest) -> None:
    name = new_name("state")
    made = await rest.make("/states", name=name, priority=55)
    listed = (await rest.get("/states"))["items"]
    assert [state["name"] for state in listed][:3] == ["created", "disabled", "working"]
    assert made["name"] in [state["name"] for state in listed]
    await rest.refused("POST", "/states", {"name": name}, status=409, code="conflict")
    await rest.refused("POST", "/states", {"name": "alarm"}, status=409, code="conflict")
    path = f"/states/{made['id']}"
    assert (await rest.call("PUT", path, {"name": name, "priority": 5})).body["priority"] == 5
    await rest.refused("PUT", path, {"name": "other", "priority": 5}, status=400, code="badRequest")
    await rest.refused("PUT", path, {"name": name}, status=400, code="badRequest")  # it would be 10 again
    assert (await rest.call("PATCH", path, {"name": name})).body["priority"] == 5
    assert (await rest.call("PATCH", path, {"priority": 7})).body["priority"] == 7
    await rest.refused("PATCH", path, {"name": "other"}, status=400, code="badRequest")
    await rest.refused("PATCH", path, {"priority": "high"}, status=400, code="badRequest")
    assert (await rest.get(path))["priority"] == 7
    for method, body in (("GET", None), ("PATCH", {"priority": 1}), ("DELETE", None)):
        problem = await rest.refused(method, "/states/alarm", body, status=404, code="notFound")
        assert "built in" in problem["detail"]

    owner = await rest.thing()
    conditions = f"/objects/{owner['id']}/state-conditions"
    await rest.call("PUT", conditions, [{"state": name, "when": "a == 1"}])
    await rest.refused("DELETE", path, status=409, code="conflict")
    await rest.call("PUT", conditions, [])
    assert (await rest.call("DELETE", path)).status == 204


async def test_a_state_is_changed_as_it_was_seen_or_not_at_all(rest: Rest) -> None:
    name = new_name("state")
    made = await rest.make("/states", name=name, priority=55)
    path, body = f"/states/{made['id']}", {"name": name, "priority": 5}
    seen = (await rest.call("GET", path)).headers["etag"]
    assert seen == f'"{made["version"]}"'
    wrong: dict[str, Any] = {"status": 412, "code": "preconditionFailed"}
    await rest.refused("PUT", path, body, If_Match='"99"', **wrong)
    changed = await rest.call("PUT", path, body, If_Match=seen)
    assert (changed.status, changed.headers["etag"]) == (200, '"2"')
    await rest.refused("PUT", path, body, If_Match=seen, **wrong)
    await rest.refused("PATCH", path, {"priority": 6}, If_Match=seen, **wrong)
    await rest.refused("DELETE", path, If_Match=seen, **wrong)
    assert (await rest.get(path))["priority"] == 5
    assert (await rest.call("DELETE", path, If_Match=changed.headers["etag"])).status == 204


@pytest.mark.parametrize("what", ["state-conditions", "state-triggers"])
@pytest.mark.parametrize("folder", ["classes", "objects", "links"])
async def test_a_list_of_rules_is_put_over_the_one_that_was_seen_or_not_at_all(
    rest: Rest, folder: str, what: str
) -> None:
    ends = {end: (await rest.thing())["id"] for end in ("source", "target")} if folder == "links" else {}
    owner = await rest.make(f"/{folder}", name=new_name("owner"), **ends)
    operation = await rest.operation(owner, "mqtt", owners=folder, topic="a/b", message="x")
    path = f"/{folder}/{owner['id']}/{what}"
    items: list[dict[str, Any]] = [{"state": "alarm", "when": "t > 80"}]
    if what == "state-triggers":
        items = [{"name": "t", "states": ["alarm"], "operation_id": operation["id"]}]
    wrong: dict[str, Any] = {"status": 412, "code": "preconditionFailed"}

    seen = (await rest.call("GET", path)).headers["etag"]
    await rest.refused("PUT", path, items, If_Match='"99"', **wrong)
    put = await rest.call("PUT", path, items, If_Match=seen)
    assert (put.status, len(put.body["items"])) == (200, 1)
    await rest.refused("PUT", path, [], If_Match=seen, **wrong)
    read = await rest.call("GET", path)
    assert (read.body["items"], read.headers["etag"]) == (put.body["items"], put.headers["etag"])
    if what == "state-conditions":
        await rest.refused("DELETE", path, If_Match=seen, **wrong)
        assert (await rest.call("DELETE", path, If_Match=read.headers["etag"])).status == 204
        # Also where it is there again as it was.
        assert (await rest.call("PUT", path, items)).status == 200
        await rest.refused("PUT", path, [], If_Match=read.headers["etag"], **wrong)
    # The owner's own version is another matter.
    patched = await rest.call("PATCH", f"/{folder}/{owner['id']}", {"tags": ["x"]}, If_Match='"1"')
    assert (patched.status, patched.body["version"]) == (200, 2)


async def test_the_site_pauses_all_triggers_and_tells_who_did_it_and_since_when(rest: Rest) -> None:
    owner = await rest.thing()
    await alarming(rest, {**owner, "thing": "x"})
    before = datetime.now(UTC)
    paused = (await rest.call("PUT", "/site", {"triggers": "paused"})).body
    try:
        assert (paused["triggers"], paused["paused"]["by"]["name"]) == ("paused", "admin")
        since = datetime.fromisoformat(paused["paused"]["since"])
        assert abs(since - before) < timedelta(minutes=1)
        user, token = await rest.user("admin")
        async with Rest(rest.serve, token) as other:  # who pauses what is paused already changes nothing
            again = (await other.call("PUT", "/site", {"triggers": "paused"})).body
            assert again["paused"] == paused["paused"]
            await rest.call("POST", f"/objects/{owner['id']}/report", {"temperature": 90})
            assert [trace["decision"] for trace in await traces(rest, owner)] == ["paused"]
            opened = (await other.call("PUT", "/site", {"triggers": "open"})).body
            assert (opened["triggers"], opened["paused"]) == ("open", None)
            by = (await other.call("PUT", "/site", {"triggers": "paused"})).body["paused"]["by"]
            assert by == {"id": user["id"], "name": user["login"]}
    finally:
        assert (await rest.call("PUT", "/site", {"triggers": "open"})).body["triggers"] == "open"


async def test_all_triggers_are_listed_and_those_that_the_loop_guard_stopped(rest: Rest) -> None:
    owner = await rest.thing()
    made = [await alarming(rest, await rest.thing()) for _ in range(3)]
    operation = await rest.operation(owner, "mqtt", topic="a/b", message="{{jobId}}")
    path = f"/objects/{owner['id']}"
    await rest.call("PUT", f"{path}/state-conditions", [{"state": "alarm", "when": "temperature > 80"}])
    items = [{"name": "loops", "states": ["alarm"], "operation_id": operation["id"]}]
    [trigger] = (await rest.call("PUT", f"{path}/state-triggers", items)).body["items"]

    async def listed(**query: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        page: dict[str, Any] = {"next": None}
        while not found or page["next"]:
            more = {"cursor": page["next"]} if page["next"] else {}
            page = await rest.get("/triggers", limit=2, **query, **more)
            assert len(page["items"]) <= 2
            found += page["items"]
            if not page["items"]:
                break
        return found

    everything = await listed()
    assert [one["id"] for one in everything] == sorted({one["id"] for one in everything})
    assert {one["id"] for one in everything} >= {trigger["id"], *(one["id"] for one in made)}
    assert trigger in everything
    assert trigger["id"] not in [one["id"] for one in await listed(broken="true")]

    job_id = None
    for _ in range(6):
        for temperature in (20, 90):
            report = {"temperature": temperature, **({"_job_id": job_id} if job_id else {})}
            assert (await rest.call("POST", f"{path}/report", report)).status == 200
        job_id = (await traces(rest, owner, decision="fired"))[0]["job_id"]
    broken = next(one for one in await listed(broken="true") if one["id"] == trigger["id"])
    assert broken["broken_at"]
    assert trigger["id"] not in [one["id"] for one in await listed(broken="false")]
    reset = await rest.call("POST", f"/triggers/{trigger['id']}/reset")
    assert (reset.status, reset.body) == (200, trigger)
    assert trigger["id"] not in [one["id"] for one in await listed(broken="true")]
    await rest.refused("GET", "/triggers", query={"owner": "x"}, status=400, code="badRequest")
    await rest.refused("GET", "/triggers", query={"broken": "perhaps"}, status=400, code="badRequest")


async def test_a_link_has_states_and_triggers_of_its_own(rest: Rest) -> None:
    source, target = await rest.thing(), await rest.thing()
    link = await rest.make("/links", name=new_name("link"), source=source["id"], target=target["id"])
    operation = await rest.operation(link, "mqtt", owners="links", topic="leak", message="{{source.name}}")
    path = f"/links/{link['id']}"
    await rest.call(
        "PUT", f"{path}/state-conditions", [{"state": "alarm", "when": "source.flow > target.flow + 5"}]
    )
    items = [{"name": "leak", "states": ["alarm"], "operation_id": operation["id"]}]
    await rest.call("PUT", f"{path}/state-triggers", items)
    await rest.call("POST", f"/objects/{source['id']}/report", {"flow": 20})
    await rest.call("POST", f"/objects/{target['id']}/report", {"flow": 10})

    assert (await rest.get(f"{path}/state"))["state"] == "alarm"
    [job] = (await rest.get(f"{path}/jobs"))["items"]
    assert (job["owner_type"], job["process_meta"]["triggerStates"]) == (2, ["alarm"])


async def test_a_trigger_and_proposed_conditions_are_replayed_against_what_was_reported(rest: Rest) -> None:
    owner = await rest.thing()
    path = f"/objects/{owner['id']}"
    operation = await rest.operation(owner, "mqtt", topic="a/b", message="x")
    for temperature in (20, 90, 20, 95):
        await rest.call("POST", f"{path}/report", {"temperature": temperature})
    items = [{"name": "t", "states": ["alarm"], "operation_id": operation["id"]}]
    [trigger] = (await rest.call("PUT", f"{path}/state-triggers", items)).body["items"]

    proposed = {
        "owner_kind": "object",
        "owner_id": owner["id"],
        "items": [{"state": "alarm", "when": "temperature > 80"}],
        "since": "1h",
    }
    found = (await rest.call("POST", "/state-conditions/replay", proposed)).body
    assert (found["entities"], found["fired"], found["complete"]) == (1, 2, True)
    assert [change["to"] for change in found["changes"]] == ["working", "alarm", "working", "alarm"]
    assert found["firings"][0]["reason"] == "entered alarm"
    twice = [{"id": own, "state": "alarm", "when": "t > 1"} for own in ("a", "b", "a", "b")]
    problem = await rest.refused(
        "POST", "/state-conditions/replay", {**proposed, "items": twice}, status=400, code="badRequest"
    )
    assert [(one["field"], one["message"]) for one in problem["errors"]] == [
        ("items[2].id", "the id a stands twice"),
        ("items[3].id", "the id b stands twice"),
    ]
    assert (await rest.get(f"{path}/jobs"))["items"] == []

    none = (await rest.call("POST", f"/triggers/{trigger['id']}/replay", {"since": "24h"})).body
    assert none["fired"] == 0
    await rest.call("PUT", f"{path}/state-conditions", proposed["items"])
    some = (await rest.call("POST", f"/triggers/{trigger['id']}/replay")).body
    assert some["fired"] == 2
    assert {one["trigger_name"] for one in some["firings"]} == {"t"}
    for since in ("soon", "2100-01-01T00:00:00Z"):
        body = {"since": since}
        await rest.refused("POST", f"/triggers/{trigger['id']}/replay", body, status=400, code="badRequest")
    await rest.refused("POST", "/triggers/nosuch/replay", {}, status=404, code="notFound")


async def test_records_are_asked_for_by_their_owner_under_either_name(rest: Rest) -> None:
    owner, other = await rest.thing(), await rest.thing()
    for one in (owner, other):
        await alarming(rest, {**one, "thing": "x"})
        await rest.call("POST", f"/objects/{one['id']}/report", {"temperature": 90})
    for where, column in (("/state-changes", "entity_id"), ("/trigger-traces", "owner_id")):
        for name in ("entity_id", "owner_id"):
            found = (await rest.get(where, **{name: owner["id"]}))["items"]
            assert {one[column] for one in found} == {owner["id"]}
        query = {"entity_id": owner["id"], "owner_id": other["id"]}
        await rest.refused("GET", where, status=400, code="badRequest", query=query)
        problem = await rest.refused("GET", where, status=400, code="badRequest", query={"object_id": "x"})
        assert "known here: owner_id, entity_id" in problem["detail"]


async def test_records_are_asked_for_by_when_they_were(rest: Rest) -> None:
    owner = await rest.thing()
    path = f"/objects/{owner['id']}"
    await alarming(rest, {**owner, "thing": "x"})
    for temperature in (20, 90, 20):
        await rest.call("POST", f"{path}/report", {"temperature": temperature})
    lists = (
        ("/state-changes", {"owner_id": owner["id"]}),
        ("/trigger-traces", {"owner_id": owner["id"]}),
        (f"{path}/properties/temperature/history", {}),
    )
    for where, query in lists:
        everything = (await rest.get(where, **query))["items"]
        assert len(everything) == 3
        assert (await rest.get(where, **query, since="1h"))["items"] == everything
        assert (await rest.get(where, **query, until="1h"))["items"] == []
        middle = everything[1]["at"]
        later = (await rest.get(where, **query, since=middle))["items"]
        assert later == [one for one in everything if one["at"] >= middle]
        earlier = (await rest.get(where, **query, until=middle, limit=1))["items"]
        assert earlier == [one for one in everything if one["at"] <= middle][:1]
        for wrong in ({"since": "soon"}, {"until": "1 hour"}, {"since": "1h", "until": "2h"}):
            await rest.refused("GET", where, status=400, code="badRequest", query={**query, **wrong})


async def test_what_a_trigger_starts_stays_and_what_is_deleted_takes_its_rules_along(rest: Rest) -> None:
    owner = await rest.thing()
    path = f"/objects/{owner['id']}"
    operation = await rest.operation(owner, "mqtt", topic="a/b", message="x")
    items = [{"name": "starts it", "states": ["alarm"], "operation_id": operation["id"]}]
    await rest.call("PUT", f"{path}/state-triggers", items)
    problem = await rest.refused(
        "DELETE", f"{path}/operations/{operation['id']}", status=409, code="conflict"
    )
    assert "starts it" in problem["detail"]
    await rest.call("POST", f"{path}/report", {"a": 1})
    assert (await rest.call("DELETE", path)).status == 204
    assert [
        change["to"] for change in (await rest.get("/state-changes", entity_id=owner["id"]))["items"]
    ] == ["working"]


async def test_topics_of_other_makers_are_reports_as_the_site_says(make_serve: StartServe) -> None:
    rules = [
        {"topic": "tele/{external_id}/SENSOR", "prefix": "sensor."},
        {"topic": "shellies/{thing}/{property}"},
    ]
    serve = make_serve(ingest=json.dumps(rules))
    await serve.start()
    async with Rest(serve) as rest:
        name = new_name("thing")
        write = {"read": [], "write": ["tele/#", "shellies/#"]}
        owner = await rest.thing(name=name, thing=name, external_id="DVES 1", mqtt=write)
        device = await login(rest, owner)
        await device.start()
        try:
            say(device, "tele/DVES 1/SENSOR", b'{"ENERGY": {"Power": 7}}')
            say(device, f"shellies/{name}/relay", b"on")
            say(device, f"shellies/{name}/power", b"12.5")
            say(device, "shellies/stranger/power", b"1")
            expected = {"sensor.ENERGY": {"Power": 7}, "relay": "on", "power": 12.5}

            async def merged() -> bool:
                return bool(await rest.get(f"/objects/{owner['id']}/properties") == expected)

            await eventually(merged, 10)
            await eventually(lambda: log_has(serve, "no object has the thing stranger"), 10)
        finally:
            await device.stop()


@pytest.mark.check(18)
async def test_a_flood_keeps_the_last_value_is_counted_and_costs_the_others_nothing(
    make_serve: StartServe,
) -> None:
    serve = make_serve(report_rate="2")
    await serve.start()
    async with Rest(serve) as rest, enrolled(rest) as (owner, flood), enrolled(rest) as (other, quiet):
        for number in range(200):
            say(flood, f"iotjobs/{owner['thing']}/report", json.dumps({"n": number}).encode())
        say(quiet, f"iotjobs/{other['thing']}/report", b'{"n": 1}')

        async def state(of: dict[str, Any]) -> dict[str, Any]:
            found: dict[str, Any] = await rest.get(f"/objects/{of['id']}/state")
            return found

        async def heard() -> bool:
            return (await state(other))["reports"] == 1

        await eventually(heard, 10)

        async def settled() -> bool:
            return bool((await rest.get(f"/objects/{owner['id']}/properties")) == {"n": 199})

        await eventually(settled, 10)
        told = await state(owner)
        assert told["reports"] + told["superseded"] == 200
        assert 10 <= told["reports"] < 30
        assert (await state(other))["superseded"] == 0


@pytest.mark.check(18)
async def test_a_connection_that_flaps_is_held_to_the_rate_as_reports_are(make_serve: StartServe) -> None:
    serve = make_serve(report_rate="2")
    await serve.start()
    async with Rest(serve) as rest, enrolled(rest) as (owner, flapping):
        for number in range(200):
            word = b"online" if number % 2 else b"offline"
            say(flapping, f"iotjobs/{owner['thing']}/status", word, retain=True)
        say(flapping, f"iotjobs/{owner['thing']}/status", b"offline", retain=True)

        async def settled() -> Any:
            told = await rest.get(f"/objects/{owner['id']}/state")
            return told["state"] == "down" and told["superseded"] > 170 and told

        told = await eventually(settled, 10)
        changes = (await rest.get("/state-changes", entity_id=owner["id"], limit=500))["items"]
        assert 10 <= len(changes) < 30
        assert told["superseded"] <= 201 - len(changes)


async def test_what_the_broker_had_kept_puts_nobody_down_who_is_up_and_nobody_up_who_is_down(
    make_serve: StartServe, start_mosquitto: Callable[..., Mosquitto]
) -> None:
    broker = start_mosquitto()
    serve = make_serve(mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
    await serve.start()

    async def keep(owner: dict[str, Any], said: bytes) -> None:
        """As a device does that has its own words kept."""
        topic = f"iotjobs/{owner['thing']}/{'report' if said.startswith(b'{') else 'status'}"
        await asyncio.to_thread(publish.single, topic, said, qos=1, retain=True, port=broker.port)

    async with Rest(serve) as rest:

        async def state_is(owner: dict[str, Any], state: str) -> bool:
            return bool((await rest.get(f"/objects/{owner['id']}/state"))["state"] == state)

        owners, before = {}, {}
        for name, state, *words in (
            ("answered", "working", b"offline", b'{"temperature": 20}'),
            ("gone", "down", b'{"temperature": 20}', b"online", b"offline"),
            ("missed", "working", b"online", b'{"temperature": 20}'),
        ):
            owner = owners[name] = await rest.thing(name=name, thing=name)
            for word in words:
                await keep(owner, word)
            await eventually(lambda owner=owner, state=state: state_is(owner, state), 10)  # type: ignore[misc]
            before[name] = await rest.get(f"/objects/{owner['id']}/state")

        await serve.stop()
        await keep(owners["missed"], b"offline")
        with contextlib.closing(sqlite3.connect(serve.data / "iotjobs.db")) as database:
            database.execute("DELETE FROM site WHERE name = 'mqtt_client_id'")  # so that its session is new
            database.commit()
        await serve.start()
        await eventually(lambda: state_is(owners["missed"], "down"), 15)

        async def all_came() -> bool:
            states = [await rest.get(f"/objects/{owner['id']}/state") for owner in owners.values()]
            return [state["reports"] for state in states] == [2, 2, 2]

        await eventually(all_came, 10)
        for name, owner in owners.items():
            after = await rest.get(f"/objects/{owner['id']}/state")
            assert after["heard_at"] == before[name]["heard_at"], name
            assert (after["state_change_id"] == before[name]["state_change_id"]) == (name != "missed"), name


async def test_what_an_object_is_made_with_decides_its_state_at_once(rest: Rest) -> None:
    class_ = await rest.make("/classes", name=new_name("class"))
    hot = [{"state": "alarm", "when": "temperature > 80"}]
    await rest.call("PUT", f"/classes/{class_['id']}/state-conditions", hot)
    owner = await rest.thing(class_id=class_["id"], properties={"temperature": 90})

    async def alarm() -> bool:
        return bool((await rest.get(f"/objects/{owner['id']}/state"))["state"] == "alarm")

    await eventually(alarm, 10)


async def test_what_an_object_or_link_is_made_with_is_in_its_history_and_replayed(rest: Rest) -> None:
    class_ = await rest.make("/classes", name=new_name("class"))
    path = f"/classes/{class_['id']}"
    await rest.call("PUT", f"{path}/state-conditions", [{"state": "alarm", "when": "temperature > 80"}])
    operation = await rest.operation(class_, "mqtt", owners="classes", topic="a/b", message="x")
    items = [{"name": "t", "states": ["alarm"], "operation_id": operation["id"]}]
    [trigger] = (await rest.call("PUT", f"{path}/state-triggers", items)).body["items"]

    given = {"class_id": class_["id"], "properties": {"temperature": 90}}
    ends = {end: (await rest.thing())["id"] for end in ("source", "target")}
    who, token = await rest.user("admin")
    async with Rest(rest.serve, token) as maker:
        made = await maker.thing(**given)
        link = await maker.make("/links", name=new_name("link"), **ends, **given)
    paths = [f"/objects/{made['id']}", f"/links/{link['id']}"]
    for owner in paths:

        async def alarm(owner: str = owner) -> bool:
            return bool((await rest.get(f"{owner}/state"))["state"] == "alarm")

        await eventually(alarm, 10)
        await rest.call("POST", f"{owner}/report", {"temperature": 20})
        history = (await rest.get(f"{owner}/properties/temperature/history"))["items"]
        assert [(one["value"], one["by"]) for one in history] == [(20, None), (90, who["id"])]

    fired = (await rest.get("/trigger-traces", trigger_id=trigger["id"], decision="fired"))["items"]
    replayed = (await rest.call("POST", f"/triggers/{trigger['id']}/replay", {"since": "1h"})).body
    assert replayed["fired"] == len(fired) == 2


async def test_a_replay_needs_an_operator(rest: Rest) -> None:
    _, token = await rest.user("viewer")
    async with Rest(rest.serve, token) as viewer:
        await viewer.refused("POST", "/triggers/x/replay", {}, status=403, code="notAllowed")
