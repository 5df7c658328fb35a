from __future__ import annotations

import uuid

import pytest

from iotjobs import clock


def test_an_id_is_a_uuid_of_version_seven_and_holds_its_moment() -> None:
    before = clock.now_ms()
    found = uuid.UUID(hex=clock.new_id())
    assert (found.version, found.variant) == (7, uuid.RFC_4122)
    assert before <= found.int >> 80 <= clock.now_ms() + 1


def test_ids_of_a_process_sort_in_their_order_also_within_a_millisecond(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (made := [clock.new_id() for _ in range(20_000)]) == sorted(made)
    moment = clock.now_ms() + 1
    monkeypatch.setattr(clock, "now_ms", lambda: moment)
    made = [clock.new_id() for _ in range(10_000)]  # more than there are 4096ths
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_steps_and_ids_are_in_one_order() -> None:
    steps = [clock.step_of(clock.new_id()) if number % 2 else clock.new_step() for number in range(10_000)]
    assert steps == sorted(set(steps))


def test_a_clock_that_is_set_back_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = clock.now_ms()
    clock.new_id()
    monkeypatch.setattr(clock, "now_ms", lambda: now - 86_400_000)
    assert int(clock.new_id(), 16) >> 80 == now - 86_400_000
