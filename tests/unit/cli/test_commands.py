from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from iotjobs.cli.commands import pairs
from iotjobs.cli.exitcodes import ExitCode
from iotjobs.program import app
from tests.services.api import Reply, Seen, Site, job, problem
from tests.services.programs import free_port

A, B = "a" * 32, "b" * 32


def invoke(site: Site | str, *arguments: str, **environment: str) -> Result:
    url = site if isinstance(site, str) else site.url
    return CliRunner(env={"IOTJOBS_URL": url, "IOTJOBS_TOKEN": "1-abc", **environment}).invoke(
        app, ["run", *arguments]
    )


def answering(**outcomes: dict[str, Any]) -> Any:
    """An execute that answers by the object: `a` and `b`."""

    def execute(seen: Seen) -> Reply:
        return Reply(outcomes[seen.path.split("/")[4][0]], 200)

    return execute


# --- one test for each exit code ------------------------------------------------------------------


def test_0_the_job_succeeded(site: Site) -> None:
    result = invoke(site, "restart", "press-057", "--wait")

    assert result.exit_code == ExitCode.OK
    assert result.stdout == "restart on press-1\tsucceeded\t0\tdone\n"
    assert site.seen[0].headers["authorization"] == "Bearer 1-abc"


def test_0_the_job_was_taken(site: Site) -> None:
    site.execute = lambda _: Reply(job(None, status="PENDING", description=None), 202)
    result = invoke(site, "restart", "press-057")

    assert (result.exit_code, result.stderr) == (ExitCode.OK, "")
    assert result.stdout == f"restart on press-1\tPENDING\t{1:032x}\n"
    assert "wait" not in site.requests("POST", "/execute")[0].query


@pytest.mark.parametrize("outcome", ["failed", "timed_out", "rejected", "expired", "canceled"])
def test_1_the_job_did_not_succeed(site: Site, outcome: str) -> None:
    said = {"exitCode": 3, "stdout": "", "stderr": "no such unit\n"}
    site.execute = lambda _: Reply(job(outcome, description=said))
    result = invoke(site, "restart", "press-057", "--wait")

    assert result.exit_code == ExitCode.FAILED
    assert result.stdout == f"restart on press-1\t{outcome}\t3\tno such unit\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["restart"],
        ["restart", "press-057", "--what"],
        ["restart", "press-057", "--arg", "unit"],
        ["restart", "press-057", "--ask", "=nginx"],
        ["restart", "press-057", "--arg", "unit=a", "--arg", "unit=b"],
        ["restart", "press-057", "--timeout", "5"],
        ["restart", "press-057", "--wait", "--timeout", "-1"],
        ["restart", "press-057", "--url", "jobs.example.org"],
        ["restart", "press-057", "--token", "1-abc\n"],
        ["restart", "press-\udcff"],
    ],
    ids=" ".join,
)
def test_2_the_command_is_wrong(site: Site, arguments: list[str]) -> None:
    result = invoke(site, *arguments)

    assert (result.exit_code, result.stdout, site.seen) == (ExitCode.USAGE, "", [])
    assert result.stderr


def test_2_the_server_finds_a_value_wrong(site: Site) -> None:
    errors = [{"field": "args.unit", "message": "this macro has no value"}]
    site.execute = lambda _: problem(400, "badRequest", "something is missing", errors=errors)
    result = invoke(site, "restart", "press-057", "--wait")

    assert result.exit_code == ExitCode.USAGE
    assert "press-057: something is missing" in result.stderr
    assert "args.unit: this macro has no value" in result.stderr


def test_2_several_objects_have_the_name(site: Site) -> None:
    items = [{"id": A, "name": "press"}, {"id": B, "name": "press"}]
    site.override = lambda _: Reply({"items": items, "next": None})
    result = invoke(site, "restart", "press")

    assert result.exit_code == ExitCode.USAGE
    assert A in result.stderr
    assert B in result.stderr


@pytest.mark.parametrize(
    ("operation", "named", "said"),
    [
        ("restart", ["press-057", "press-999"], "no object or link press-999"),
        ("reboot", ["press-057"], "press-057 has no operation reboot; it has: read log, restart"),
        ("restart", ["c" * 32], "no object or link cccc"),
    ],
)
def test_3_not_found_and_nothing_was_run(site: Site, operation: str, named: list[str], said: str) -> None:
    result = invoke(site, operation, *named, "--wait")

    assert (result.exit_code, result.stdout) == (ExitCode.NOT_FOUND, "")
    assert said in result.stderr
    assert site.requests("POST", "/execute") == []


@pytest.mark.parametrize(("status", "code"), [(401, "notAuthenticated"), (403, "notAllowed")])
def test_4_not_authenticated_or_not_allowed(site: Site, status: int, code: str) -> None:
    site.override = lambda _: problem(status, code, "who are you?")
    result = invoke(site, "restart", "press-057")

    assert result.exit_code == ExitCode.NOT_ALLOWED
    assert "who are you?" in result.stderr
    assert ("IOTJOBS_TOKEN" in result.stderr) is (status == 401)


@pytest.mark.parametrize(("status", "code"), [(409, "conflict"), (422, "idempotencyMismatch")])
def test_5_conflict(site: Site, status: int, code: str) -> None:
    site.execute = lambda _: problem(status, code, "being changed")

    assert invoke(site, "restart", "press-057").exit_code == ExitCode.CONFLICT


def test_6_nobody_listens() -> None:
    result = invoke(f"http://127.0.0.1:{free_port()}", "restart", "press-057")

    assert result.exit_code == ExitCode.UNREACHABLE
    assert "IOTJOBS_URL" in result.stderr


@pytest.mark.parametrize(
    "reply", [problem(503, "notReady", "the store does not answer"), Reply(b"<p>", kind="text/html")]
)
def test_6_the_server_cannot_take_it(site: Site, reply: Reply) -> None:
    site.override = lambda _: reply

    assert invoke(site, "restart", "press-057").exit_code == ExitCode.UNREACHABLE


def test_7_timed_out_waiting(site: Site) -> None:
    running = job(None, status="RUNNING", description=None)
    site.execute = lambda _: Reply(running, 202)
    site.jobs = lambda _: Reply(running)
    result = invoke(site, "restart", "press-057", "--wait", "--timeout", "0.001")

    assert result.exit_code == ExitCode.TIMED_OUT
    assert result.stdout == "restart on press-1\tRUNNING\t-\t\n"
    assert f"it goes on: restart on press-1, job {1:032x}" in result.stderr


def test_8_some_succeeded(site: Site) -> None:
    site.execute = answering(a=job(), b=job("failed", number=2))
    result = invoke(site, "restart", "press-057", "press-058", "--wait")

    assert result.exit_code == ExitCode.PARTIAL
    assert sorted(result.stdout.splitlines()) == [
        "restart on press-1\tsucceeded\t0\tdone",
        "restart on press-2\tfailed\t0\tdone",
    ]


def test_9_the_outcome_is_unknown(site: Site) -> None:
    error = {"code": "linkLost", "message": "the connection was cut"}
    site.execute = lambda _: Reply(job("lost", description=None, error=error))
    result = invoke(site, "restart", "press-057", "--wait")

    assert result.exit_code == ExitCode.LOST
    assert result.stdout == "restart on press-1\tlost\t-\tthe connection was cut\n"


def test_130_interrupted(site: Site, mocker) -> None:
    site.execute = lambda _: Reply(job(None, status="RUNNING", description=None), 202)
    mocker.patch("iotjobs.cli.running.sleep", side_effect=KeyboardInterrupt)
    result = invoke(site, "restart", "press-057", "--wait")

    assert (result.exit_code, result.stdout) == (ExitCode.INTERRUPTED, "")
    assert f"it goes on: restart on press-1, job {1:032x}" in result.stderr


# --- what is asked and what is told ---------------------------------------------------------------


def test_an_authority_of_ones_own_is_believed_and_no_other(tls_site: Site, certificates: Path) -> None:
    believed = invoke(tls_site, "restart", "press-057", "--wait", "--ca-file", str(certificates / "ca.pem"))
    assert (believed.exit_code, believed.stderr) == (ExitCode.OK, "")

    unknown = invoke(tls_site, "restart", "press-057", "--wait")
    assert unknown.exit_code == ExitCode.UNREACHABLE
    assert "certificate" in unknown.stderr
    assert len(tls_site.requests("POST", "/execute")) == 1


@pytest.mark.parametrize("name", ["key.pem", "missing.pem"])
def test_2_the_file_of_certificates_holds_none(tls_site: Site, certificates: Path, name: str) -> None:
    result = invoke(tls_site, "restart", "press-057", "--ca-file", str(certificates / name))

    assert (result.exit_code, tls_site.seen) == (ExitCode.USAGE, [])
    assert f"{name} holds no certificates that can be read" in result.stderr


def test_values_are_handed_on(site: Site) -> None:
    arguments = ["--arg", "unit=a=b", "--arg", "n=1", "--ask", "why=", "--idempotency-key", "k-1"]
    invoke(site, "restart", "press-057", *arguments)

    [seen] = site.requests("POST", "/execute")
    assert seen.body == {"args": {"unit": "a=b", "n": "1"}, "ask": {"why": ""}}
    assert seen.headers["idempotency-key"] == "k-1"


def test_every_command_has_a_key_of_its_own(site: Site) -> None:
    for _ in range(2):
        invoke(site, "restart", "press-057")

    keys = [seen.headers["idempotency-key"] for seen in site.requests("POST", "/execute")]
    assert len(set(keys)) == 2


def test_an_object_named_twice_runs_once(site: Site) -> None:
    invoke(site, "op-1", "press-057", A, "press-057")

    assert len(site.requests("POST", "/execute")) == 1


def test_a_name_that_looks_like_an_id_is_found(site: Site) -> None:
    site.objects["c" * 32] = A

    def override(seen: Seen) -> Reply | None:
        return problem(404, "notFound") if seen.path.endswith("c" * 32) else None

    site.override = override
    assert invoke(site, "restart", "c" * 32).exit_code == ExitCode.OK


@pytest.mark.parametrize("named", ["line-1", "d" * 32])
def test_a_links_operation_is_run_as_an_objects(site: Site, named: str) -> None:
    result = invoke(site, "restart", named, "press-057", "--wait")

    assert result.exit_code == ExitCode.OK
    paths = {seen.path for seen in site.requests("POST", "/execute")}
    assert paths == {
        f"/api/v1/links/{'d' * 32}/operations/op-1/execute",
        f"/api/v1/objects/{A}/operations/op-1/execute",
    }


def test_an_object_comes_before_a_link_of_its_name(site: Site) -> None:
    site.links["press-057"] = "e" * 32
    invoke(site, "restart", "press-057")
    invoke(site, "restart", "e" * 32)

    folders = [seen.path.split("/")[3] for seen in site.requests("POST", "/execute")]
    assert folders == ["objects", "links"]


def test_2_several_links_have_the_name(site: Site) -> None:
    items = [{"id": A, "name": "line"}, {"id": B, "name": "line"}]
    site.override = lambda seen: Reply({"items": items, "next": None}) if "links" in seen.path else None
    result = invoke(site, "restart", "line")

    assert (result.exit_code, "2 links are called line" in result.stderr) == (ExitCode.USAGE, True)


def test_objects_start_side_by_side(site: Site) -> None:
    both = threading.Barrier(2)

    def execute(seen: Seen) -> Reply:
        both.wait(10)  # one after the other would never get through
        return answering(a=job(), b=job(number=2))(seen)

    site.execute = execute
    assert invoke(site, "restart", "press-057", "press-058", "--wait").exit_code == ExitCode.OK


def test_a_job_that_goes_on_is_followed_to_its_end(site: Site, mocker) -> None:
    mocker.patch("iotjobs.cli.running.sleep")
    running = job(None, status="RUNNING", description=None)
    looks = [Reply(running), Reply(cut=True), Reply(running), Reply(job("failed"))]
    site.execute = lambda _: Reply(running, 202)
    site.jobs = lambda _: looks.pop(0)
    result = invoke(site, "restart", "press-057", "--wait")

    assert result.exit_code == ExitCode.FAILED
    assert result.stdout == "restart on press-1\tfailed\t0\tdone\n"
    assert f"started restart on press-1: job {1:032x}" in result.stderr


def test_json_is_one_list_in_the_order_of_the_objects(site: Site) -> None:
    site.execute = answering(a=job(), b=job("failed", number=2, label="bell \x07"))
    result = invoke(site, "restart", "press-058", "press-057", "--wait", "--json")

    assert [record["label"] for record in json.loads(result.stdout)] == ["bell \x07", "restart on press-1"]
    assert "\x07" not in result.stdout


def test_control_characters_of_a_device_do_not_reach_the_terminal(site: Site) -> None:
    said = {"exitCode": 0, "stdout": "\n\x1b]0;owned\x07 \x9b31m\u202e\r\nnext", "stderr": ""}
    site.execute = lambda _: Reply(job(description=said, label="press\x1b[2J"))
    result = invoke(site, "restart", "press-057", "--wait")

    assert result.stdout == "press␛[2J\tsucceeded\t0\t␛]0;owned␇ \\x9b31m\\u202e\n"


def test_control_characters_of_a_refusal_do_not_reach_the_terminal(site: Site) -> None:
    site.execute = lambda _: problem(400, "badRequest", "no \x1b[31m")

    assert "no ␛[31m" in invoke(site, "restart", "press-057").stderr


def test_the_exit_codes_are_in_the_help(site: Site) -> None:
    result = invoke(site, "--help")

    assert "  130  interrupted" in result.stdout
    assert "IOTJOBS_TOKEN" in result.stdout
    assert "1-abc" not in result.stdout


def test_pairs_are_read() -> None:
    assert pairs("--arg", ["a=1", "b==", "c="]) == {"a": "1", "b": "=", "c": ""}
    assert pairs("--arg", None) == {}


@pytest.mark.parametrize("group", [[], ["job"], ["trigger"]], ids=["all", "job", "trigger"])
def test_the_help_has_a_whole_sentence_for_each_command(group: list[str]) -> None:
    said = CliRunner(env={"COLUMNS": "80"}).invoke(app, [*group, "--help"]).stdout
    lines = said.partition("Commands:\n")[2].splitlines()

    assert len(lines) >= 4
    assert [line for line in lines if not line.endswith(".") or line.endswith("...")] == []
