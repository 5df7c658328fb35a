from __future__ import annotations

import pytest
from typer.testing import CliRunner, Result

from iotjobs.cli.exitcodes import ExitCode
from iotjobs.program import app
from tests.services.api import Reply, Seen, Site, job, problem

A, B = f"{1:032x}", f"{2:032x}"


def invoke(site: Site, *arguments: str) -> Result:
    environment = {"IOTJOBS_URL": site.url, "IOTJOBS_TOKEN": "1-abc"}
    return CliRunner(env=environment).invoke(app, ["job", *arguments])


def answers(site: Site, refused: tuple[str, Reply] | None = None) -> None:
    """Let the site know every job, but for one."""

    def control(seen: Seen) -> Reply | None:
        if seen.method != "POST":
            return None
        job_id = seen.path.split("/")[-2]
        if refused is not None and job_id == refused[0]:
            return refused[1]
        return Reply(job(None, number=int(job_id, 16), status="CANCELING"), 202)

    site.override = control


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (["cancel", A], "cancel", {"reason": None}),
        (["cancel", A, "--reason", "enough"], "cancel", {"reason": "enough"}),
        (["stop", A], "stop", {}),
        (["resume", A], "resume", {"confirm": False}),
        (["resume", A, "--confirm"], "resume", {"confirm": True}),
        (["retry", A, "--arg", "key=k=1"], "retry", {"args": {"key": "k=1"}}),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_each_command_asks_for_its_job(site: Site, arguments: list[str], path: str, body: object) -> None:
    answers(site)
    result = invoke(site, *arguments)

    [seen] = site.seen
    assert (seen.path, seen.body) == (f"/api/v1/jobs/{A}/{path}", body)
    assert (result.exit_code, result.stdout) == (ExitCode.OK, f"restart on press-1\tCANCELING\t{A}\n")
    assert ("idempotency-key" in seen.headers) == (path == "retry")


def test_what_one_job_is_refused_does_not_hold_up_the_others(site: Site) -> None:
    answers(site, (A, problem(409, "conflict", "it has ended")))
    result = invoke(site, "cancel", A, B, B)

    assert result.exit_code == ExitCode.PARTIAL
    assert result.stdout.endswith(f"\t{B}\n")
    assert f"{A}: it has ended" in result.stderr
    assert len(site.requests("POST", "/cancel")) == 2
    assert invoke(site, "cancel", A).exit_code == ExitCode.CONFLICT


def test_a_job_that_is_not_there_and_a_value_that_is_none(site: Site) -> None:
    answers(site, (A, problem(404, "notFound")))

    assert invoke(site, "stop", A).exit_code == ExitCode.NOT_FOUND
    assert invoke(site, "retry", A, "--arg", "key").exit_code == ExitCode.USAGE


def test_a_key_that_is_given_is_sent(site: Site) -> None:
    answers(site)
    invoke(site, "retry", A, "--idempotency-key", "k-1")

    assert site.seen[0].headers["idempotency-key"] == "k-1"
