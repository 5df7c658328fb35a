"""Cancel, stop, resume, retry and priorities over REST, on real devices."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from iotjobs_sim.sshd import SshServer, start_openssh

from tests.services.site import Rest, StartServe, eventually, new_name
from tests.services.ssh import processes_of
from tests.services.zoo import says_gone, ssh_server

# A grandchild in a session of its own and a child in the run's group; none of them minds TERM.
STUBBORN = "trap '' TERM; echo begun; (setsid sleep 77 & sleep 77) & wait; sleep 77"


@pytest.fixture(params=["openssh", "dropbear", "busybox"])
def server(request: pytest.FixtureRequest) -> SshServer:
    """Each kind of device in turn."""
    found: SshServer = request.getfixturevalue(request.param)
    return found


async def begun(rest: Rest, owner: dict[str, Any], text: str, **members: Any) -> dict[str, Any]:
    """A job whose script has said something."""
    operation = await rest.script(owner, text, **{"kill_after_s": 0.5, **members})
    job = await rest.execute(owner, operation)
    return await rest.job_that(job["id"], lambda job: job["output"]["bytes"])


async def ask(rest: Rest, job: dict[str, Any], what: str, body: Any = None) -> tuple[int, dict[str, Any]]:
    answer = await rest.call("POST", f"/jobs/{job['id']}/{what}", body)
    return answer.status, answer.body


# --- cancel ---------------------------------------------------------------------------------------


@pytest.mark.check(4)
async def test_a_grandchild_that_ignores_term_is_gone_after_a_cancel(rest: Rest, server: SshServer) -> None:
    job = await begun(rest, await rest.device(server), STUBBORN)
    await eventually(lambda: len(processes_of(job["id"])) >= 2)

    status, answered = await ask(rest, job, "cancel", {"reason": "enough"})
    assert (status, answered["status"], answered["outcome"]) == (202, "CANCELING", None)
    assert answered["cancel"] == {
        "by": job["user_id"],
        "at": answered["cancel"]["at"],
        "reason": "enough",
        "confirmed": None,
    }
    ended = await rest.ended(job["id"])

    assert processes_of(job["id"]) == []
    assert (ended["status"], ended["outcome"], ended["has_errors"]) == ("CANCELED", "canceled", False)
    assert ended["error"] is None
    assert ended["cancel"] == {**answered["cancel"], "confirmed": True}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", ended["cancel"]["at"])
    assert ended["description"]["stdout"] == "begun\n"
    assert (await ask(rest, job, "cancel"))[0] == 200


@pytest.mark.check(4)
async def test_a_grandchild_that_ignores_term_is_gone_after_a_timeout(rest: Rest, server: SshServer) -> None:
    owner = await rest.device(server)
    operation = await rest.script(owner, STUBBORN, timeout_s=1, kill_after_s=0.5)

    for _ in range(3):
        job = await rest.run(owner, operation)
        if "did not answer in time" not in job["error"]["message"]:
            break
        # A device that is not heard of for a moment is not waited for (check 3), and the record says so.
        for path in processes_of(job["id"]):
            os.kill(int(path.parent.name), signal.SIGKILL)

    assert (job["outcome"], job["error"]["code"]) == ("timed_out", "timeOut")
    assert processes_of(job["id"]) == []
    assert job["error"]["message"].endswith("its processes were killed and are gone")


@pytest.mark.check(5)
async def test_a_device_that_cannot_be_reached_leaves_a_cancel_unconfirmed(
    make_serve: StartServe, tmp_path: Any
) -> None:
    serve = make_serve(ssh_connect_timeout_s="2")
    await serve.start()
    with start_openssh(tmp_path / "frozen") as server:
        async with Rest(serve) as rest:
            job = await begun(rest, await rest.device(server), "echo begun; exec sleep 5")
            server.freeze()
            began = time.monotonic()
            assert (await ask(rest, job, "cancel"))[0] == 202
            assert time.monotonic() - began <= 2

            job = await rest.ended(job["id"])

            assert time.monotonic() - began <= 10
        server.thaw()
    assert (job["status"], job["cancel"]["confirmed"]) == ("CANCELED", False)
    assert job["error"]["code"] == "notConfirmed"
    assert job["error"]["message"].startswith("could not confirm that its processes are gone")


@pytest.mark.parametrize("how", ["moved", "deleted"])
async def test_a_cancel_goes_to_where_the_run_went(rest: Rest, openssh: SshServer, how: str) -> None:
    owner = await rest.device(openssh)
    job = await begun(rest, owner, "echo begun; exec sleep 77")

    async with ssh_server(says_gone) as other:
        if how == "moved":
            ssh = {"host": other.host, "port": other.port, "host_key": other.host_keys[0]}
            assert (await rest.call("PATCH", f"/objects/{owner['id']}", {"ssh": ssh})).status == 200
        else:
            assert (await rest.call("DELETE", f"/objects/{owner['id']}")).status == 204
        await ask(rest, job, "cancel")
        ended = await rest.ended(job["id"])

    assert processes_of(job["id"]) == []
    assert (ended["status"], ended["cancel"]["confirmed"]) == ("CANCELED", True)


@pytest.mark.check(5)
async def test_one_of_many_running_is_canceled_within_seconds(
    rest: Rest, openssh: SshServer, tmp_path: Path, full: bool
) -> None:
    devices, parked = (24, 1_000) if full else (8, 100)
    owners = [await rest.device(openssh) for _ in range(devices)]
    text = "echo begun; exec sleep 177"
    operations = [await rest.script(owner, text, concurrent=True, timeout_s=150) for owner in owners]
    ways = [way for way in zip(owners, operations, strict=True) for _ in range(8)]
    thing = await rest.thing(thing=new_name("silent"))
    message = {"topic": "silent/cmd", "message": "{{jobId}}", "answer": {"within_s": 150}}
    asked = await rest.operation(thing, "mqtt", parameters=message)
    ways += [(thing, asked)] * (parked - len(ways))
    jobs = await asyncio.gather(*(rest.execute(*way) for way in ways))
    owned = {one["id"] for one in (*owners, thing)}

    async def running() -> int:
        listed = [job for job in await rest.all_jobs(status="RUNNING") if job["owner_id"] in owned]
        return sum(job["delivery"] == "acknowledged" or job["output"]["bytes"] > 0 for job in listed)

    async def most_running() -> bool:
        return await running() >= len(jobs) - 4

    await eventually(most_running, 90, 0.5)
    with start_openssh(tmp_path / "frozen") as server:
        away = await begun(rest, await rest.device(server), text)
        before = await running()
        server.freeze()
        chosen = [(jobs[devices * 4], True, 202), (jobs[-1], None, 200), (away, False, 202)]
        took = []
        for job, confirmed, status in chosen:
            began = time.monotonic()
            assert (await ask(rest, job, "cancel"))[0] == status
            took.append(time.monotonic() - began)
            assert took[-1] <= 2
            ended = await rest.ended(job["id"])
            took.append(time.monotonic() - began)
            assert took[-1] <= 10
            assert (ended["status"], ended["cancel"]["confirmed"]) == ("CANCELED", confirmed)
        server.thaw()
    print(f"{before} running; " + ", ".join(f"{one:.2f} s" for one in took))  # noqa: T201 - figures
    assert processes_of(chosen[0][0]["id"]) == []
    assert await running() == before - 2  # one of them is not of these owners

    rest_of_them = [job for job in jobs if job not in (chosen[0][0], chosen[1][0])]
    for some in batched(rest_of_them, 16):  # it is one machine that plays all the devices
        canceled = await asyncio.gather(*(ask(rest, job, "cancel") for job in some))
        assert {status for status, _ in canceled} <= {200, 202}
        ends = [await rest.ended(job["id"], 60) for job in some]
        assert [job["error"] for job in ends if job["cancel"]["confirmed"] is False] == []


def batched(jobs: list[dict[str, Any]], size: int) -> Iterator[list[dict[str, Any]]]:
    for at in range(0, len(jobs), size):
        yield jobs[at : at + size]


async def test_what_waits_is_canceled_at_once_and_what_has_ended_is_a_conflict(
    rest: Rest, openssh: SshServer
) -> None:
    owner = await rest.device(openssh)
    operation = await rest.script(owner, "true")
    waits = await rest.execute(owner, operation, start_at="2030-01-01T00:00:00Z")
    ended = await rest.run(owner, operation)

    status, job = await ask(rest, waits, "cancel", {"reason": None})
    assert (status, job["status"], job["outcome"], job["cancel"]["confirmed"]) == (
        200,
        "CANCELED",
        "canceled",
        True,
    )
    assert (job["start_date"], job["attempt"]) == (None, 0)
    path = f"/jobs/{ended['id']}"
    await rest.refused("POST", f"{path}/cancel", status=409, code="conflict")
    await rest.refused("POST", f"{path}/stop", status=409, code="conflict")
    await rest.refused("POST", f"{path}/resume", {"confirm": True}, status=409, code="conflict")
    await rest.refused("PUT", f"{path}/low-priority", status=409, code="conflict")
    await rest.refused("POST", f"{path}/cancel", {"why": 1}, status=400, code="badRequest")
    await rest.refused("POST", f"{path}/stop", {"reason": "no"}, status=400, code="badRequest")
    await rest.refused("POST", f"{path}/cancel", status=400, code="badRequest", query={"wait": 1})
    assert await rest.job(ended["id"]) == ended


async def test_a_message_that_waits_for_its_answer_is_canceled_and_nobody_can_tell(rest: Rest) -> None:
    owner = await rest.thing(thing=f"t{time.monotonic_ns()}")
    operation = await rest.operation(owner, "mqtt", topic="a/b", message="x", answer={"within_s": 60})
    job = await rest.execute(owner, operation)
    await rest.job_that(job["id"], lambda job: job["delivery"] == "acknowledged")

    await rest.refused("POST", f"/jobs/{job['id']}/stop", status=409, code="conflict")
    status, job = await ask(rest, job, "cancel")

    assert (status, job["status"], job["cancel"]["confirmed"], job["error"]) == (200, "CANCELED", None, None)


async def test_the_next_server_ends_what_the_last_one_was_to_cancel(
    make_serve: StartServe, openssh: SshServer
) -> None:
    serve = make_serve()
    await serve.start()
    async with Rest(serve) as rest:
        owner = await rest.device(openssh)
        canceled = await begun(rest, owner, STUBBORN, kill_after_s=60)
        stopped = await begun(rest, owner, STUBBORN, kill_after_s=3, concurrent=True)
        assert (await ask(rest, canceled, "cancel"))[0] == 202
        assert (await ask(rest, stopped, "stop"))[0] == 202
        await serve.kill()
        # Its kill goes on alone on the device; ours is to be seen to work without it.
        assert processes_of(canceled["id"])
        await serve.start()

        assert (await rest.job(canceled["id"]))["status"] == "CANCELING"
        stopped = await rest.job_that(stopped["id"], lambda job: job["status"] == "STOPPED")

        assert processes_of(stopped["id"]) == []
        await serve.kill()
    for path in processes_of(canceled["id"]):
        os.kill(int(path.parent.name), signal.SIGKILL)


# --- stop and resume ------------------------------------------------------------------------------


async def test_a_stopped_job_frees_its_lane_and_runs_anew(rest: Rest, server: SshServer) -> None:
    owner = await rest.device(server)
    job = await begun(rest, owner, "echo begun; if [ -e /tmp/$IOTJOBS_JOB_ID ]; then exit 0; fi; "
                      ">/tmp/$IOTJOBS_JOB_ID; sleep 77")  # fmt: skip
    behind = await rest.execute(owner, await rest.script(owner, "echo next"))

    assert (await ask(rest, job, "stop"))[0] == 202
    assert (await rest.ended(behind["id"]))["outcome"] == "succeeded"
    stopped = await rest.job(job["id"])
    assert (stopped["status"], stopped["outcome"], stopped["cancel"]) == ("STOPPED", None, None)
    assert processes_of(job["id"]) == []
    path = f"/jobs/{job['id']}/resume"
    problem = await rest.refused("POST", path, status=409, code="conflict")
    assert '{"confirm": true}' in problem["detail"]
    await rest.refused("POST", path, {"confirm": "yes"}, status=400, code="badRequest")
    assert (await ask(rest, job, "resume", {"confirm": True}))[1]["status"] == "PENDING"
    ended = await rest.ended(job["id"])

    assert (ended["outcome"], ended["attempt"]) == ("succeeded", 2)
    attempts = (await rest.get(f"/jobs/{job['id']}/attempts"))["items"]
    assert [(one["number"], one["outcome"]) for one in attempts] == [(1, "canceled"), (2, "succeeded")]
    assert attempts[0]["error"] == {"code": "stopped", "message": "ended by a stop"}
    assert attempts[0]["ended_at"] <= attempts[1]["started_at"] <= attempts[1]["sent_at"]
    assert attempts[0]["started_at"] == ended["start_date"]
    assert attempts[1]["ended_at"] == ended["end_date"]
    assert attempts[0]["worker"] == attempts[1]["worker"]
    lines = (await rest.get(f"/jobs/{job['id']}/logs"))["items"]
    assert [line["message"] for line in lines] == [
        "admin stopped it",
        "attempt 1, stop: its processes were killed and are gone",
        "admin resumed it",
    ]
    assert (await rest.get(f"/jobs/{job['id']}/logs", level="INFO", limit=1))["items"] == lines[-1:]
    assert (await rest.get(f"/jobs/{job['id']}/logs", level="ERROR"))["items"] == []


async def test_the_attempt_under_way_is_told_too(rest: Rest, openssh: SshServer) -> None:
    job = await begun(rest, await rest.device(openssh), "echo begun; sleep 77")

    [attempt] = (await rest.get(f"/jobs/{job['id']}/attempts"))["items"]
    await ask(rest, job, "cancel")
    await rest.ended(job["id"])
    [over] = (await rest.get(f"/jobs/{job['id']}/attempts"))["items"]

    assert attempt == {**over, "ended_at": None, "outcome": None}
    assert (over["outcome"], over["error"]) == ("canceled", None)


# --- retry ----------------------------------------------------------------------------------------


async def test_a_retry_is_a_new_job_and_erased_secrets_are_given_again(
    rest: Rest, openssh: SshServer
) -> None:
    owner = await rest.device(openssh)
    operation = await rest.operation(
        owner, "program", path="echo", args=["{{args.n}}", "{{args.key}}"], secret_args=["key"]
    )
    first = await rest.run(owner, operation, args={"n": 1, "key": "one"})
    path = f"/jobs/{first['id']}/retry"

    problem = await rest.refused("POST", path, status=400, code="badRequest")
    assert [error["field"] for error in problem["errors"]] == ["args.key"]
    body = {"args": {"key": "two"}}
    answers = [
        await rest.call("POST", path, body, query={"wait": 15}, Idempotency_Key="retry-1") for _ in range(2)
    ]
    other = await rest.call("POST", path, {"args": {"key": "three"}}, Idempotency_Key="retry-1")

    assert [answer.status for answer in (*answers, other)] == [200, 200, 422]
    again = answers[0].body
    assert answers[1].body["id"] == again["id"] != first["id"]
    assert answers[0].headers["location"] == f"/api/v1/jobs/{again['id']}"
    assert (again["retry_of"], again["cause"], again["description"]["stdout"]) == (
        first["id"],
        "retry",
        "1 two\n",
    )
    assert again["data"] == first["data"]
    assert await rest.job(first["id"]) == first


async def test_a_retry_runs_the_operation_as_it_is_now(rest: Rest, openssh: SshServer) -> None:
    owner = await rest.device(openssh)
    operation = await rest.script(owner, "echo old")
    first = await rest.run(owner, operation)
    change = {"parameters": {"text": "echo new"}}
    operations = f"/objects/{owner['id']}/operations/{operation['id']}"
    assert (await rest.call("PATCH", operations, change)).status == 200

    answer = await rest.call("POST", f"/jobs/{first['seq']}/retry", query={"wait": 15})

    assert (answer.body["description"]["stdout"], answer.body["operation"]["version"]) == ("new\n", 2)
    running = await begun(rest, owner, "echo begun; sleep 77")
    await rest.refused("POST", f"/jobs/{running['id']}/retry", status=409, code="conflict")
    await ask(rest, running, "cancel")
    assert (await rest.call("DELETE", operations)).status == 204
    await rest.refused("POST", f"/jobs/{first['id']}/retry", status=404, code="notFound")


# --- the rest -------------------------------------------------------------------------------------


async def test_low_priority_lets_the_next_in_the_lane_pass(rest: Rest, openssh: SshServer) -> None:
    owner = await rest.device(openssh)
    running = await begun(rest, owner, "echo begun; sleep 77")
    operation = await rest.script(owner, "true")
    first, second = [await rest.execute(owner, operation) for _ in range(2)]

    answer = await rest.call("PUT", f"/jobs/{first['id']}/low-priority")
    assert (answer.status, answer.body["low_priority"]) == (200, True)
    on_running = await rest.call("PUT", f"/jobs/{running['id']}/low-priority")
    assert (on_running.status, on_running.body["low_priority"]) == (200, True)
    off = await rest.call("DELETE", f"/jobs/{running['id']}/low-priority")
    assert off.body["low_priority"] is False
    await ask(rest, running, "cancel")
    ends = [await rest.ended(job["id"]) for job in (first, second)]

    assert ends[1]["start_date"] <= ends[0]["start_date"]
    assert ends[1]["end_date"] <= ends[0]["start_date"]


@pytest.mark.check(4)
async def test_what_stalls_is_ended_and_what_talks_is_not(rest: Rest, server: SshServer) -> None:
    owner = await rest.device(server)
    silent = await rest.script(owner, "echo begun; exec sleep 77", stall_s=1, kill_after_s=0.5)
    talks = await rest.script(owner, "for i in 1 2 3 4 5 6; do echo $i; sleep 0.4; done", stall_s=1.5)

    job = await rest.run(owner, silent)
    assert (job["outcome"], job["error"]) == (
        "timed_out",
        {"code": "stalled", "message": "no output for 1 s; its processes were killed and are gone"},
    )
    assert processes_of(job["id"]) == []
    assert (await rest.run(owner, talks))["outcome"] == "succeeded"


async def test_a_job_that_the_caller_may_not_see_is_not_there(rest: Rest, openssh: SshServer) -> None:
    owner = await rest.device(openssh)
    job = await begun(rest, owner, "echo begun; sleep 77")
    _, token = await rest.user()

    async with Rest(rest.serve, token) as stranger:
        for method, what in [
            ("POST", "cancel"),
            ("POST", "stop"),
            ("POST", "resume"),
            ("POST", "retry"),
            ("PUT", "low-priority"),
            ("DELETE", "low-priority"),
            ("GET", "attempts"),
            ("GET", "logs"),
        ]:
            await stranger.refused(method, f"/jobs/{job['id']}/{what}", status=404, code="notFound")

    assert (await rest.job(job["id"]))["status"] == "RUNNING"
    await ask(rest, job, "cancel")
    await rest.ended(job["id"])
