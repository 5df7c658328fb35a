"""What devices say about jobs, over the real broker into a real server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from iotjobs_sim.mqtt_devices import Behaviour, PretendDevice

from tests.services.fleet import ALONE_S
from tests.services.mosquitto import Mosquitto
from tests.services.site import Rest, Serve, StartServe, eventually, log_has, new_name

NO_EFFECT = "a device message has no effect"


async def login(rest: Rest, owner: dict[str, Any], **given: Any) -> PretendDevice:
    """A device with its login, not started."""
    answer = await rest.call("POST", f"/objects/{owner['id']}/enrol")
    assert answer.status == 200, answer
    return PretendDevice(
        owner["thing"],
        "127.0.0.1",
        rest.serve.mqtt_port,
        answer.body["username"],
        answer.body["password"],
        spread_s=ALONE_S,
        **given,
    )


@contextlib.asynccontextmanager
async def enrolled(rest: Rest, **given: Any) -> AsyncIterator[tuple[dict[str, Any], PretendDevice]]:
    """An object and its device, up."""
    name = new_name("thing")
    owner = await rest.thing(name=name, thing=name)
    device = await login(rest, owner, **given)
    await device.start()
    try:
        yield owner, device
    finally:
        await device.stop()


async def command(
    rest: Rest, owner: dict[str, Any], answer: float | None = None, **members: Any
) -> dict[str, Any]:
    """An mqtt operation for the owner's device."""
    thing = members.pop("to", owner.get("thing"))
    return await rest.operation(
        owner,
        "mqtt",
        **members,
        parameters={
            "topic": f"iotjobs/{thing}/cmd",
            "message": {"set": 1, "job": "{{jobId}}"},
            "answer": None if answer is None else {"within_s": answer},
        },
    )


async def again(device: PretendDevice) -> None:
    """Connect at once, without the pause of a device that was cut off."""
    await device.stop()
    await device.start()


def say(device: PretendDevice, topic: str, payload: bytes, *, retain: bool = False) -> None:
    """Publish anything at all, as a hostile device could."""
    assert device._client is not None
    device._client.publish(topic, payload, 1, retain=retain)


async def test_a_command_is_acknowledged_and_its_description_is_what_was_sent(rest: Rest) -> None:
    async with enrolled(rest) as (owner, device):
        job = await rest.run(owner, await command(rest, owner))

        await device.wait_for(lambda: device.received[job["id"]] == 1)
        assert (job["outcome"], job["delivery"], job["transport"]) == ("succeeded", "acknowledged", "mqtt")
        assert job["description"] == {
            "topic": f"iotjobs/{owner['thing']}/cmd",
            "message": json.dumps({"set": 1, "job": job["id"]}, separators=(",", ":")),
        }
        assert device.payloads[job["id"]].decode() == job["description"]["message"]


async def test_the_owners_device_appends_results_in_order_each_with_its_object(rest: Rest) -> None:
    async with enrolled(rest) as (owner, device):
        job = await rest.run(owner, await command(rest, owner))
        for number in range(20):
            device.append_result(job["id"] if number % 2 else str(job["seq"]), {"n": number})

        job = await rest.job_that(job["id"], lambda job: len(job["results"]) == 20)

    assert [entry["payload"] for entry in job["results"]] == [{"n": number} for number in range(20)]
    assert {entry["by"] for entry in job["results"]} == {owner["id"]}
    assert all(isinstance(entry["timestamp"], int) for entry in job["results"])


@pytest.mark.parametrize("run_on", ["source", "target"])
async def test_both_ends_of_a_link_may_speak_about_its_jobs(rest: Rest, run_on: str) -> None:
    async with enrolled(rest) as (one, first), enrolled(rest) as (two, second):
        link = await rest.make("/links", name=new_name("link"), source=one["id"], target=two["id"])
        chosen = {"source": one, "target": two}[run_on]
        operation = await command(rest, link, answer=10, owners="links", to=chosen["thing"], run_on=run_on)

        job = await rest.run(link, operation, owners="links")
        first.append_result(job["id"], {"end": 1})
        second.append_result(job["id"], {"end": 2})
        job = await rest.job_that(job["id"], lambda job: len(job["results"]) == 3)

    assert (job["owner_type"], job["owner_id"], job["outcome"]) == (2, link["id"], "succeeded")
    assert {entry["by"] for entry in job["results"]} == {one["id"], two["id"]}
    assert job["results"][0]["by"] == chosen["id"]


async def test_another_thing_cannot_speak_about_a_job(rest: Rest, shared_serve: Serve) -> None:
    async with enrolled(rest) as (owner, device), enrolled(rest) as (_, stranger):
        job = await rest.run(owner, await command(rest, owner))
        before = shared_serve.log.count(NO_EFFECT)

        stranger.append_result(job["id"], {"stranger": 1})
        say(stranger, f"iotjobs/{owner['thing']}/jobs/{job['id']}/results", b'{"as":"owner"}')
        await eventually(lambda: shared_serve.log.count(NO_EFFECT) > before)
        device.append_result(job["id"], {"owner": 1})
        job = await rest.job_that(job["id"], lambda job: job["results"])

    assert [entry["payload"] for entry in job["results"]] == [{"owner": 1}]
    assert f"job {job['id']} does not belong to {stranger.thing}" in shared_serve.log


HOSTILE = {
    "invalid UTF-8": b'{"a":"\xff"}',
    "NaN": b'{"a":NaN}',
    "infinity": b'{"a":-Infinity}',
    "out of range": b'{"a":1e400}',
    "a number without end": b'{"a":' + b"9" * 60_000 + b"}",
    "too deep": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    "far too deep": b"[" * 100_000,
    "two values for one name": b'{"a":1,"a":2}',
    "two values deep inside": b'{"a":[{"b":1,"b":1}]}',
    "over 64 KiB": b'{"a":"' + b"x" * 65_530 + b'"}',
    "empty": b"",
    "an array": b"[]",
    "no object": b'"text"',
    "NUL": b'{"a":"\\u0000"}',
    "half a surrogate pair": b'{"a":"\\ud800"}',
    "cut off": b'{"a":',
    "gzip": b"\x1f\x8b\x08\x00" + b"\x00" * 50,
}


@pytest.mark.check(19)
async def test_hostile_payloads_are_dropped_and_counted_and_stop_nobody(
    rest: Rest, shared_serve: Serve
) -> None:
    async with enrolled(rest) as (owner, device):
        job = await rest.run(owner, await command(rest, owner))
        topic = f"iotjobs/{owner['thing']}/jobs/{job['id']}"
        before = shared_serve.log.count(NO_EFFECT)
        for kind in ("results", "answer"):
            for payload in HOSTILE.values():
                say(device, f"{topic}/{kind}", payload)
        say(device, f"iotjobs/{owner['thing']}/jobs/{'0' * 32}/results", b"{}")
        say(device, f"iotjobs/{owner['thing']}/jobs/..%2f/results", b"{}")
        device.append_result(job["id"], {"still": "here"})

        job = await rest.job_that(job["id"], lambda job: job["results"])

        async def told() -> Any:
            state = await rest.get(f"/objects/{owner['id']}/state")
            return state["refused"] == 2 * len(HOSTILE) + 2 and state

        last = (await eventually(told, 10))["last_refusal"]

    assert [entry["payload"] for entry in job["results"]] == [{"still": "here"}]
    assert last["at"].endswith("Z")
    assert f"{last['topic']}: {last['why']}" in {
        f"iotjobs/{owner['thing']}/jobs/{'0' * 32}/results: there is no job {'0' * 32}",
        f"iotjobs/{owner['thing']}/jobs/..%2f/results: the topic is not one of ours",
    }
    assert shared_serve.log.count(NO_EFFECT) - before == 2 * len(HOSTILE) + 2
    assert "failed in us" not in shared_serve.log
    assert "Traceback" not in shared_serve.log


async def test_a_result_may_have_64_kib(rest: Rest) -> None:
    async with enrolled(rest) as (owner, device):
        job = await rest.run(owner, await command(rest, owner))
        device.append_result(job["id"], {"a": "x" * 65_000})

        job = await rest.job_that(job["id"], lambda job: job["results"])

    assert job["results"][0]["payload"] == {"a": "x" * 65_000}


@pytest.mark.parametrize(
    ("behaviour", "outcome", "error"),
    [
        (Behaviour.ANSWER, "succeeded", None),
        (Behaviour.SLOW, "succeeded", None),
        (Behaviour.REFUSE, "failed", {"code": "deviceSaidNo", "message": "the valve is stuck"}),
        (Behaviour.SILENT, "timed_out", {"code": "noAnswer", "message": "the device did not answer in time"}),
    ],
)
async def test_the_devices_answer_ends_the_job(
    rest: Rest, behaviour: Behaviour, outcome: str, error: dict[str, str] | None
) -> None:
    async with enrolled(rest, behaviour=behaviour, answer_after_s=0.5) as (owner, device):
        operation = await command(rest, owner, answer=1 if behaviour is Behaviour.SILENT else 10)

        job = await rest.run(owner, operation)

    assert (job["status"], job["outcome"], job["error"]) == ("FINISHED", outcome, error)
    assert device.received[job["id"]] == 1
    assert len(job["results"]) == (behaviour is not Behaviour.SILENT)
    assert job["delivery"] == ("acknowledged" if behaviour is Behaviour.SILENT else "ended")


async def test_a_device_that_says_no_is_asked_again_where_the_operation_says_so(rest: Rest) -> None:
    async with enrolled(rest, behaviour=Behaviour.REFUSE) as (owner, device):
        retry = {"attempts": 3, "on": ["failed"], "backoff_s": 1}
        asks = await command(rest, owner, answer=10, idempotent=True, retry=retry)
        job = await rest.execute(owner, asks)
        waiting = await rest.job_that(job["id"], lambda job: job["pending_reason"] == "retry")
        device.behaviour = Behaviour.ANSWER

        job = await rest.ended(job["id"])

    assert waiting["status"] == "PENDING"
    assert (job["outcome"], job["attempt"], job["error"]) == ("succeeded", 2, None)
    assert device.received[job["id"]] == 2
    assert [entry["payload"].get("ok") for entry in job["results"]] == [False, True]


async def test_a_result_is_as_good_as_an_answer_also_when_it_is_quicker_than_the_broker(rest: Rest) -> None:
    async with enrolled(rest, behaviour=Behaviour.SILENT, result={"done": True}) as (owner, _):
        operation = await command(rest, owner, answer=3)
        for _ in range(30):
            job = await rest.run(owner, operation)

            assert (job["outcome"], job["error"]) == ("succeeded", None)


async def test_an_answer_that_comes_too_late_is_kept_and_changes_nothing(rest: Rest) -> None:
    async with enrolled(rest, behaviour=Behaviour.SILENT) as (owner, device):
        job = await rest.run(owner, await command(rest, owner, answer=0.3))
        say(device, f"iotjobs/{owner['thing']}/jobs/{job['id']}/answer", b'{"ok":true,"late":1}')

        later = await rest.job_that(job["id"], lambda job: job["results"])

    assert later["results"][0]["payload"] == {"ok": True, "late": 1}
    for member in ("status", "outcome", "error", "end_date"):
        assert later[member] == job[member]


async def test_an_answer_to_a_job_that_asks_for_none_ends_nothing(rest: Rest, openssh: Any) -> None:
    name = new_name("thing")
    owner = await rest.device(openssh, thing=name, name=name)
    device = await login(rest, owner)
    await device.start()
    try:
        running = await rest.execute(owner, await rest.script(owner, "sleep 1; echo whole"))
        await rest.job_that(running["id"], lambda job: job["status"] == "RUNNING")
        say(device, f"iotjobs/{name}/jobs/{running['id']}/answer", b'{"ok":false}')
        await rest.job_that(running["id"], lambda job: job["results"])
        job = await rest.ended(running["id"])
    finally:
        await device.stop()

    assert (job["outcome"], job["description"]["stdout"]) == ("succeeded", "whole\n")


async def test_a_parked_job_outlives_a_kill_and_its_answer_ends_it(make_serve: StartServe) -> None:
    serve = make_serve()
    await serve.start()
    async with Rest(serve) as rest:
        owner = await rest.thing(thing="valve")
        device = await login(rest, owner, behaviour=Behaviour.SILENT)
        await device.start()
        try:
            answered, silent = [
                await rest.execute(owner, await command(rest, owner, answer=within)) for within in (30, 3)
            ]
            for job in (answered, silent):
                await rest.job_that(job["id"], lambda job: job["delivery"] == "acknowledged")
            await serve.restart()
            await again(device)

            still = await rest.job(answered["id"])
            assert (still["status"], still["attempt"], still["outcome"]) == ("RUNNING", 1, None)
            topic = f"iotjobs/valve/jobs/{answered['id']}/answer"
            say(device, topic, b'{"ok":true}')
            first = await rest.ended(answered["id"])
            second = await rest.ended(silent["id"])
        finally:
            await device.stop()

    assert first["outcome"] == "succeeded"
    assert (second["outcome"], second["error"]["code"]) == ("timed_out", "noAnswer")
    assert device.received == {answered["id"]: 1, silent["id"]: 1}


async def test_a_retained_message_does_not_come_again_with_each_start(make_serve: StartServe) -> None:
    serve = make_serve()
    await serve.start()
    async with Rest(serve) as rest:
        owner = await rest.thing(thing="valve")
        device = await login(rest, owner)
        await device.start()
        try:
            job = await rest.run(owner, await command(rest, owner))
            say(device, f"iotjobs/valve/jobs/{job['id']}/results", b'{"kept":1}', retain=True)
            await rest.job_that(job["id"], lambda job: job["results"])
            await serve.stop()
            await serve.start()
            await again(device)
            device.append_result(job["id"], {"after": 1})
            job = await rest.job_that(
                job["id"], lambda job: {"after": 1} in [entry["payload"] for entry in job["results"]]
            )
        finally:
            await device.stop()

    assert [entry["payload"] for entry in job["results"]] == [{"kept": 1}, {"after": 1}]


@pytest.mark.check(15)
async def test_what_was_not_committed_when_serve_was_killed_comes_again(
    make_serve: StartServe, start_mosquitto: Callable[..., Mosquitto]
) -> None:
    broker = start_mosquitto()
    serve = make_serve(mqtt_url=f"mqtt://127.0.0.1:{broker.port}")
    await serve.start()
    device = PretendDevice("valve", "127.0.0.1", broker.port, spread_s=ALONE_S)
    await device.start()
    try:
        async with Rest(serve) as rest:
            owner = await rest.thing(thing="valve")
            job = await rest.run(owner, await command(rest, owner))
            for number in range(300):
                device.append_result(job["id"], {"n": number})
            await rest.job_that(job["id"], lambda job: job["results"])
            await serve.restart()
            job = await rest.job_that(job["id"], lambda job: len(numbers(job)) == 300, 15)
    finally:
        await device.stop()

    # At least once: what was committed and not yet acknowledged comes a second time.
    assert len(job["results"]) - 300 <= 256
    assert log_has(serve, "mqtt connected")


def numbers(job: dict[str, Any]) -> set[int]:
    return {entry["payload"]["n"] for entry in job["results"]}
