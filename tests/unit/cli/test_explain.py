"""`iotjobs explain` in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from iotjobs.cli.exitcodes import ExitCode
from iotjobs.cli.explain import _became, _because
from iotjobs.client.shapes import Job
from iotjobs.program import app
from tests.services.api import Reply, Seen, Site, job

OBJECT = f"{7:032x}"
ANNA = {"id": "u1", "name": "anna"}
TRIGGER = {
    "id": "t1",
    "name": "cool it",
    "operation_id": "op-1",
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
        "hold_s": 0,
    },
}
TRACE = {
    "id": 1,
    "at": "2026-11-29T04:00:00.000Z",
    "trigger_id": "t1",
    "trigger_name": "cool it",
    "decision": "cooling_down",
    "reason": "fired 12.0 s ago and cools down for 60 s",
    "repeat": 0,
    "job_id": None,
}
OPERATION = {"id": "op-1", "name": "cool down", "run_on_property_change": False}


def at(seconds: float) -> str:
    """So long after the change."""
    return f"2026-11-29T04:{int(seconds) // 60:02}:{seconds % 60:06.3f}Z"


def trace(number: int, after_s: float, **members: Any) -> dict[str, Any]:
    return {**TRACE, "id": number, "at": at(after_s), **members}


def explain(site: Site, *arguments: str) -> Result:
    environment = {"IOTJOBS_URL": site.url, "IOTJOBS_TOKEN": "1-abc"}
    return CliRunner(env=environment).invoke(app, ["explain", *arguments])


def told(site: Site, *arguments: str) -> list[str]:
    result = explain(site, *(arguments or ("press-057",)))
    assert result.exit_code == ExitCode.OK, result.output
    return result.stdout.splitlines()


def knows(
    site: Site,
    now: dict[str, Any] | None = None,
    *,
    of: str = "objects",
    site_is: dict[str, Any] | None = None,
    triggers: Sequence[dict[str, Any]] = (TRIGGER,),
    operations: Sequence[dict[str, Any]] = (OPERATION,),
    changes: Sequence[dict[str, Any]] = (CHANGE,),
    traces: Sequence[dict[str, Any]] = (TRACE,),
    jobs: Sequence[Sequence[dict[str, Any]]] = ((),),
    **state: Any,
) -> None:
    """Let the site answer this; `jobs` in pages."""
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
        if seen.path.endswith("/jobs"):
            assert (seen.query["owner_id"], seen.query["type"]) == (OBJECT, "EXECUTE_LISTENER")
            page = int(seen.query.get("cursor", 0))
            more = str(page + 1) if page + 1 < len(jobs) else None
            return Reply({"items": [*jobs[page]], "next": more})
        for end, content in (
            (f"/{of}", [{"id": OBJECT, "name": "press-057"}]),
            ("/objects", []),
            ("/operations", operations),
            ("/state-triggers", triggers),
            ("/state-changes", changes),
            ("/trigger-traces", [one for one in traces if seen.query.get("state_change_id") == "c1"]),
        ):
            if seen.path.endswith(end):
                return Reply({"items": [*content], "next": None})
        for end, record in (
            ("/state", shown),
            ("/site", {"dispatch": "open", "triggers": "open", **(site_is or {})}),
        ):
            if seen.path.endswith(end):
                return Reply(record)
        return None

    site.override = answer


def test_it_tells_the_state_the_reason_and_what_each_trigger_decided(site: Site) -> None:
    knows(site)
    assert told(site) == [
        "press-057 is alarm since 2026-11-29T04:00:00.000Z: temperature > 80 (temperature = 90); hot",
        "  3 reports, last heard of at 2026-11-29T04:00:01.000Z",
        "  1 trigger:",
        "    cool it: runs cool down on alarm, after 5 s, not within 60 s; id t1",
        "",
        "2026-11-29T04:00:00.000Z  working -> alarm: temperature > 80 (temperature = 90); hot",
        "  2026-11-29T04:00:00.000Z  cool it: cooling down, fired 12.0 s ago and cools down for 60 s",
    ]


def test_what_is_true_now_is_told_where_it_is_not_the_reason_of_the_last_change(site: Site) -> None:
    assert isinstance(CHANGE["why"], dict)
    warmer = {**CHANGE["why"], "values": {"temperature": 95}}
    problem = {"when": "pressure > 3", "problem": "pressure is a text and 3: > compares numbers, or texts"}
    knows(site, {"why": warmer, "problems": [problem]})

    assert told(site)[:4] == [
        "press-057 is alarm since 2026-11-29T04:00:00.000Z: temperature > 80 (temperature = 90); hot",
        "  now: temperature > 80 (temperature = 95); hot",
        "  has no value: pressure > 3: pressure is a text and 3: > compares numbers, or texts",
        "  3 reports, last heard of at 2026-11-29T04:00:01.000Z",
    ]

    knows(site, {"state": "working", "why": {"by": "default"}})
    assert told(site)[1] == "  now it has to be working, and has not been looked at yet: no condition holds"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({}, "succeeded, exit code 0"),
        (
            {
                "outcome": "failed",
                "description": {"exitCode": 3},
                "error": {"code": "exitCode", "message": "exit code 3"},
            },
            "failed, exit code 3",
        ),
        (
            {
                "outcome": "rejected",
                "description": None,
                "error": {"code": "deviceUnreachable", "message": "no route to 10.0.0.7"},
            },
            "rejected, deviceUnreachable: no route to 10.0.0.7",
        ),
        ({"outcome": None, "status": "RUNNING", "description": None}, "RUNNING"),
        (
            {"outcome": None, "status": "PENDING", "description": None, "pending_reason": "drained"},
            "PENDING, waits for the site, which is drained",
        ),
        (
            {"outcome": None, "status": "PENDING", "description": None, "pending_reason": "lane"},
            "PENDING, waits until another job of the device has ended",
        ),
        (
            {"outcome": None, "status": "PENDING", "description": None, "pending_reason": "x"},
            "PENDING, waits x",
        ),
    ],
)
def test_what_came_of_a_job_is_told_in_words(members: dict[str, Any], words: str) -> None:
    assert _became(Job.of({**job(), **members})) == words


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
    fired = {"decision": "fired", "reason": "entered alarm"}
    ids = [f"{number:032x}" for number in (1, 2, 3)]
    traces = [trace(number, number, **fired, job_id=ids[number]) for number in (0, 1, 2)]
    failed = job("failed", number=2, description={"exitCode": 3})
    knows(site, traces=traces[::-1], jobs=[[job(number=9)], [failed, job(number=1)]])
    assert told(site)[-6:] == [
        f"  {at(0)}  cool it: fired, entered alarm",
        f"    job {ids[0]}: succeeded, exit code 0",
        f"  {at(1)}  cool it: fired, entered alarm",
        f"    job {ids[1]}: failed, exit code 3",
        f"  {at(2)}  cool it: fired, entered alarm",
        f"    job {ids[2]}: its record is not there any more, or not for you to see",
    ]


def test_a_change_that_is_older_than_traces_are_kept_says_that_there_are_none(site: Site) -> None:
    knows(site, traces=[])
    assert "  what triggers decided then is not on record" in told(site)


def test_decisions_stand_in_the_order_of_their_moments_with_holds_and_repeats_as_such(site: Site) -> None:
    second = {"trigger_id": "t2", "trigger_name": "call"}
    traces = [
        trace(4, 20, repeat=1, reason="fired 10.0 s ago and cools down for 60 s"),
        trace(3, 10, decision="fired", repeat=2, reason="repeat 2 in alarm"),
        trace(2, 0, decision="fired", reason="entered alarm"),
        trace(1, 2, decision="fired", reason="after 2 s in alarm", **second),
    ]
    others = [trace(9 - number, 0, decision="not_in_states", trigger_name=f"t{number}") for number in (1, 2)]
    traces += others[::-1]
    later = {**CHANGE, "id": "c2", "at": at(30), "from": "alarm", "to": "working", "why": {"by": "default"}}
    knows(site, traces=traces, changes=[later, CHANGE])
    assert told(site)[5:] == [
        f"{at(0)}  working -> alarm: temperature > 80 (temperature = 90); hot",
        f"  {at(0)}  cool it: fired, entered alarm",
        f"  {at(2)}  call: fired, after 2 s in alarm",
        f"  {at(10)}  cool it: fired, repeat 2 in alarm",
        f"  {at(20)}  cool it: cooling down, repeat 1: fired 10.0 s ago and cools down for 60 s",
        "  not on alarm: t1, t2",
        "",
        f"{at(30)}  alarm -> working: no condition holds",
        "  what triggers decided then is not on record",
    ]


def test_repeats_of_a_trigger_that_came_to_the_same_are_one_line(site: Site) -> None:
    ids = [f"{number:032x}" for number in range(1, 42)]
    fired = {"decision": "fired", "job_id": None}
    traces = [trace(0, 0, **{**fired, "job_id": ids[0]}, reason="entered alarm")]
    for number in range(1, 41):
        reason = f"repeat {number} in alarm"
        traces.append(trace(number, number, **{**fired, "job_id": ids[number]}, repeat=number, reason=reason))
        other = {"trigger_id": "t2", "trigger_name": "call", "repeat": number, "reason": reason}
        traces.append(trace(100 + number, number, decision="dry", **other))
    jobs = [job(number=number + 1) for number in range(41)]
    timed_out = {"code": "timedOut", "message": "not ended after 1 s"}
    jobs[7] = job("timed_out", number=8, description=None, error=timed_out)
    knows(site, traces=traces, jobs=[jobs])
    assert told(site)[6:] == [
        f"  {at(0)}  cool it: fired, entered alarm",
        f"    job {ids[0]}: succeeded, exit code 0",
        f"  {at(1)}  cool it: fired, 6 repeats, the last at {at(6)}: repeat 6 in alarm",
        f"    the last one's job {ids[6]}: succeeded, exit code 0",
        f"  {at(1)}  call: dry, 40 repeats, the last at {at(40)}: repeat 40 in alarm",
        f"  {at(7)}  cool it: fired, repeat 7 in alarm",
        f"    job {ids[7]}: timed_out, timedOut: not ended after 1 s",
        f"  {at(8)}  cool it: fired, 33 repeats, the last at {at(40)}: repeat 40 in alarm",
        f"    the last one's job {ids[40]}: succeeded, exit code 0",
    ]


def test_that_more_was_decided_than_is_shown_is_told(site: Site) -> None:
    knows(site, traces=[trace(number, 1, repeat=number) for number in range(1, 501)])
    assert told(site)[6] == "  what was decided before is not shown"


def test_who_paused_the_triggers_or_drained_the_site_is_told_and_how_to_take_it_back(site: Site) -> None:
    switched = {"by": ANNA, "since": "2026-11-29T03:00:00.000Z"}
    knows(
        site, site_is={"triggers": "paused", "paused": switched, "dispatch": "drained", "drained": switched}
    )
    assert told(site)[2:4] == [
        "  all triggers of the site are paused by anna since 2026-11-29T03:00:00.000Z:"
        " none starts anything until `iotjobs trigger resume`",
        "  the site is drained by anna since 2026-11-29T03:00:00.000Z: no job begins until `iotjobs undrain`",
    ]
    knows(site, site_is={"triggers": "paused", "paused": None})  # by a server that did not keep who
    assert told(site)[2] == (
        "  all triggers of the site are paused: none starts anything until `iotjobs trigger resume`"
    )


def test_a_trigger_that_the_loop_guard_stopped_is_told_with_how_to_reset_it(site: Site) -> None:
    settings = {
        "hold_s": 0,
        "cooldown_s": 0,
        "repeat_s": 0.5,
        "max_per_hour": 1,
        "enabled": False,
        "dry": True,
    }
    stopped = {**TRIGGER, **settings, "id": "t2", "operation_id": "gone", "broken_at": at(9)}
    knows(site, triggers=[TRIGGER, stopped])
    assert told(site)[2:6] == [
        "  2 triggers:",
        "    cool it: runs cool down on alarm, after 5 s, not within 60 s; id t1",
        "    cool it: runs gone on alarm, again each 0.5 s, 1 time an hour at most, switched off, only tries; id t2",
        f"      stopped by the loop guard at {at(9)}, until `iotjobs trigger reset t2`",
    ]


def test_operations_that_run_on_writes_are_told_and_what_came_of_them(site: Site) -> None:
    push = {"id": "op-2", "name": "push", "run_on_property_change": True}
    written = job(
        number=5,
        cause="property",
        created_at=at(20),
        run_by=ANNA,
        data={"listenerName": "setpoint", "actionName": "push"},
    )
    by_trigger = job(number=6, cause="trigger", created_at=at(21), data={})
    made: dict[str, Any] = {"why": {}, "state": "created", "heard_at": None, "reports": 0}
    now = {"state": "created", "why": {"by": "default"}}
    later = {**CHANGE, "at": at(30)}
    knows(
        site,
        now,
        triggers=[],
        operations=[OPERATION, push],
        changes=[later],
        traces=[],
        jobs=[[by_trigger, written]],
        **made,
    )
    assert told(site) == [
        "press-057 is created since 2026-11-29T04:00:00.000Z: no change since it was made",
        "  now: no condition holds",
        "  never heard of",
        "  no triggers",
        "  when somebody writes a readwrite property it runs push",
        "",
        f"{at(20)}  anna wrote setpoint, which started push",
        f"    job {written['id']}: succeeded, exit code 0",
        "",
        f"{at(30)}  working -> alarm: temperature > 80 (temperature = 90); hot",
    ]
    knows(site, now, triggers=[], changes=[], **made)
    assert told(site)[3:] == ["  no triggers: nothing starts by itself"]


def test_a_link_is_heard_of_by_its_ends(site: Site) -> None:
    knows(site, of="links", reports=1)
    assert told(site)[1] == "  1 report of its own; an end was last heard of at 2026-11-29T04:00:01.000Z"
    knows(site, of="links", reports=0, heard_at=None)
    assert told(site)[1] == "  0 reports of its own; no end was heard of yet"
    knows(site, reports=1, superseded=1)
    assert told(site)[1:3] == [
        "  1 report, last heard of at 2026-11-29T04:00:01.000Z",
        "  1 message came quicker than allowed: only the last values counted",
    ]


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
    assert told(site)[1:4] == [
        "  alarm is to come: t > 80, true since 2026-11-29T04:00:00.000Z, counts from 2026-11-29T04:05:00.000Z on",
        "  alarm is to come: t > 80, true now, counts in its period, from 2026-11-29T04:05:00.000Z on",
        "  alarm never comes: t > 80, true now, is outside its period",
    ]


def test_what_had_no_value_at_the_last_change_and_has_one_now_is_not_told_as_if_it_had_none(
    site: Site,
) -> None:
    then = {"by": "default", "problems": [{"when": "t > 1", "problem": "there is no property t"}]}
    knows(site, {"state": "working", "why": {"by": "default"}}, state="working", why=then)
    assert told(site)[:2] == [
        "press-057 is working since 2026-11-29T04:00:00.000Z: no condition holds",
        "  3 reports, last heard of at 2026-11-29T04:00:01.000Z",
    ]


def test_what_a_device_said_cannot_paint_the_terminal(site: Site) -> None:
    values = {"a": "\x1b[31m", "b": {"\x9b1m": 1}}
    why = {"by": "condition", "when": "a == b", "values": values, "description": "\x1b]0;x\x07"}
    knows(site, why=why)
    said = explain(site, "press-057").stdout
    assert not set("\x1b\x9b\x07") & set(said)


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ({"by": "forced", "user": ANNA, "reason": "service", "until": None}, "forced by anna: service"),
        (
            {"by": "forced", "user": ANNA, "reason": "service", "until": "2025-11-29T04:00:00.000Z"},
            "forced by anna until 2025-11-29T04:00:00.000Z: service",
        ),
        (
            {"by": "forced", "user": {"id": "u1", "name": None}, "reason": "x", "until": at(9)},
            f"forced by u1 until {at(9)}: x",
        ),
        ({"by": "forced", "user": "u1", "reason": "of an older record"}, "forced by u1: of an older record"),
        ({"by": "no_data", "no_data_after_s": 60.0}, "no report for 60 s"),
        ({"by": "offline"}, "the broker told that its connection ended"),
        (
            {"by": "default", "problems": [{"when": "t > 1", "problem": "there is no property t"}]},
            "no condition holds; t > 1: there is no property t",
        ),
        ({}, "no change since it was made"),
        (
            {"by": "condition", "when": "t > 80", "hold_s": 30.0, "values": {"t": 90.5}},
            "t > 80, true for 30 s (t = 90.5)",
        ),
        (
            {
                "by": "condition",
                "when": "x && y",
                "values": {"x": True, "y": {"a": [None, "é"]}, "z": "on", "l": "[1, 2…"},
                "cut": ["l"],
            },
            'x && y (x = true, y = {"a": [null, "é"]}, z = "on", l = [1, 2…)',
        ),
        (
            {"by": "condition", "when": "x", "values": {"x": "y" * 70}},
            f'x (x = "{"y" * 58}…)',
        ),
    ],
)
def test_every_reason_has_its_words(why: dict[str, Any], said: str) -> None:
    assert _because(why) == said


def test_a_name_that_nobody_has(site: Site) -> None:
    site.override = lambda _: Reply({"items": [], "next": None})
    assert explain(site, "nobody").exit_code == ExitCode.NOT_FOUND
