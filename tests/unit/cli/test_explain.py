"""`iotjobs explain` in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from iotjobs.cli.exitcodes import ExitCode
from iotjobs.cli.explain import _because
from iotjobs.program import app
from tests.services.api import Reply, Seen, Site, job, problem

OBJECT = f"{7:032x}"
TRIGGER = {
    "name": "cool it",
    "states": ["alarm"],
    "hold_s": 5.0,
    "repeat_s": None,
    "cooldown_s": 60.0,
    "max_per_hour": None,
    "enabled": True,
    "dry": False,
    "broken_at": None,
}
CHANGE = {
    "id": "c1",
    "at": "2026-11-29T04:00:00.000Z",
    "from": "working",
    "to": "alarm",
    "why": {
        "by": "condition",
        "when": "temperature > 80",
        "values": {"temperature": 90},
        "description": "hot",
    },
}
TRACE = {
    "trigger_name": "cool it",
    "decision": "cooling_down",
    "reason": "fired 12.0 s ago and cools down for 60 s",
    "job_id": None,
}


def explain(site: Site, *arguments: str) -> Result:
    environment = {"IOTJOBS_URL": site.url, "IOTJOBS_TOKEN": "1-abc"}
    return CliRunner(env=environment).invoke(app, ["explain", *arguments])


def knows(
    site: Site,
    now: dict[str, Any] | None = None,
    *,
    triggers: str = "open",
    traces: Sequence[dict[str, Any]] = (TRACE,),
    **state: Any,
) -> None:
    shown = {
        "now": {"state": "alarm", "why": CHANGE["why"], "waiting": [], "problems": [], **(now or {})},
        "state": "alarm",
        "since": "2026-11-29T04:00:00.000Z",
        "why": CHANGE["why"],
        "heard_at": "2026-11-29T04:00:01.000Z",
        "reports": 3,
        "superseded": 0,
        "repeated": 0,
        "refused": 0,
        "last_refusal": None,
        **state,
    }

    def answer(seen: Seen) -> Reply | None:
        for end, content in (
            ("/objects", {"items": [{"id": OBJECT, "name": "press-057"}], "next": None}),
            ("/state", shown),
            ("/state-triggers", {"items": [TRIGGER], "next": None}),
            ("/state-changes", {"items": [CHANGE], "next": None}),
            ("/trigger-traces", {"items": [*traces], "next": None}),
            ("/site", {"dispatch": "open", "triggers": triggers}),
        ):
            if seen.path.endswith(end):
                return Reply(content)
        return None

    site.override = answer


def test_it_tells_the_state_the_reason_and_what_each_trigger_decided(site: Site) -> None:
    knows(site)
    result = explain(site, "press-057")

    assert result.exit_code == ExitCode.OK
    assert result.stdout.splitlines() == [
        "press-057 is alarm since 2026-11-29T04:00:00.000Z: temperature > 80 (temperature = 90); hot",
        "  3 reports, the last 2026-11-29T04:00:01.000Z",
        "  1 triggers:",
        "    cool it: on alarm, after 5 s, not within 60 s",
        "",
        "2026-11-29T04:00:00.000Z  working -> alarm: temperature > 80 (temperature = 90); hot",
        "    cool it: cooling_down, fired 12.0 s ago and cools down for 60 s",
    ]


def test_what_is_true_now_is_told_where_it_is_not_the_reason_of_the_last_change(site: Site) -> None:
    assert isinstance(CHANGE["why"], dict)
    warmer = {**CHANGE["why"], "values": {"temperature": 95}}
    problem = {"when": "pressure > 3", "problem": "pressure is a text and 3: > compares numbers, or texts"}
    knows(site, {"why": warmer, "problems": [problem]})

    assert explain(site, "press-057").stdout.splitlines()[:4] == [
        "press-057 is alarm since 2026-11-29T04:00:00.000Z: temperature > 80 (temperature = 90); hot",
        "  now: temperature > 80 (temperature = 95); hot",
        "  has no value: pressure > 3: pressure is a text and 3: > compares numbers, or texts",
        "  3 reports, the last 2026-11-29T04:00:01.000Z",
    ]

    knows(site, {"state": "working", "why": {"by": "default"}})
    assert explain(site, "press-057").stdout.splitlines()[1] == (
        "  now it has to be working, and has not been looked at yet: no condition holds"
    )


def test_what_of_its_messages_had_no_effect_is_told(site: Site) -> None:
    last = {
        "at": "2026-11-29T04:00:02.000Z",
        "topic": "iotjobs/press/report",
        "why": "no JSON: \x1b[2Jtruncated",
    }
    knows(site, superseded=7, repeated=2, refused=3, last_refusal=last)

    assert explain(site, "press-057").stdout.splitlines()[2:5] == [
        "  7 messages came quicker than allowed: only the last values counted",
        "  2 messages came again, and had their effect once",
        "  3 messages were refused, the last at 2026-11-29T04:00:02.000Z on iotjobs/press/report: "
        "no JSON: ␛[2Jtruncated",
    ]


def test_what_came_of_each_job_that_a_trigger_started_is_told(site: Site) -> None:
    fired = {**TRACE, "decision": "fired", "reason": "entered alarm"}
    error = {"code": "deviceUnreachable", "message": "no route to 10.0.0.7"}
    jobs = [
        Reply(job()),
        Reply(job("rejected", status="REJECTED", error=error)),
        Reply(job(None, status="PENDING")),
        problem(404, "notFound"),
    ]
    knows(site, traces=[{**fired, "job_id": str(number)} for number in reversed(range(len(jobs)))])
    site.jobs = lambda seen: jobs[int(seen.path.rpartition("/")[2])]
    told = explain(site, "press-057").stdout.splitlines()
    assert told[-4:] == [
        "    cool it: fired, entered alarm, job 0: succeeded",
        "    cool it: fired, entered alarm, job 1: rejected, deviceUnreachable: no route to 10.0.0.7",
        "    cool it: fired, entered alarm, job 2: PENDING",
        "    cool it: fired, entered alarm, job 3: its record is not there any more",
    ]


def test_a_change_that_is_older_than_traces_are_kept_says_that_there_are_none(site: Site) -> None:
    knows(site, traces=[])
    assert "    what triggers decided then is not on record" in explain(site, "press-057").stdout


def test_that_all_triggers_are_paused_is_told(site: Site) -> None:
    knows(site, triggers="paused")
    told = explain(site, "press-057").stdout.splitlines()
    assert told[2] == "  all triggers of the site are paused now: nothing starts by itself"


def test_a_condition_that_is_true_and_does_not_count_yet_is_told(site: Site) -> None:
    held = {
        "state": "alarm",
        "when": "t > 80",
        "waits_for": "hold",
        "since": "2026-11-29T04:00:00.000Z",
        "counts_at": "2026-11-29T04:05:00.000Z",
    }
    later = {**held, "waits_for": "period", "since": None}
    waiting = [held, later, {**later, "counts_at": None}]
    default = {"by": "default"}
    knows(site, {"state": "working", "why": default, "waiting": waiting}, state="working", why=default)
    assert explain(site, "press-057").stdout.splitlines()[1:4] == [
        "  alarm is to come: t > 80, true since 2026-11-29T04:00:00.000Z, counts from 2026-11-29T04:05:00.000Z on",
        "  alarm is to come: t > 80, true now, counts in its period, from 2026-11-29T04:05:00.000Z on",
        "  alarm never comes: t > 80, true now, is outside its period",
    ]


def test_what_had_no_value_at_the_last_change_and_has_one_now_is_not_told_as_if_it_had_none(
    site: Site,
) -> None:
    then = {"by": "default", "problems": [{"when": "t > 1", "problem": "there is no property t"}]}
    knows(site, {"state": "working", "why": {"by": "default"}}, state="working", why=then)
    assert explain(site, "press-057").stdout.splitlines()[:2] == [
        "press-057 is working since 2026-11-29T04:00:00.000Z: no condition holds",
        "  3 reports, the last 2026-11-29T04:00:01.000Z",
    ]


def test_what_a_device_said_cannot_paint_the_terminal(site: Site) -> None:
    why = {"by": "condition", "when": "a == b", "values": {"a": "\x1b[31m"}, "description": "\x1b]0;x\x07"}
    knows(site, why=why)
    assert "\x1b" not in explain(site, "press-057").stdout


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ({"by": "forced", "reason": "service", "until": None}, "forced: service"),
        (
            {"by": "forced", "reason": "service", "until": "2025-11-29T04:00:00.000Z"},
            "forced until 2025-11-29T04:00:00.000Z: service",
        ),
        ({"by": "no_data", "no_data_after_s": 60.0}, "no report for 60 s"),
        ({"by": "offline"}, "the broker told that its connection ended"),
        (
            {"by": "default", "problems": [{"when": "t > 1", "problem": "there is no property t"}]},
            "no condition holds; t > 1: there is no property t",
        ),
        ({}, "nothing has happened to it yet"),
    ],
)
def test_every_reason_has_its_words(why: dict[str, Any], said: str) -> None:
    assert _because(why) == said


def test_a_name_that_nobody_has(site: Site) -> None:
    site.override = lambda _: Reply({"items": [], "next": None})
    assert explain(site, "nobody").exit_code == ExitCode.NOT_FOUND
