"""What a trigger decides."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from iotjobs.domain.triggers import (
    HOUR_MS,
    REPEATS_AFTER,
    Circumstances,
    Decision,
    History,
    Trigger,
    cause_key,
    repeat_after_s,
    repeat_of,
    rule,
)

PLAIN = Trigger("t1", "cool it", ("alarm", "overloaded"), "op")
NOW = 10 * HOUR_MS


def decided(trigger: Trigger = PLAIN, state: str = "alarm", **around: Any) -> tuple[Decision, str]:
    ruling = rule(trigger, state, Circumstances(**around), NOW)
    return ruling.decision, ruling.reason


def test_it_fires_on_each_of_its_states_and_on_no_other() -> None:
    assert decided() == (Decision.FIRED, "entered alarm")
    assert decided(state="overloaded") == (Decision.FIRED, "entered overloaded")
    assert decided(state="working") == (Decision.NOT_IN_STATES, "working is not one of alarm, overloaded")
    many = replace(PLAIN, states=tuple(f"s{number}" for number in range(100)))
    said = rule(many, "working", Circumstances(), 0).reason
    assert said == "working is not one of s0, s1, s2, s3, s4, s5, s6, s7, s8, s9 and 90 more"


@pytest.mark.parametrize(
    ("changes", "around", "decision", "reason"),
    [
        ({}, {"paused": True}, Decision.PAUSED, "all triggers of the site are paused"),
        ({"enabled": False}, {}, Decision.DISABLED, "the trigger is switched off"),
        (
            {},
            {"broken": True},
            Decision.LOOP_GUARD,
            "its breaker is open since it was part of a loop: reset it",
        ),
        ({}, {"depth": 5}, Decision.LOOP_GUARD, "5 triggers stand before this change in one chain of causes"),
        ({}, {"depth": 4}, Decision.FIRED, "entered alarm"),
        ({"hold_s": 5}, {}, Decision.HELD, "fires after 5 s in alarm"),
        ({"hold_s": 5}, {"waited": True}, Decision.FIRED, "after 5 s in alarm"),
        ({"hold_s": 5}, {"waited": True, "number": 3}, Decision.FIRED, "repeat 3 in alarm"),
        ({"dry": True}, {}, Decision.DRY, "entered alarm: would have fired, and only tries"),
        (
            {"hold_s": 0.5, "dry": True},
            {"waited": True},
            Decision.DRY,
            "after 0.5 s in alarm: would have fired, and only tries",
        ),
    ],
)
def test_what_keeps_it_from_firing(
    changes: dict[str, Any], around: dict[str, Any], decision: Decision, reason: str
) -> None:
    assert decided(replace(PLAIN, **changes), **around) == (decision, reason)


def test_it_cools_down_and_is_limited_by_the_hour() -> None:
    cooling = replace(PLAIN, cooldown_s=60)
    assert decided(cooling, history=History(NOW - 12_000, 1)) == (
        Decision.COOLING_DOWN,
        "fired 12.0 s ago and cools down for 60 s",
    )
    assert decided(cooling, history=History(NOW - 60_000, 1))[0] is Decision.FIRED
    assert decided(cooling)[0] is Decision.FIRED

    limited = replace(PLAIN, max_per_hour=3)
    assert decided(limited, history=History(NOW - 1, 2))[0] is Decision.FIRED
    assert decided(limited, history=History(NOW - 1, 3)) == (
        Decision.RATE_LIMITED,
        "fired 3 times within the last hour, 3 at most are allowed",
    )


@pytest.mark.parametrize("around", [{"paused": True}, {"broken": True}, {"depth": 5}])
def test_a_wait_that_is_over_is_decided_like_a_change(around: dict[str, Any]) -> None:
    held = replace(PLAIN, hold_s=5)
    assert decided(held, waited=True, **around)[0] not in (Decision.FIRED, Decision.HELD)


def test_it_looks_again_only_where_the_entity_is_in_one_of_its_states() -> None:
    assert Decision.NOT_IN_STATES not in REPEATS_AFTER
    assert Decision.HELD not in REPEATS_AFTER
    assert Decision.FIRED in REPEATS_AFTER


@pytest.mark.parametrize("decision", Decision)
def test_repeats_that_have_begun_go_on_in_the_state(decision: Decision) -> None:
    repeating = replace(PLAIN, repeat_s=10)
    begun = None if decision is Decision.NOT_IN_STATES else 10
    assert repeat_after_s(repeating, decision, 3) == begun
    assert repeat_after_s(repeating, decision, 0) == (10 if decision in REPEATS_AFTER else None)
    assert repeat_after_s(PLAIN, decision, 3) is None


def test_the_key_of_a_firing_names_trigger_change_and_repeat() -> None:
    assert cause_key("t", "c", 0) == "trigger:t:c:0"


def test_which_repeat_a_firing_is_stands_in_its_key() -> None:
    assert [repeat_of(cause_key("t:1", "c", number)) for number in (0, 7, 12)] == [0, 7, 12]
