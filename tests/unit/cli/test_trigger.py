"""`iotjobs trigger`: list, reset, pause and resume."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner, Result

from iotjobs.cli import trigger
from iotjobs.cli.exitcodes import ExitCode
from iotjobs.program import app
from tests.services.api import Reply, Seen, Site, problem


def invoke(site: Site, *arguments: str) -> Result:
    environment = {"IOTJOBS_URL": site.url, "IOTJOBS_TOKEN": "1-abc"}
    return CliRunner(env=environment).invoke(app, ["trigger", *arguments])


def shown(number: int, broken_at: str | None = None) -> dict[str, object]:
    owner = {"owner_kind": "object", "owner_id": "o1", "states": ["alarm", "down"]}
    return {"id": f"t{number}", "name": f"cool \x1b[{number}", **owner, "broken_at": broken_at}


def test_all_triggers_are_listed_page_after_page(site: Site) -> None:
    def answer(seen: Seen) -> Reply:
        assert (seen.method, seen.path) == ("GET", "/api/v1/triggers")
        if "cursor" in seen.query:
            return Reply({"items": [shown(2, "2026-11-29T04:00:00.000Z")], "next": None})
        return Reply({"items": [shown(1)], "next": "t1"})

    site.override = answer
    result = invoke(site, "ls")
    assert (result.exit_code, result.stdout.splitlines()) == (
        ExitCode.OK,
        [
            "t1\tcool ␛[1\tobject o1\talarm, down\t-",
            "t2\tcool ␛[2\tobject o1\talarm, down\t2026-11-29T04:00:00.000Z",
        ],
    )
    assert [seen.query.get("broken") for seen in site.seen] == [None, None]
    assert invoke(site, "ls", "--broken").exit_code == ExitCode.OK
    assert [seen.query.get("broken") for seen in site.seen[2:]] == ["true", "true"]


def test_each_trigger_is_reset_and_one_that_is_not_there_holds_up_no_other(site: Site) -> None:
    site.override = lambda seen: (
        problem(404, "notFound", "there is no trigger t9") if "/t9/" in seen.path else Reply(shown(1))
    )
    result = invoke(site, "reset", "t9", "t1", "t1")
    assert [(seen.method, seen.path) for seen in site.seen] == [
        ("POST", "/api/v1/triggers/t9/reset"),
        ("POST", "/api/v1/triggers/t1/reset"),
    ]
    assert (result.exit_code, result.stdout) == (ExitCode.PARTIAL, "")
    assert "t9: there is no trigger t9" in result.stderr
    assert "cool ␛[1 may fire again" in result.stderr
    assert invoke(site, "reset", "t9").exit_code == ExitCode.NOT_FOUND


@pytest.mark.parametrize(
    ("command", "asked", "said"),
    [("pause", "paused", "all triggers are paused\n"), ("resume", "open", "triggers may fire again\n")],
)
def test_all_triggers_are_paused_and_may_fire_again(site: Site, command: str, asked: str, said: str) -> None:
    site.override = lambda _: Reply({"dispatch": "open", "triggers": asked})
    result = invoke(site, command)
    assert (result.exit_code, result.stderr) == (ExitCode.OK, said)
    assert [(seen.method, seen.path, seen.body) for seen in site.seen] == [
        ("PUT", "/api/v1/site", {"triggers": asked})
    ]
    site.override = lambda _: problem(403, "notAllowed")
    assert invoke(site, command).exit_code == ExitCode.NOT_ALLOWED


def test_it_is_a_group_of_commands_of_the_program() -> None:
    assert trigger.triggers.registered_commands
