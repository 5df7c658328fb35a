"""How an entity's state is decided."""

from __future__ import annotations

import time as time_module
from dataclasses import replace
from datetime import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotjobs.domain.expressions import Facts, compile_expression
from iotjobs.domain.periods import Period
from iotjobs.domain.states import (
    BUILT_IN,
    PATIENCE_MS,
    Condition,
    Forced,
    Heard,
    Judgement,
    Standing,
    judge,
)

HOT = Condition("c1", "alarm", compile_expression("temperature > 80"))
WARM = Condition("c2", "overloaded", compile_expression("temperature > 60"), hold_s=5, description="warm")
HEARD = Standing(state="working", heard_at=0)


def judged(
    standing: Standing = HEARD,
    now: int = 0,
    *conditions: Condition,
    no_data: float | None = None,
    **values: Any,
) -> Judgement:
    return judge(conditions or (HOT, WARM), Facts(values), standing, now, no_data_after_s=no_data)


def test_the_first_condition_that_holds_wins_and_says_why() -> None:
    found = judged(temperature=81.5, other=1)
    assert found.state == "alarm"
    assert found.why == {
        "by": "condition",
        "condition_id": "c1",
        "when": "temperature > 80",
        "values": {"temperature": 81.5},
        "description": "",
        "hold_s": 0,
    }


def test_without_one_it_works_and_what_could_not_be_evaluated_is_told() -> None:
    assert judged(temperature=20).why == {"by": "default"}
    found = judged(other=1)
    assert found.state == "working"
    assert found.why["problems"] == [
        {"when": "temperature > 80", "problem": "there is no property temperature"},
        {"when": "temperature > 60", "problem": "there is no property temperature"},
    ]


def test_what_has_no_value_is_told_also_where_something_else_decides() -> None:
    problem = {"when": "temperature > 80", "problem": "there is no property temperature"}
    forced = replace(HEARD, forced=Forced("disabled", "anna", "service", since=0))
    for standing in (HEARD, forced, replace(HEARD, offline=True)):
        assert judged(standing, 0, HOT).problems == [problem]
    assert "problems" not in judged(forced, 0, HOT).why
    assert (
        judged(HEARD, 0, *(replace(HOT, id=f"c{number}") for number in range(30))).problems == [problem] * 20
    )


@pytest.mark.parametrize("value", ["x" * 1000, [1] * 1000, {"a": ["y" * 100] * 10}, 10**300])
def test_of_a_large_value_the_reason_has_the_beginning_and_says_so(value: Any) -> None:
    large = Condition("c", "alarm", compile_expression("log != small"))
    why = judged(HEARD, 0, large, log=value, small="x").why
    assert (len(why["values"]["log"]), why["values"]["log"][-1], why["cut"]) == (200, "…", ["log"])
    assert why["values"]["small"] == "x"


def test_a_name_that_a_device_said_does_not_fill_a_problem() -> None:
    by_name = Condition("c", "alarm", compile_expression("properties[which] == 1"))
    [problem] = judged(HEARD, 0, by_name, which="x" * 60_000).problems
    assert len(problem["problem"]) < 300


@pytest.mark.parametrize("value", ["x" * 200, [1] * 60, {"a": 1.5}, 10**30, None, True, 1.5])
def test_a_value_that_is_short_stands_in_the_reason_as_it_is(value: Any) -> None:
    small = Condition("c", "alarm", compile_expression("log != none || true"))
    why = judged(HEARD, 0, small, log=value).why
    assert (why["values"], "cut" in why) == ({"log": value}, False)


def test_a_new_entity_is_created_until_it_is_heard_of_or_a_condition_holds() -> None:
    new = Standing()
    assert judged(new).state == "created"
    assert judged(new, temperature=90).state == "alarm"
    assert judged(replace(new, heard_at=0)).state == "working"


def test_a_condition_that_has_to_hold_counts_after_that_and_wakes_up_for_it() -> None:
    first = judged(now=1000, temperature=70)
    assert (first.state, first.holding, first.wake_at) == ("working", {WARM.hold_key: 1000}, 6000)

    on = replace(HEARD, holding=first.holding)
    before = judged(on, 5999, temperature=75)
    assert (before.state, before.holding, before.wake_at) == ("working", {WARM.hold_key: 1000}, 6000)

    due = judged(on, 6000, temperature=75)
    assert (due.state, due.holding, due.wake_at) == ("overloaded", {WARM.hold_key: 1000}, None)

    broken = judged(on, 3000, temperature=50)
    assert (broken.state, broken.holding, broken.wake_at) == ("working", {}, None)


def test_a_hold_begins_anew_with_another_text_and_goes_on_with_another_length() -> None:
    on = replace(HEARD, holding={WARM.hold_key: 1000})
    other = replace(WARM, when=compile_expression("temperature > 65"))
    assert judged(on, 9000, other, temperature=70).state == "working"
    assert judged(on, 9000, other, temperature=70).holding == {other.hold_key: 9000}
    assert judged(on, 9000, replace(WARM, hold_s=7), temperature=70).state == "overloaded"


def test_a_condition_behind_the_winner_goes_on_counting() -> None:
    on = replace(HEARD, state="alarm", holding={WARM.hold_key: 1000})
    assert judged(on, 9000, temperature=90).holding == {WARM.hold_key: 1000}
    assert judged(on, 9000, temperature=70).state == "overloaded"


def test_a_condition_that_is_true_and_does_not_count_yet_waits() -> None:
    never = replace(HOT, id="c3", period=Period(frozenset(), time(8), time(17)))
    day = replace(HOT, period=Period(begin=time(8), end=time(17)))
    standing = replace(HEARD, holding={WARM.hold_key: 1000})
    found = judged(standing, 3000, day, WARM, never, temperature=90)
    assert found.why == {"by": "default"}
    assert [(one.condition.id, one.since, one.counts_at) for one in found.waiting] == [
        ("c1", None, 8 * 3_600_000),
        ("c2", 1000, 6000),
        ("c3", None, None),
    ]
    assert judged(standing, 3000, day, WARM, temperature=20).waiting == []
    assert judged(standing, 6000, day, WARM, temperature=90).hold_key == WARM.hold_key
    assert [one.condition.id for one in judged(standing, 6000, day, WARM, temperature=90).waiting] == ["c1"]


@pytest.mark.parametrize(
    "when",
    [
        " || ".join(["l != m"] * 50),
        " || ".join(["'x' in l"] * 49),
        " && ".join(["m == [l[0]] + l"] * 20),
        " || ".join(["t.contains('b')"] * 49),
        " || ".join(["t != u"] * 50),
        " || ".join(["t > u"] * 50),
        "+".join(["t"] * 4) + " == u",
    ],
)
def test_what_all_conditions_together_look_at_is_bounded(when: str) -> None:
    many = [Condition(f"c{number}", "alarm", compile_expression(when)) for number in range(200)]
    last = Condition("last", "overloaded", compile_expression("n > 1"))
    t = "a" * 15_000
    facts = Facts({"l": [0] * 900, "m": [0] * 900, "t": t, "u": t + "", "n": 2})
    for _ in range(2):  # each time they have as much
        began = time_module.process_time()
        found = judge([*many, last], facts, HEARD, 0)
        took = time_module.process_time() - began
        assert (found.state, found.why["condition_id"]) == ("overloaded", "last")
        assert "the conditions have more than 10,000 values to look at" in found.problems[-1]["problem"]
        assert took < 0.1  # ten times what a slow machine may take


def test_a_period_bounds_a_condition_and_its_edges_wake_up() -> None:
    day = replace(HOT, period=Period(begin=time(8), end=time(17)))
    hour = 3_600_000
    assert judged(HEARD, 7 * hour, day, temperature=90).state == "working"
    assert judged(HEARD, 7 * hour, day, temperature=90).wake_at == 8 * hour
    found = judged(HEARD, 8 * hour, day, temperature=90)
    assert (found.state, found.wake_at) == ("alarm", 17 * hour)


def test_silence_is_no_data_and_a_new_report_ends_it() -> None:
    heard = judged(HEARD, 1000, HOT, no_data=10, temperature=90)
    assert (heard.state, heard.wake_at) == ("alarm", 10_000)
    silent = judged(HEARD, 10_000, HOT, no_data=10, temperature=90)
    assert (silent.state, silent.why, silent.wake_at) == (
        "no_data",
        {"by": "no_data", "no_data_after_s": 10},
        None,
    )
    again = judged(replace(HEARD, heard_at=11_000), 11_000, HOT, no_data=10, temperature=90)
    assert (again.state, again.wake_at) == ("alarm", 21_000)
    assert judged(Standing(), 99_000, no_data=10).state == "created"  # never heard of: not silent


def test_the_end_of_the_connection_stands_above_silence_and_a_person_above_all() -> None:
    down = judged(replace(HEARD, offline=True), 99_000, no_data=10)
    assert (down.state, down.why) == ("down", {"by": "offline"})

    forced = Forced("disabled", "u1", "service", since=0, until=100_000, login="anna")
    found = judged(replace(HEARD, offline=True, forced=forced), 99_000, no_data=10)
    assert (found.state, found.wake_at) == ("disabled", 100_000)
    assert found.why == {
        "by": "forced",
        "user": {"id": "u1", "name": "anna"},
        "reason": "service",
        "until": 100_000,
    }
    over = judged(replace(HEARD, offline=True, forced=forced), 100_000, no_data=10)
    assert over.state == "down"
    assert judged(replace(HEARD, forced=replace(forced, until=None)), 1 << 50).state == "disabled"


@given(
    values=st.lists(st.tuples(st.integers(0, 20_000), st.integers(50, 90)), max_size=20),
    hold_s=st.sampled_from([0, 1, 5]),
)
def test_looking_more_often_than_needed_changes_nothing(values: list[tuple[int, int]], hold_s: int) -> None:
    conditions = (HOT, replace(WARM, hold_s=hold_s))

    def run(often: bool) -> list[tuple[int, str]]:
        standing, changes, wake_at = HEARD, [], None
        moments = sorted(values)
        temperature = 0
        for now in range(0, 20_001, 250):
            come = [value for at, value in moments if now - 250 < at <= now]
            temperature = come[-1] if come else temperature
            if not (often or come or (wake_at is not None and wake_at <= now)):
                continue
            found = judge(conditions, Facts({"temperature": temperature}), standing, now)
            if found.state != standing.state:
                changes.append((now, found.state))
            standing, wake_at = replace(standing, state=found.state, holding=found.holding), found.wake_at
        return changes

    assert run(often=True) == run(often=False)


def test_what_matters_more_has_the_higher_number() -> None:
    assert sorted(BUILT_IN, key=lambda name: BUILT_IN[name])[-2:] == ["alarm", "down"]


@pytest.mark.parametrize(
    "name", ["created", "working", "overloaded", "alarm", "stopped", "no_data", "down", "disabled"]
)
def test_the_built_in_states_are_the_documented_ones(name: str) -> None:
    assert name in BUILT_IN
    assert len(BUILT_IN) == 8


@pytest.mark.parametrize(
    ("heard", "state", "wake_at"),
    [
        (Heard(0, 100_000), "no_data", None),
        (Heard(0, 59_999), "working", 101_000),  # it may have reported since: soon we know
        (Heard(90_000, 100_000), "working", 150_000),  # it gets the whole time anew
        (Heard(100_000, 0), "working", 160_000),  # nobody listens
        (Heard(39_000, 99_000), "no_data", None),
        (Heard(39_000, 98_999), "working", 101_000),
    ],
)
def test_who_may_have_reported_to_nobody_is_not_silent(heard: Heard, state: str, wake_at: int | None) -> None:
    found = judge((), Facts({}), HEARD, 100_000, no_data_after_s=60, heard=heard)
    assert (found.state, found.wake_at) == (state, wake_at)


def test_the_whole_time_anew_is_a_quarter_of_an_hour_at_most() -> None:
    day = 86_400_000
    found = judge((), Facts({}), HEARD, day, no_data_after_s=86_400, heard=Heard(day - PATIENCE_MS, day))
    assert found.state == "no_data"
    found = judge((), Facts({}), HEARD, day, no_data_after_s=86_400, heard=Heard(day - 1000, day))
    assert (found.state, found.wake_at) == ("working", day - 1000 + PATIENCE_MS)


def held(standing: Standing, now: int, heard: Heard, *conditions: Condition, **values: Any) -> Judgement:
    return judge(conditions or (HOT, WARM), Facts(values), standing, now, heard=heard)


@pytest.mark.parametrize(
    ("now", "heard_until", "state", "wake_at"),
    [
        (5999, 5999, "working", 6000),
        (6000, 6000, "overloaded", None),
        (6000, 5999, "working", 7000),  # it may have said since that it is cold: soon we know
        (60_000, 0, "working", 61_000),  # nobody listens
        (60_000, 6000, "overloaded", None),  # nobody listens any more, and that was heard
        (5999, 6000, "working", 6000),
    ],
)
def test_a_hold_is_over_when_all_that_was_said_until_then_was_heard(
    now: int, heard_until: int, state: str, wake_at: int | None
) -> None:
    on = replace(HEARD, holding={WARM.hold_key: 1000})
    found = held(on, now, Heard(0, heard_until), temperature=70)
    assert (found.state, found.wake_at, found.holding) == (state, wake_at, on.holding)
    waits = [(one.since, one.counts_at) for one in found.waiting]
    assert waits == ([(1000, 6000)] if state == "working" else [])


def test_a_hold_that_was_over_stays_so_while_nobody_listens() -> None:
    on = replace(HEARD, holding={WARM.hold_key: 1000})
    over = held(on, 7000, Heard(0, 6500), temperature=90)  # something else decides
    assert (over.state, over.known_until) == ("alarm", 6500)
    on = replace(on, state="alarm", known_until=over.known_until)
    nobody = Heard(9000, 0)

    found = held(on, 9000, nobody, temperature=70)
    assert (found.state, found.known_until) == ("overloaded", 6500)
    longer = held(on, 9000, nobody, replace(WARM, hold_s=6), temperature=70)
    assert (longer.state, longer.known_until) == ("working", 6500)
    ended = held(on, 9000, nobody, temperature=50)
    assert (ended.state, ended.holding, ended.known_until) == ("working", {}, None)


def test_edges_of_periods_and_the_end_of_what_was_forced_come_by_the_clock() -> None:
    nobody = Heard(1000, 0)
    forced = Forced("stopped", "u1", "work", since=0, until=1000)
    assert held(replace(HEARD, forced=forced), 1000, nobody, HOT, temperature=90).state == "alarm"
    always = Period(frozenset(range(7)), time(0), time(0), "UTC")
    assert held(HEARD, 1000, nobody, replace(HOT, period=always), temperature=90).state == "alarm"


def test_who_was_found_silent_stays_so_while_nobody_listens() -> None:
    silent = replace(HEARD, state="no_data")
    nobody = Heard(since=100_000, until=0)
    assert judge((), Facts({}), silent, 100_000, no_data_after_s=60, heard=nobody).state == "no_data"
    back = replace(silent, heard_at=99_000)
    assert judge((), Facts({}), back, 100_000, no_data_after_s=60, heard=nobody).state == "working"
