"""Jobs over REST: the whole stack from the call to real SSH servers and back."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncssh
import pytest
from iotjobs_sim.sshd import SshServer

from tests.services.programs import free_port
from tests.services.site import ADMIN_TOKEN, Rest, Serve, StartServe, eventually, new_name

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
DOCUMENTED = [
    "id",
    "operation_id",
    "user_id",
    "owner_id",
    "owner_type",
    "timestamp",
    "description",
    "results",
    "process_meta",
]
FURTHER = {
    "seq", "type", "label", "operation", "transport", "status", "outcome", "has_errors", "error",
    "pending_reason", "progress", "delivery", "waiting", "duration", "created_at", "start_date", "end_date",
    "expires_at", "run_by", "data", "cause", "parent_id", "retry_of", "queue", "priority", "low_priority",
    "attempt", "cancel", "transient", "abortable", "results_count", "output",
}  # fmt: skip


HOST_KEY = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()


@pytest.fixture(params=["openssh", "dropbear", "busybox"])
def server(request: pytest.FixtureRequest) -> SshServer:
    """Each kind of device in turn."""
    found: SshServer = request.getfixturevalue(request.param)
    return found


async def octets(rest: Rest, job: dict[str, Any], **query: Any) -> bytes:
    """The bytes of a stream."""
    found = await rest.get(f"/jobs/{job['id']}/output", **query)
    assert isinstance(found, bytes)
    return found


# --- the record -----------------------------------------------------------------------------------


async def test_the_record_has_exactly_its_members_documented_ones_first(
    rest: Rest, openssh: SshServer
) -> None:
    owner = await rest.device(openssh)
    operation = await rest.script(owner, "echo out; echo err >&2; exit 3", name="restart")
    before = time.time_ns() // 1_000_000

    job = await rest.run(owner, operation, args={"n": 1}, reason="because")

    assert list(job)[: len(DOCUMENTED)] == DOCUMENTED
    assert set(job) - {"start_at"} == {*DOCUMENTED, *FURTHER}
    me = job["user_id"]
    assert re.fullmatch(r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", job["id"])
    assert job["description"] == {"exitCode": 3, "stdout": "out\n", "stderr": "err\n"}
    assert list(job["description"]) == ["exitCode", "stdout", "stderr"]
    assert before <= job["timestamp"] <= time.time_ns() // 1_000_000
    assert job == {
        **job,
        "operation_id": operation["id"],
        "owner_id": owner["id"],
        "owner_type": 1,
        "results": [],
        "process_meta": None,
        "type": "EXECUTE_ACTION",
        "label": f"restart on {owner['name']}",
        "operation": {"name": "restart", "type": "script", "version": 1},
        "transport": "ssh",
        "status": "FINISHED",
        "outcome": "failed",
        "has_errors": True,
        "error": {"code": "exitCode", "message": "exit code 3"},
        "pending_reason": None,
        "delivery": None,
        "run_by": {"id": me, "name": "admin"},
        "data": {
            "args": {"n": 1},
            "entityName": owner["name"],
            "actionName": "restart",
            "reason": "because",
        },
        "cause": "user",
        "queue": "mix",
        "priority": 5,
        "low_priority": False,
        "attempt": 1,
        "cancel": None,
        "output": {"bytes": 8, "truncated": False},
    }
    assert isinstance(job["owner_type"], int)
    assert isinstance(job["timestamp"], int)
    assert isinstance(job["seq"], int)
    for name in ("created_at", "start_date", "end_date", "expires_at"):
        assert MOMENT.fullmatch(job[name]), (name, job[name])
    assert datetime.fromisoformat(job["created_at"]).timestamp() * 1000 == pytest.approx(job["timestamp"])
    assert job["created_at"] <= job["start_date"] <= job["end_date"] < job["expires_at"]
    assert job["waiting"] >= 0
    assert job["duration"] >= 0
    assert await rest.job(job["id"]) == await rest.job(str(job["seq"])) == job


async def test_execute_answers_at_once_with_where_the_job_is(rest: Rest, openssh: SshServer) -> None:
    owner = await rest.device(openssh)
    operation = await rest.script(owner, "sleep 1")

    answer = await rest.call("POST", f"/objects/{owner['id']}/operations/{operation['id']}/execute")
    job = answer.body

    assert answer.status == 202
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert (job["status"], job["outcome"], job["description"]) == ("PENDING", None, None)
    assert (job["start_date"], job["end_date"], job["duration"], job["attempt"]) == (None, None, None, 0)
    assert (await rest.ended(job["id"]))["outcome"] == "succeeded"


async def test_a_wait_that_is_too_short_answers_with_the_job_as_it_is(rest: Rest, openssh: SshServer) -> None:
    owner = await rest.device(openssh)
    operation = await rest.script(owner, "sleep 2")

    job = await rest.execute(owner, operation, wait=0.5)

    assert job["status"] == "RUNNING"
    assert (await rest.ended(job["id"]))["outcome"] == "succeeded"
    await rest.refused(
        "POST",
        f"/objects/{owner['id']}/operations/{operation['id']}/execute",
        status=400,
        code="badRequest",
        query={"wait": 61},
    )


async def test_a_job_stays_with_the_names_it_had_when_its_object_is_gone(
    rest: Rest, openssh: SshServer
) -> None:
    owner = await rest.device(openssh)
    job = await rest.run(owner, await rest.script(owner, "echo kept"))

    assert (await rest.call("DELETE", f"/objects/{owner['id']}")).status == 204

    assert await rest.job(job["id"]) == job
    assert (await rest.get(f"/objects/{owner['id']}/jobs"))["items"] == [job]
    assert await octets(rest, job) == b"kept\n"
    assert (await rest.call("PATCH", f"/jobs/{job['id']}/results", {"late": 1})).status == 200


# --- output, byte by byte -------------------------------------------------------------------------


@pytest.mark.check(22)
async def test_a_mebibyte_of_any_bytes_comes_through_exactly(rest: Rest, server: SshServer) -> None:
    owner = await rest.device(server)
    operation = await rest.script(
        owner, "head -c 1048576 /dev/urandom > /tmp/$$; cat /tmp/$$; md5sum < /tmp/$$ >&2; rm /tmp/$$"
    )

    job = await rest.run(owner, operation)
    data = await octets(rest, job)

    assert len(data) == 1_048_576
    assert hashlib.md5(data).hexdigest() == job["description"]["stderr"].split()[0]
    assert job["output"]["bytes"] == 1_048_576 + len(await octets(rest, job, stream="stderr"))
    assert job["description"]["stdout"] == data.decode(errors="replace")
    for start in (0, 1, 65_535, 65_536, 1_000_000, 1_048_575, 1_048_576, 9_999_999):
        assert await octets(rest, job, **{"from": start}) == data[start:]


async def test_a_mebibyte_of_text_is_in_the_record_whole(rest: Rest, server: SshServer) -> None:
    owner = await rest.device(server)

    job = await rest.run(owner, await rest.script(owner, "yes 0123456789abcde | head -c 1048576"))

    assert job["description"]["stdout"] == "0123456789abcde\n" * 65_536
    assert job["output"] == {"bytes": 1_048_576, "truncated": False}


async def test_of_twenty_mebibytes_head_and_tail_are_kept_and_the_size_is_told(
    rest: Rest, server: SshServer
) -> None:
    owner = await rest.device(server)
    size, cap = 20 * 1024 * 1024, 16 * 1024 * 1024
    operation = await rest.script(owner, "i=0; yes 0123456789abcde | head -c $((20*1024*1024))")

    job = await rest.run(owner, operation, wait=50)
    answer = await rest.call("GET", f"/jobs/{job['id']}/output")

    assert job["output"] == {"bytes": size, "truncated": True}
    [head, tail] = [
        tuple(int(end) for end in part.split("-"))
        for part in answer.headers["iotjobs-output-ranges"].split(",")
    ]
    assert head == (0, cap // 2)
    assert tail[1] == size
    assert size - cap // 2 - 256 * 1024 <= tail[0] <= size - cap // 2
    whole = b"0123456789abcde\n" * (size // 16)
    assert answer.body == whole[: head[1]] + whole[tail[0] :]
    assert await octets(rest, job, **{"from": size - 5}) == whole[-5:]
    assert await octets(rest, job, **{"from": 10 * 1024 * 1024}) == whole[tail[0] :]


async def test_bytes_that_are_no_text_are_replaced_in_the_record_and_exact_below(
    rest: Rest, server: SshServer
) -> None:
    owner = await rest.device(server)
    operation = await rest.script(owner, r"printf 'a\377b\000c\303'; printf '\302\200\n' >&2")

    job = await rest.run(owner, operation)

    assert job["description"] == {"exitCode": 0, "stdout": "a\ufffdb\x00c\ufffd", "stderr": "\x80\n"}
    assert await octets(rest, job) == b"a\xffb\x00c\xc3"
    assert await octets(rest, job, stream="stderr") == b"\xc2\x80\n"


@pytest.mark.parametrize(
    ("text", "stdout", "stderr"),
    [("true", "", ""), ("echo only >&2", "", "only\n"), ("printf 'no newline'", "no newline", "")],
)
async def test_little_output_is_what_it_is(
    rest: Rest, server: SshServer, text: str, stdout: str, stderr: str
) -> None:
    owner = await rest.device(server)

    job = await rest.run(owner, await rest.script(owner, text))

    assert job["description"] == {"exitCode": 0, "stdout": stdout, "stderr": stderr}
    assert job["output"] == {"bytes": len(stdout + stderr), "truncated": False}
    assert await octets(rest, job) == stdout.encode()
    assert await octets(rest, job, stream="stderr") == stderr.encode()


@pytest.mark.parametrize("code", [0, 1, 126, 127, 255])
async def test_an_exit_code_is_the_devices_own(rest: Rest, server: SshServer, code: int) -> None:
    owner = await rest.device(server)

    job = await rest.run(owner, await rest.script(owner, f"echo before; exit {code}"))

    assert job["description"] == {"exitCode": code, "stdout": "before\n", "stderr": ""}
    assert job["outcome"] == ("failed" if code else "succeeded")
    assert job["error"] == ({"code": "exitCode", "message": f"exit code {code}"} if code else None)


@pytest.mark.parametrize(("signal", "number"), [("KILL", 9), ("TERM", 15), ("SEGV", 11)])
async def test_a_death_by_signal_is_a_failure_that_names_it(
    rest: Rest, server: SshServer, signal: str, number: int
) -> None:
    owner = await rest.device(server)

    job = await rest.run(owner, await rest.script(owner, f"echo before; kill -{signal} $$"))

    assert (job["outcome"], job["description"]["stdout"]) == ("failed", "before\n")
    assert job["description"]["exitCode"] == 128 + number
    assert job["error"]["code"] in ("signal", "exitCode")
    assert signal in job["error"]["message"] or str(128 + number) in job["error"]["message"]


@pytest.mark.check(42)
async def test_arguments_reach_the_device_byte_for_byte(rest: Rest, server: SshServer) -> None:
    hostile = [
        "; id",
        "$(id)",
        "`id`",
        "a|b&c",
        "> /tmp/x",
        "-oProxyCommand=id",
        "--",
        "",
        " ",
        "'\"\\",
        "\n\r\t",
        "*?[a]~",
        "ü😀",
        "%s\\n",
    ]
    owner = await rest.device(server, properties={"svc": "a'; echo $(id) #"})
    by_args = await rest.operation(
        owner, "program", path="printf", args=["%s\\0", *(f"{{{{args.v{n}}}}}" for n in range(len(hostile)))]
    )
    by_text = await rest.script(owner, "printf '%s|%s\\n' {{properties.svc}} \"<{{args.v0}}>\"")
    by_stdin = await rest.script(
        owner, 'cat; for a in "$@"; do printf \'%s\\0\' "$a"; done', args=["{{args.v5}}", "{{args.v10}}"]
    )
    args = {f"v{n}": value for n, value in enumerate(hostile)}

    assert await octets(rest, await rest.run(owner, by_args, args=args)) == b"".join(
        value.encode() + b"\0" for value in hostile
    )
    assert (await rest.run(owner, by_text, args=args))["description"]["stdout"] == "a'; echo $(id) #|<; id>\n"
    assert await octets(rest, await rest.run(owner, by_stdin, args=args)) == b"-oProxyCommand=id\0\n\r\t\0"


async def test_what_says_no_timeout_has_the_sites(make_serve: StartServe, openssh: SshServer) -> None:
    serve = make_serve(default_timeout_s="1.5")
    await serve.start()
    async with Rest(serve) as rest:
        owner = await rest.device(openssh)
        short = await rest.run(owner, await rest.script(owner, "sleep 777"))
        long = await rest.run(owner, await rest.script(owner, "sleep 2", timeout_s=60))

    assert (short["outcome"], short["error"]["code"]) == ("timed_out", "timeOut")
    assert "1.5 s" in short["error"]["message"]
    assert long["outcome"] == "succeeded"


@pytest.mark.check(4)
async def test_a_timeout_kills_what_runs_on_the_device_and_says_so(rest: Rest, server: SshServer) -> None:
    owner = await rest.device(server)
    operation = await rest.script(
        owner, "trap '' TERM; echo start; sleep 777 & sleep 777", timeout_s=1, kill_after_s=1
    )

    job = await rest.run(owner, operation)

    assert (job["outcome"], job["error"]["code"]) == ("timed_out", "timeOut")
    assert job["error"]["message"] == "not ended after 1 s; its processes were killed and are gone"
    assert job["description"]["stdout"] == "start\n"
    marker = f"IOTJOBS_JOB_ID={job['id']}".encode()
    assert running_with(marker) == []


def running_with(marker: bytes) -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/environ") if marker in read(path)]


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


# --- lists ----------------------------------------------------------------------------------------


async def test_lists_are_newest_first_filtered_and_paged_without_gap_or_repeat(
    rest: Rest, openssh: SshServer
) -> None:
    owner = await rest.device(openssh)
    good, bad = await rest.script(owner, "true"), await rest.script(owner, "exit 4")
    made = [await rest.run(owner, bad if number % 3 == 0 else good) for number in range(7)]
    path = f"/objects/{owner['id']}/jobs"
    ids = [job["id"] for job in reversed(made)]

    async def found(**query: Any) -> list[str]:
        return [job["id"] for job in (await rest.get("/jobs", owner_id=owner["id"], **query))["items"]]

    assert await found() == ids
    assert [job["id"] for job in (await rest.get(path))["items"]] == ids
    assert (
        await found(outcome="failed") == await found(has_errors="true") == [made[n]["id"] for n in (6, 3, 0)]
    )
    assert await found(has_errors="false") == [made[n]["id"] for n in (5, 4, 2, 1)]
    assert await found(operation_id=good["id"]) == [made[n]["id"] for n in (5, 4, 2, 1)]
    assert await found(status="FINISHED", type="EXECUTE_ACTION") == ids
    assert await found(status="PENDING,RUNNING") == []
    assert await found(outcome="failed,succeeded") == ids
    assert await found(created_from=made[2]["timestamp"], created_to=made[4]["timestamp"]) == ids[2:5]
    assert await found(created_from=made[2]["created_at"]) == ids[:5]
    assert await found(end_from=made[6]["end_date"]) == ids[:1]
    assert await found(start_to=made[0]["start_date"]) == ids[-1:]

    for limit in (1, 3, 7):
        seen, cursor = [], None
        while True:
            page = await rest.get(path, limit=limit, **({"cursor": cursor} if cursor else {}))
            assert len(page["items"]) <= limit
            seen += [job["id"] for job in page["items"]]
            cursor = page["next"]
            if cursor is None:
                break
        assert seen == ids


async def test_a_list_holds_four_kibibytes_of_text_and_says_that_there_is_more(
    rest: Rest, openssh: SshServer
) -> None:
    owner = await rest.device(openssh)
    job = await rest.run(owner, await rest.script(owner, "yes ü | head -c 5001"))

    [listed] = (await rest.get(f"/objects/{owner['id']}/jobs"))["items"]

    assert listed["description"]["stdout"] == "ü\n" * 1365  # 4095 bytes: the next character is not cut
    assert listed["output"] == {"bytes": 5001, "truncated": True}
    assert job["output"] == {"bytes": 5001, "truncated": False}
    assert {**listed, "description": None, "output": None} == {**job, "description": None, "output": None}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"status": "DONE"}, "status"),
        ({"outcome": "good"}, "outcome"),
        ({"type": "X"}, "type"),
        ({"has_errors": "perhaps"}, "has_errors"),
        ({"limit": 0}, "limit"),
        ({"limit": 501}, "limit"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"cursor": base64.urlsafe_b64encode(b"9" * 60 + b":1").decode()}, "cursor"),
        ({"created_from": "yesterday"}, "created_from"),
        ({"end_to": "2026-11-22T10:00:00"}, "end_to"),
        ({"owner": "x"}, "owner"),
    ],
)
async def test_a_wrong_filter_is_named(rest: Rest, query: dict[str, Any], field: str) -> None:
    problem = await rest.refused("GET", "/jobs", status=400, code="badRequest", query=query)

    assert [error["field"] for error in problem["errors"]] == [field]


@pytest.mark.parametrize(
    "query", [{"from": 10**30}, {"from": -1}, {"attempt": 10**30}, {"attempt": 0}, {"stream": "stdin"}]
)
async def test_a_wrong_question_for_output_is_named(
    rest: Rest, openssh: SshServer, query: dict[str, Any]
) -> None:
    owner = await rest.device(openssh)
    job = await rest.run(owner, await rest.script(owner, "echo x"))

    problem = await rest.refused(
        "GET", f"/jobs/{job['id']}/output", status=400, code="badRequest", query=query
    )

    assert [error["field"] for error in problem["errors"]] == list(query)
    assert await octets(rest, job, attempt=2) == b""


@pytest.mark.parametrize("reference", ["x", "-1", "1.5", "0" * 33, "9" * 19, "g" * 32, "%00", "\u0661"])
async def test_what_is_no_job_id_is_a_bad_request_and_an_unknown_one_not_found(
    rest: Rest, reference: str
) -> None:
    encoded = reference if reference == "%00" else quote(reference)
    await rest.refused("GET", f"/jobs/{encoded}", status=400, code="badRequest")
    await rest.refused("GET", f"/jobs/{'0' * 32}", status=404, code="notFound")
    await rest.refused("GET", f"/jobs/{10**17}", status=404, code="notFound")


# --- custom results -------------------------------------------------------------------------------


async def test_users_append_results_in_order_each_with_who_and_when(rest: Rest, openssh: SshServer) -> None:
    owner = await rest.device(openssh)
    job = await rest.run(owner, await rest.script(owner, "true"))
    payloads: list[dict[str, Any]] = [{}, {"a": [1, None, {"b": "ü"}]}, {"n": -1.5e300, "big": 2**53}]

    entries = [(await rest.call("PATCH", f"/jobs/{job['id']}/results", payload)).body for payload in payloads]

    assert [entry["payload"] for entry in entries] == payloads
    assert {entry["by"] for entry in entries} == {job["user_id"]}
    assert [list(entry) for entry in entries] == [["payload", "by", "timestamp"]] * 3
    assert (await rest.job(job["id"]))["results"] == entries
    assert (await rest.job(job["id"]))["status"] == "FINISHED"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"[]", 400, "badRequest"),
        (b"1", 400, "badRequest"),
        (b"", 400, "badRequest"),
        (b"{", 400, "badRequest"),
        (b'{"a":NaN}', 400, "badRequest"),
        (b'{"a":"\\u0000"}', 400, "badRequest"),
        (b'{"a":"\xff"}', 400, "badRequest"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 400, "badRequest"),
        (b'{"a":"' + b"x" * 65_536 + b'"}', 413, "tooLarge"),
        (b'{"a":"' + b"x" * 2 * 1024 * 1024 + b'"}', 413, "tooLarge"),
    ],
    ids=["array", "number", "empty", "cut", "NaN", "NUL", "no UTF-8", "deep", "64 KiB", "2 MiB"],
)
async def test_a_result_that_cannot_be_kept_is_refused_and_leaves_nothing(
    rest: Rest, openssh: SshServer, body: bytes, status: int, code: str
) -> None:
    owner = await rest.device(openssh)
    job = await rest.run(owner, await rest.script(owner, "true"))

    await rest.refused("PATCH", f"/jobs/{job['id']}/results", content=body, status=status, code=code)

    assert (await rest.job(job["id"]))["results"] == []


async def test_the_thousand_and_first_result_is_refused(rest: Rest, openssh: SshServer) -> None:
    owner = await rest.device(openssh)
    job = await rest.run(owner, await rest.script(owner, "true"))
    path = f"/jobs/{job['id']}/results"
    for _ in range(20):
        answers = await asyncio.gather(*(rest.call("PATCH", path, {"n": n}) for n in range(50)))
        assert {answer.status for answer in answers} == {200}

    await rest.refused("PATCH", path, {"n": 1000}, status=400, code="badRequest")

    assert len((await rest.job(job["id"]))["results"]) == 1000


# --- who sees what --------------------------------------------------------------------------------


@pytest.mark.check(28)
@pytest.mark.parametrize("role", ["viewer", "operator", "engineer"])
async def test_others_execute_and_see_only_the_jobs_that_they_started(
    rest: Rest, openssh: SshServer, shared_serve: Serve, role: str
) -> None:
    owner = await rest.device(openssh)
    operation = await rest.script(owner, "echo {{user.login}}")
    foreign = await rest.run(owner, operation)
    user, token = await rest.user(role)

    async with Rest(shared_serve, token) as me:
        mine = await me.run(owner, operation)
        assert mine["description"]["stdout"] == f"{user['login']}\n"
        assert (mine["user_id"], mine["run_by"]) == (user["id"], {"id": user["id"], "name": user["login"]})
        assert await me.job(mine["id"]) == mine
        assert (await me.call("PATCH", f"/jobs/{mine['id']}/results", {"by": "me"})).status == 200
        assert [job["id"] for job in await me.all_jobs()] == [mine["id"]]
        assert [job["id"] for job in (await me.get(f"/objects/{owner['id']}/jobs"))["items"]] == [mine["id"]]
        assert await octets(me, mine) == f"{user['login']}\n".encode()

        for reference in (foreign["id"], foreign["seq"]):
            for method, path, body in (
                ("GET", f"/jobs/{reference}", None),
                ("GET", f"/jobs/{reference}/output", None),
                ("PATCH", f"/jobs/{reference}/results", {"by": "me"}),
            ):
                await me.refused(method, path, body, status=404, code="notFound")
        for path in (f"/objects/{owner['id']}/check", f"/objects/{owner['id']}/enrol"):
            await me.refused("POST", path, status=403, code="notAllowed")

    assert (await rest.job(foreign["id"]))["results"] == []
    assert (await rest.job(mine["id"]))["results"][0]["by"] == user["id"]


async def test_a_body_is_not_read_before_the_caller_is_known(shared_serve: Serve) -> None:
    async with Rest(shared_serve, "1-" + "b" * 40) as stranger:
        for method, path in (
            ("POST", f"/objects/{'0' * 32}/operations/{'0' * 32}/execute"),
            ("PATCH", f"/jobs/{'0' * 32}/results"),
        ):
            await stranger.refused(method, path, content=b"{broken", status=401, code="notAuthenticated")


async def test_an_idempotency_key_gives_the_same_job_and_refuses_another_body(
    rest: Rest, openssh: SshServer
) -> None:
    owner = await rest.device(openssh)
    operation = await rest.script(owner, "true")
    path = f"/objects/{owner['id']}/operations/{operation['id']}/execute"
    key = new_name("key")

    answers = await asyncio.gather(
        *(rest.call("POST", path, {"priority": 7}, Idempotency_Key=key) for _ in range(50))
    )

    assert {answer.status for answer in answers} == {202}
    assert len({answer.body["id"] for answer in answers}) == 1
    await rest.refused(
        "POST", path, {"priority": 6}, Idempotency_Key=key, status=422, code="idempotencyMismatch"
    )
    # As every caller with an unset variable would send it: all of them would get the first one's job.
    await rest.refused("POST", path, {}, Idempotency_Key="", status=400, code="badRequest")
    assert len((await rest.get(f"/objects/{owner['id']}/jobs"))["items"]) == 1


# --- links, scripts, moments ----------------------------------------------------------------------


@pytest.mark.parametrize("run_on", ["source", "target"])
async def test_a_links_operation_runs_on_the_end_that_was_chosen(
    rest: Rest, openssh: SshServer, dropbear: SshServer, run_on: str
) -> None:
    ends = {"source": await rest.device(openssh), "target": await rest.device(dropbear)}
    link = await rest.make(
        "/links", name=new_name("link"), source=ends["source"]["id"], target=ends["target"]["id"]
    )
    operation = await rest.script(
        link, 'echo "$SSH_CONNECTION" {{source.name}} {{target.id}} {{name}}', owners="links", run_on=run_on
    )

    job = await rest.run(link, operation, owners="links")

    port = {"source": openssh.port, "target": dropbear.port}[run_on]
    assert (job["owner_type"], job["owner_id"]) == (2, link["id"])
    assert job["label"] == f"{operation['name']} on {link['name']}"
    connection, _, names = job["description"]["stdout"].strip().partition(f" {port} ")
    assert connection.startswith("127.0.0.1 ")
    assert names == f"{ends['source']['name']} {ends['target']['id']} {link['name']}"
    assert (await rest.get(f"/links/{link['id']}/jobs"))["items"] == [job]


async def test_the_script_of_the_repository_is_frozen_when_the_job_is_made(
    rest: Rest, openssh: SshServer
) -> None:
    owner = await rest.device(openssh)
    script = await rest.make(
        "/scripts", name=new_name("script"), interpreter="bash", text="echo one $BASH_VERSION"
    )
    operation = await rest.operation(owner, "script", script_id=script["id"])
    soon = (datetime.now(UTC) + timedelta(seconds=1.5)).isoformat()

    frozen = await rest.execute(owner, operation, start_at=soon)
    changed = await rest.call("PATCH", f"/scripts/{script['id']}", {"text": "echo two", "interpreter": "sh"})
    assert changed.status == 200
    later = await rest.run(owner, operation)

    assert later["description"]["stdout"] == "two\n"
    assert re.fullmatch(r"one 5\..*\n", (await rest.ended(frozen["id"]))["description"]["stdout"])


async def test_a_job_for_later_waits_blocks_nobody_and_starts_on_time(rest: Rest, openssh: SshServer) -> None:
    owner = await rest.device(openssh)
    operation = await rest.script(owner, "date +%s%3N")
    start = datetime.now(UTC) + timedelta(seconds=2)

    waiting = await rest.execute(owner, operation, start_at=start.isoformat())
    assert (waiting["status"], waiting["pending_reason"]) == ("PENDING", "start_at")
    assert (await rest.run(owner, operation))["outcome"] == "succeeded"

    job = await rest.ended(waiting["id"])
    assert datetime.fromisoformat(job["start_date"]) >= start
    assert datetime.fromisoformat(job["start_date"]) - start < timedelta(seconds=3)
    assert job["waiting"] >= 1500


@pytest.mark.parametrize(
    "start_at",
    [
        "9999-12-31T23:59:59Z",
        "9999-12-31T23:59:59-14:00",
        "999999999999999",
        "2026-11-22T10:00:00",
        "soon",
        5,
    ],
)
async def test_a_start_that_no_calendar_holds_is_refused(
    rest: Rest, openssh: SshServer, start_at: Any
) -> None:
    owner = await rest.device(openssh)
    operation = await rest.script(owner, "true")

    problem = await rest.refused(
        "POST",
        f"/objects/{owner['id']}/operations/{operation['id']}/execute",
        {"start_at": start_at},
        status=400,
        code="badRequest",
    )

    assert [error["field"] for error in problem["errors"]] == ["start_at"]
    assert (await rest.get(f"/objects/{owner['id']}/jobs"))["items"] == []


async def test_a_job_whose_time_to_live_ends_while_it_waits_expires(rest: Rest, openssh: SshServer) -> None:
    owner = await rest.device(openssh)
    blocker = await rest.execute(owner, await rest.script(owner, "sleep 3"))
    operation = await rest.script(owner, "true")

    job = await rest.ended((await rest.execute(owner, operation, ttl_s=1))["id"])

    assert (job["status"], job["outcome"], job["attempt"]) == ("FINISHED", "expired", 0)
    assert job["error"] == {
        "code": "expired",
        "message": "still PENDING when its time to live ended (waiting: lane)",
    }
    assert (job["start_date"], job["duration"], job["description"]) == (None, None, None)
    assert (await rest.ended(blocker["id"]))["outcome"] == "succeeded"


async def test_a_job_that_waits_for_its_next_try_expires_and_disturbs_nobody(rest: Rest) -> None:
    owner = await unreachable(rest)
    operation = await rest.script(
        owner, "true", ttl_s=1.5, retry={"attempts": 9, "on": ["unreachable"], "backoff_s": 60}
    )

    job = await rest.execute(owner, operation)
    waiting = await rest.job_that(job["id"], lambda job: job["pending_reason"] == "retry")
    assert (waiting["status"], waiting["attempt"]) == ("PENDING", 1)
    job = await rest.ended(job["id"])

    assert (job["outcome"], job["attempt"]) == ("expired", 1)
    assert job["error"]["message"].endswith("(waiting: retry)")


async def unreachable(rest: Rest) -> dict[str, Any]:
    """An object whose host refuses every connection."""
    address = {
        "host": "127.0.0.1",
        "port": free_port(),
        "credential_id": await key(rest),
        "host_key": HOST_KEY,
    }
    return await rest.thing(ssh=address)


async def key(rest: Rest, **members: Any) -> str:
    """The id of a password credential."""
    given = {"name": new_name("login"), "kind": "password", "username": "root", "password": "x"}
    return str((await rest.make("/credentials", **{**given, **members}))["id"])


@pytest.mark.parametrize("type", ["script", "program"])
async def test_this_host_runs_nothing_unless_the_site_allows_it(rest: Rest, type: str) -> None:
    owner = await rest.thing()
    parameters = {"text": "true"} if type == "script" else {"path": "true"}

    problem = await rest.refused(
        "POST",
        f"/objects/{owner['id']}/operations",
        {"name": "local", "type": type, "via": "local", "parameters": parameters},
        status=400,
        code="badRequest",
    )

    assert [error["field"] for error in problem["errors"]] == ["via"]
    assert "IOTJOBS_ALLOW_LOCAL" in problem["detail"]


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.check(41)
async def test_a_secret_is_nowhere_but_on_the_device(make_serve: StartServe, openssh: SshServer) -> None:
    serve = make_serve(log_level="debug")
    await serve.start()
    canary = "Canary-7f3a\"'\\é" + hashlib.sha256(str(time.time_ns()).encode()).hexdigest()[:16]
    password = "Password-" + hashlib.sha256(canary.encode()).hexdigest()[:16]
    async with Rest(serve) as rest:
        owner = await rest.device(openssh)
        await key(rest, password=password)
        operations = [
            await rest.operation(
                owner,
                "program",
                path="sh",
                args=["-c", 'printf %s "$1" | md5sum; sleep 0.2', "sh", "{{args.pin}}"],
                secret_args=["pin"],
            ),
            await rest.script(owner, "printf %s {{args.pin}} | md5sum", secret_args=["pin"]),
            await rest.script(
                owner,
                'printf %s "$PIN" | md5sum',
                secret_args=["pin"],
                parameters={"text": 'printf %s "$PIN" | md5sum', "env": {"PIN": "{{args.pin}}"}},
            ),
        ]
        waiting = await rest.execute(
            owner,
            operations[1],
            args={"pin": canary},
            start_at=(datetime.now(UTC) + timedelta(seconds=2)).isoformat(),
        )
        assert canary not in json.dumps(waiting, ensure_ascii=False)
        assert waiting["data"]["args"] == {"pin": "******"}
        jobs = [await rest.run(owner, operation, args={"pin": canary, "n": 1}) for operation in operations]
        message = await rest.operation(
            owner, "mqtt", secret_args=["pin"], topic="line/1", message="{{args.pin}}"
        )
        sent = await rest.run(owner, message, args={"pin": canary})
        await serve.restart()  # what a start reads and rewrites is looked at, too
        jobs.append(await rest.ended(waiting["id"]))

        assert sent["description"] == {"topic": "line/1", "message": "******"}
        expected = hashlib.md5(canary.encode()).hexdigest()
        assert [job["description"]["stdout"].split()[0] for job in jobs] == [expected] * 4
        shown = json.dumps([await rest.all_jobs(), await rest.get("/credentials")], ensure_ascii=False)
        for refused in (
            await rest.call(
                "POST",
                f"/objects/{owner['id']}/operations/{operations[0]['id']}/execute",
                {"args": {"pin": canary, "x": 1}, "nonsense": canary},
            ),
            await rest.call(
                "POST",
                f"/objects/{owner['id']}/operations/{message['id']}/execute",
                {"args": {"pin": "\x01" + canary}, "ask": canary},
            ),
        ):
            shown += json.dumps(refused.body, ensure_ascii=False)
    await serve.stop()
    places = {
        "answers": shown.encode(),
        "server's log": openssh.log.encode(),
        "out": read(serve.folder / "out"),
    }
    places |= {str(path): read(path) for path in serve.folder.rglob("*") if path.is_file()}

    assert len(places) > 5
    assert any(path.endswith("iotjobs.db") for path in places)
    for secret in (canary, password, ADMIN_TOKEN.partition("-")[2]):
        for form in forms(secret):
            assert [place for place, content in places.items() if form in content] == [], form


def forms(secret: str) -> set[bytes]:
    """A secret as it could be written down; also its halves, as chunks would have them."""
    raw = secret.encode()
    written = {raw, json.dumps(secret)[1:-1].encode(), quote(secret).encode(), raw.hex().encode(), raw[-16:]}
    written |= {base64.b64encode(b"x" * n + raw)[4:-4] for n in range(3)}
    return written


async def test_the_secrets_of_a_job_are_erased_when_it_has_ended(
    make_serve: StartServe, openssh: SshServer
) -> None:
    import sqlite3

    serve = make_serve()
    await serve.start()
    async with Rest(serve) as rest:
        owner = await rest.device(openssh)
        operation = await rest.script(owner, "echo {{args.pin}}", secret_args=["pin"])
        ended = await rest.run(owner, operation, args={"pin": "1234"})
        held = await rest.execute(
            owner,
            operation,
            args={"pin": "1234"},
            start_at=(datetime.now(UTC) + timedelta(hours=1)).isoformat(),
        )
    await serve.stop()
    database = sqlite3.connect(serve.data / "iotjobs.db")
    kept = dict(database.execute("SELECT job_id, secret IS NOT NULL FROM plan"))
    database.close()

    assert kept == {ended["id"]: 0, held["id"]: 1}


# --- bad input: each has its code and its field, and leaves nothing -------------------------------


async def test_an_unknown_object_or_operation_or_anothers_is_not_found(
    rest: Rest, openssh: SshServer
) -> None:
    owner, other = await rest.device(openssh), await rest.thing()
    operation = await rest.script(owner, "true")
    none = "0" * 32

    for object_id, operation_id, said in (
        (none, operation["id"], f"there is no object {none}"),
        (owner["id"], none, f"there is no operation {none}"),
        (other["id"], operation["id"], "it is an operation of another owner"),
    ):
        problem = await rest.refused(
            "POST", f"/objects/{object_id}/operations/{operation_id}/execute", status=404, code="notFound"
        )
        assert said in problem["detail"]
    await rest.refused(
        "POST", f"/links/{owner['id']}/operations/{operation['id']}/execute", status=404, code="notFound"
    )
    await rest.refused("GET", f"/objects/{none}/jobs", status=404, code="notFound")
    assert (await rest.get(f"/objects/{owner['id']}/jobs"))["items"] == []


DEEP = b'{"args":' * 50_000 + b"{}" + b"}" * 50_000
BAD_BODIES: dict[str, tuple[bytes, int, str, list[str]]] = {
    "missing macro": (b"{}", 400, "badRequest", ["parameters.args[0]"]),
    "null body": (b"null", 400, "badRequest", []),
    "array": (b"[]", 400, "badRequest", []),
    "no JSON": (b"{,}", 400, "badRequest", []),
    "unknown member": (b'{"argz":{}}', 400, "badRequest", ["argz"]),
    "wrong type": (b'{"priority":"high"}', 400, "badRequest", ["priority"]),
    "wrong types": (b'{"args":[],"ttl_s":"1"}', 400, "badRequest", ["args", "ttl_s"]),
    "out of range": (b'{"priority":10}', 400, "badRequest", ["priority"]),
    "no time": (b'{"timeout_s":0}', 400, "badRequest", ["timeout_s"]),
    "for ever": (b'{"ttl_s":1e300}', 400, "badRequest", ["ttl_s"]),
    "NUL": (b'{"args":{"v":"a\\u0000b"}}', 400, "badRequest", ["args.v"]),
    "NUL in a name": (b'{"args":{"v\\u0000":1}}', 400, "badRequest", ["args"]),
    "long reason": (b'{"reason":"' + b"x" * 1001 + b'"}', 400, "badRequest", ["reason"]),
    "2 MiB": (b'{"reason":"' + b"x" * 2 * 1024 * 1024 + b'"}', 413, "tooLarge", []),
    "deep": (DEEP, 400, "badRequest", []),
    "deeper": (b"[" * 100_000, 400, "badRequest", []),
    "no UTF-8": (b'{"reason":"\xff"}', 400, "badRequest", []),
}


@pytest.mark.parametrize("name", list(BAD_BODIES))
async def test_a_bad_body_is_refused_with_its_field_and_makes_no_job(
    rest: Rest, openssh: SshServer, name: str
) -> None:
    body, status, code, fields = BAD_BODIES[name]
    owner = await rest.device(openssh)
    operation = await rest.operation(owner, "program", path="echo", args=["{{args.v}}"])

    problem = await rest.refused(
        "POST",
        f"/objects/{owner['id']}/operations/{operation['id']}/execute",
        content=body,
        status=status,
        code=code,
    )

    assert [error["field"] for error in problem["errors"]] == fields
    assert (await rest.get(f"/objects/{owner['id']}/jobs"))["items"] == []


@pytest.mark.parametrize(
    ("operation", "field"),
    [
        ({"parameters": {"text": "echo {{nonsense}}"}}, "parameters.text"),
        ({"parameters": {"text": "true"}, "name": "x" * 10_000}, "name"),
        ({"parameters": {"text": "true"}, "name": "a\x00b"}, "name"),
        ({"parameters": {"text": "true", "unknown": 1}}, "parameters.unknown"),
        ({"parameters": {"text": 5}}, "parameters.text"),
    ],
)
async def test_an_operation_that_cannot_be_is_refused_by_its_field(
    rest: Rest, operation: dict[str, Any], field: str
) -> None:
    owner = await rest.thing()

    problem = await rest.refused(
        "POST",
        f"/objects/{owner['id']}/operations",
        {"name": "op", "type": "script", **operation},
        status=400,
        code="badRequest",
    )

    assert [error["field"] for error in problem["errors"]] == [field]
    assert (await rest.get(f"/objects/{owner['id']}/operations"))["items"] == []


async def test_an_object_with_what_cannot_be_is_refused_and_not_there(rest: Rest) -> None:
    for members, field in (
        ({"name": "x" * 10_000}, "name"),
        ({"name": "a", "ssh": {"host": "h", "credential_id": "0" * 32}}, "ssh.credential_id"),
        ({"name": "a", "properties": {"p": "\x00"}}, "properties.p"),
    ):
        problem = await rest.refused("POST", "/objects", members, status=400, code="badRequest")
        assert [error["field"] for error in problem["errors"]] == [field]


@pytest.mark.check(21)
async def test_a_device_that_cannot_be_reached_fails_with_what_is_wrong(
    rest: Rest, openssh: SshServer, dropbear: SshServer
) -> None:
    wrong_key = dropbear.client_key
    credential = await rest.make(
        "/credentials", name=new_name("login"), kind="ssh_key", username="root", private_key=wrong_key
    )
    logins = len(openssh.log.split("Accepted publickey"))
    for ssh, outcome, code, said in (
        ({"port": free_port()}, "failed", "unreachable", "cannot be reached: Connection refused"),
        ({"host": "nowhere.invalid"}, "failed", "unreachable", "nowhere.invalid:"),
        ({"credential_id": credential["id"]}, "failed", "credentialsRefused", "refused the login"),
        ({"host_key": dropbear.host_keys[0]}, "rejected", "hostKeyChanged", "trusted is SHA256:"),
        ({"host_key": None}, "rejected", "hostKeyUnknown", "scan it"),
        ({"credential_id": None}, "failed", "credentialsRefused", "set ssh.credential_id"),
    ):
        owner = await rest.device(openssh, ssh=ssh)

        job = await rest.run(owner, await rest.script(owner, "echo never"))

        assert (job["outcome"], job["error"]["code"]) == (outcome, code), job["error"]
        assert said in job["error"]["message"]
        assert job["description"] is None
        assert job["has_errors"] is True
    assert len(openssh.log.split("Accepted publickey")) == logins


async def test_what_is_unreachable_is_tried_as_often_as_asked_and_then_fails(rest: Rest) -> None:
    owner = await unreachable(rest)
    operation = await rest.script(
        owner, "true", retry={"attempts": 3, "on": ["unreachable"], "backoff_s": 0.2}
    )

    job = await rest.run(owner, operation)

    assert (job["outcome"], job["attempt"], job["error"]["code"]) == ("failed", 3, "unreachable")


async def test_the_way_to_a_device_is_tested_step_by_step(rest: Rest, openssh: SshServer) -> None:
    owner = await rest.device(openssh)
    closed = await rest.device(openssh, ssh={"port": free_port()})

    good = (await rest.call("POST", f"/objects/{owner['id']}/check")).body
    bad = (await rest.call("POST", f"/objects/{closed['id']}/check")).body
    scanned = (await rest.call("POST", f"/objects/{owner['id']}/host-key/scan")).body

    assert good["ok"] is True
    assert all(step["ok"] and step["ms"] >= 0 for step in good["steps"])
    assert bad["ok"] is False
    assert openssh.host_keys[0] in [key["host_key"] for key in scanned["keys"]]
    await rest.refused("POST", f"/objects/{closed['id']}/host-key/scan", status=503, code="notReady")
    nothing = await rest.thing()
    for path in ("check", "host-key/scan"):
        problem = await rest.refused(
            "POST", f"/objects/{nothing['id']}/{path}", status=400, code="badRequest"
        )
        assert problem["errors"][0]["field"].startswith("ssh")
    await rest.refused("POST", f"/objects/{nothing['id']}/enrol", status=400, code="badRequest")


async def test_jobs_of_one_device_run_one_at_a_time_unless_they_may_run_together(
    rest: Rest, openssh: SshServer, tmp_path: Path
) -> None:
    owner = await rest.device(openssh)
    mark = tmp_path / "inside"
    alone = await rest.script(owner, f"mkdir {mark} || exit 9; sleep 0.1; rmdir {mark}")
    together = await rest.script(owner, "sleep 1", concurrent=True)

    jobs = await asyncio.gather(*(rest.execute(owner, alone, wait=15) for _ in range(8)))
    assert {job["outcome"] for job in jobs} == {"succeeded"}
    starts = sorted(jobs, key=lambda job: job["start_date"])
    assert [job["seq"] for job in starts] == sorted(job["seq"] for job in jobs)
    jobs = await asyncio.gather(*(rest.execute(owner, together, wait=15) for _ in range(5)))
    assert max(job["start_date"] for job in jobs) < min(job["end_date"] for job in jobs)


async def test_a_higher_priority_runs_before_what_waited_longer(rest: Rest, openssh: SshServer) -> None:
    owner = await rest.device(openssh)
    await rest.execute(owner, await rest.script(owner, "sleep 1"))
    operation = await rest.script(owner, "true")
    asked = [{"priority": 5}, {"low_priority": True, "priority": 9}, {"priority": 2}, {"priority": 8}]

    jobs = [await rest.execute(owner, operation, **body) for body in asked]
    assert [job["pending_reason"] for job in jobs] == ["lane"] * 4
    done = [await rest.ended(job["id"]) for job in jobs]

    order = sorted(range(4), key=lambda number: done[number]["start_date"])
    assert order == [3, 0, 2, 1]


async def test_readiness_and_life_are_public_and_nothing_else_is(shared_serve: Serve) -> None:
    import httpx2

    async with httpx2.AsyncClient(base_url=shared_serve.url) as client:
        ready = await eventually(lambda: client.get("/readyz"))
        assert (ready.status_code, ready.json()) == (200, {"status": "ready", "reasons": {}})
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        for path in ("/api/v1/jobs", "/api/v1/openapi.json", f"/api/v1/jobs/{'0' * 32}/output"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (401, "notAuthenticated")
