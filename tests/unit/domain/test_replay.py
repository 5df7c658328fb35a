from __future__ import annotations

from dataclasses import replace
from typing import Any

from iotjobs.domain.expressions import Facts, compile_expression
from iotjobs.domain.replay import MOST_STEPS, Event, Past, Replayed, replay
from iotjobs.domain.states import Condition, Standing
from iotjobs.domain.triggers import Decision, Trigger

HOT = Condition("c", "alarm", compile_expression("temperature > 80"))
COOL = Trigger("t", "cool", ("alarm",), "op")
WORKING = Standing(state="working", heard_at=0)


def past(events: list[Event], until: int = 10_000, facts: Facts | None = None, **given: Any) -> Past:
    return Past(facts or Facts({}), WORKING, events, until, **given)


def at(moment: int, **values: Any) -> Event:
    return Event(moment, values)


def decided(found: Replayed) -> list[tuple[int, str]]:
    return [(firing.at, firing.ruling.decision.value) for firing in found.firings]


def test_it_decides_as_the_live_code_does() -> None:
    events = [at(1000, temperature=90), at(2000, temperature=20), at(3000, temperature=95)]
    found = replay([HOT], [COOL], past(events))
    assert [(change.at, change.before, change.after) for change in found.changes] == [
        (1000, "working", "alarm"),
        (2000, "alarm", "working"),
        (3000, "working", "alarm"),
    ]
    assert found.changes[0].why["values"] == {"temperature": 90}
    assert decided(found) == [(1000, "fired"), (2000, "not_in_states"), (3000, "fired")]


def test_time_passes_between_events_and_after_the_last() -> None:
    held, holding = replace(HOT, hold_s=5), replace(COOL, hold_s=3, repeat_s=10)
    found = replay([held], [holding], past([at(1000, temperature=90)], 30_000))
    assert [(change.at, change.after) for change in found.changes] == [(6000, "alarm")]
    assert decided(found) == [(6000, "held"), (9000, "fired"), (19_000, "fired"), (29_000, "fired")]

    gone = replay([held], [holding], past([at(1000, temperature=90), at(5999, temperature=20)], 30_000))
    assert gone.changes == []


def test_what_waits_at_the_beginning_goes_on() -> None:
    holding, hot = replace(COOL, hold_s=3, repeat_s=10), Facts({"temperature": 90})

    def going_on(since: int) -> list[tuple[int, str]]:
        standing = Standing(state="alarm", since=1000, heard_at=1000)
        return decided(replay([HOT], [holding], Past(hot, standing, [], 30_000, since=since)))

    assert going_on(2000) == [(4000, "fired"), (14_000, "fired"), (24_000, "fired")]
    assert going_on(4001) == going_on(14_000) == [(14_000, "fired"), (24_000, "fired")]
    alarm = replace(WORKING, state="alarm", since=1000)
    assert replay([HOT], [COOL], Past(hot, alarm, [], 30_000, since=2000)).firings == []
    unknown = Past(hot, replace(WORKING, state="alarm", since=0), [], 30_000, since=5000)
    assert replay([HOT], [holding], unknown).firings == []


def test_a_condition_that_held_long_enough_before_the_span_counts_when_it_begins() -> None:
    held, hot = replace(HOT, hold_s=5), Facts({"temperature": 90})
    events = [at(8000, temperature=95), at(20_000, temperature=20)]

    def changes(standing: Standing, **given: int) -> list[tuple[int, str]]:
        found = replay([held], [], Past(hot, standing, events, 30_000, since=7000, warm_ms=5000, **given))
        return [(change.at, change.after) for change in found.changes]

    assert changes(replace(WORKING, state="alarm", since=6000)) == [(20_000, "working")]
    assert changes(WORKING) == [(7000, "alarm"), (20_000, "working")]
    assert changes(WORKING, made_at=3000) == [(8000, "alarm"), (20_000, "working")]


def test_what_began_to_hold_before_the_span_is_entered_in_it() -> None:
    held = replace(HOT, hold_s=5)
    events = [at(4000, temperature=95), at(5000, temperature=20), at(6000, temperature=95)]
    found = replay([held], [COOL], past(events, 30_000, since=7000, warm_ms=5000))
    assert [(change.at, change.after) for change in found.changes] == [(11_000, "alarm")]
    assert decided(found) == [(11_000, "fired")]


def test_a_state_entered_before_the_span_counts_as_entered_when_it_really_was() -> None:
    held, cooling = replace(HOT, hold_s=5), replace(COOL, hold_s=8, repeat_s=10)
    standing = replace(WORKING, state="alarm", since=5500)
    found = replay(
        [held], [cooling], Past(Facts({"temperature": 90}), standing, [], 30_000, since=6000, warm_ms=5000)
    )
    assert found.changes == []
    assert decided(found) == [(13_500, "fired"), (23_500, "fired")]


def test_cooldown_counts_what_fired_before_the_first_event() -> None:
    cooling = replace(COOL, cooldown_s=60)
    found = replay([HOT], [cooling], past([at(1000, temperature=90)], fired={"t": [500]}))
    assert decided(found) == [(1000, "cooling_down")]


def test_what_was_not_decided_by_conditions_is_taken_from_the_record() -> None:
    events = [
        at(1000, temperature=90),
        Event(2000, pinned="down"),
        at(3000, temperature=91),
        Event(4000, released=True),
    ]
    found = replay([HOT], [COOL], past(events))
    assert [(change.at, change.after) for change in found.changes] == [
        (1000, "alarm"),
        (2000, "down"),
        (4000, "alarm"),
    ]
    assert [firing.ruling.decision for firing in found.firings].count(Decision.FIRED) == 2


def test_what_is_due_at_the_moment_of_an_event_comes_before_it() -> None:
    held, later = replace(HOT, hold_s=5), replace(COOL, hold_s=2)
    events = [at(1000, temperature=90), at(6000, temperature=20)]
    found = replay([held], [], past(events))
    assert [(change.at, change.after) for change in found.changes] == [(6000, "alarm"), (6000, "working")]

    fired = replay([HOT], [later], past([at(1000, temperature=90), at(3000, temperature=20)]))
    assert decided(fired) == [(1000, "held"), (3000, "fired"), (3000, "not_in_states")]
    silent = [at(1000, temperature=90), Event(3000, pinned="no_data", by_time=True)]
    assert decided(replay([HOT], [later], past(silent))) == [(1000, "held"), (3000, "not_in_states")]


def test_a_link_follows_both_ends() -> None:
    leak = Condition("c", "alarm", compile_expression("source.flow > target.flow + 5"))
    events = [Event(1, {"flow": 20}, "source"), Event(2, {"flow": 10}, "target")]
    assert [
        change.at
        for change in replay([leak], [], past(events, facts=Facts({}, source={}, target={}))).changes
    ] == [2]


def test_too_much_to_simulate_is_said() -> None:
    quick = replace(COOL, repeat_s=1)
    found = replay([HOT], [quick], past([at(0, temperature=90)], (MOST_STEPS + 10) * 1000))
    assert not found.complete
