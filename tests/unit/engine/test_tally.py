from __future__ import annotations

import pytest

from iotjobs import clock
from iotjobs.engine.tally import NAMES, WRITE_EVERY_S, Tally
from iotjobs.store.unheeded import TEXT_CHARACTERS, Refusal, Unheeded

PRESS, VALVE = ("thing", "press"), ("external_id", "valve")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that is moved by the test."""
    made = Clock()
    monkeypatch.setattr(clock, "monotonic", lambda: made.now)
    monkeypatch.setattr(clock, "now_ms", lambda: int(made.now))
    return made


def test_the_first_is_written_at_once_and_what_follows_a_second_later(at: Clock) -> None:
    counts = Tally()
    assert counts.wait_s() is None
    counts.refuse(PRESS, "t", "no")
    assert counts.wait_s() == 0
    counts.written(counts.take())
    assert counts.wait_s() is None

    counts.refuse(PRESS, "t", "no")
    counts.repeat(VALVE)
    assert counts.wait_s() == WRITE_EVERY_S
    assert counts.take() == {}
    at.now += WRITE_EVERY_S
    assert counts.take() == {
        PRESS: Unheeded(0, 1, Refusal(1000, "t", "no")),
        VALVE: Unheeded(1),
    }


def test_what_is_not_written_stays_and_is_tried_again_a_second_later(at: Clock) -> None:
    counts = Tally()
    counts.refuse(PRESS, "t", "no")
    assert counts.take()
    assert counts.take() == {}
    counts.refuse(PRESS, "t", "nor that", count=3)
    at.now += WRITE_EVERY_S
    assert counts.take() == {PRESS: Unheeded(0, 4, Refusal(1000, "t", "nor that"))}


def test_what_comes_while_it_is_written_is_counted_next(at: Clock) -> None:
    counts = Tally()
    counts.refuse(PRESS, "t", "no")
    counts.repeat(VALVE)
    given = counts.take()
    counts.repeat(PRESS)
    counts.refuse(PRESS, "t", "nor that")
    counts.written(given)
    at.now += WRITE_EVERY_S
    assert counts.take() == {PRESS: Unheeded(1, 1, Refusal(1000, "t", "nor that"))}


def test_a_flood_of_names_that_are_made_up_is_held_in_bounds(at: Clock) -> None:
    counts = Tally()
    for number in range(NAMES + 10):
        counts.refuse(("thing", f"t{number}"), "t" * 900, "w" * 900)
    counts.refuse(("thing", "t0"), "t", "no")
    found = counts.take()
    assert len(found) == NAMES
    assert found["thing", "t0"].refused == 2
    assert found["thing", "t1"].last == Refusal(1000, "t" * TEXT_CHARACTERS, "w" * TEXT_CHARACTERS)
