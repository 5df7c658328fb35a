from __future__ import annotations

import pytest

from iotjobs.engine.rates import BURST_S, EARLIER, Rates
from iotjobs.engine.reactions import Reported
from iotjobs.transports.mqtt_messages import Received

ONE, OTHER = ("thing", "one"), ("thing", "other")


def message(acknowledged: list[int], mid: int) -> Received:
    return Received("t", b"", 1, False, False, mid, _acknowledge=acknowledged.append)


def test_a_burst_is_admitted_then_one_a_token_and_others_are_not_slowed() -> None:
    rates, acknowledged = Rates(2), list[int]()
    burst = 2 * BURST_S
    admitted = [rates.admit(ONE, message(acknowledged, n), Reported({"n": n}), 0.0) for n in range(burst + 5)]
    assert admitted == [True] * burst + [False] * 5
    assert rates.admit(OTHER, message(acknowledged, 99), Reported({}), 0.0)
    assert rates.wait_s() == 0.5


def test_the_last_value_wins_and_what_has_no_value_left_is_acknowledged() -> None:
    rates, acknowledged = Rates(1), list[int]()
    for n in range(BURST_S):
        rates.admit(ONE, message(acknowledged, n), Reported({}), 0.0)
    for n, values in enumerate(({"a": 0}, {"a": 1, "b": 1}, {"a": 2}, {"c": 3})):
        assert not rates.admit(ONE, message(acknowledged, 9 + n), Reported(values, f"r{n}"), 0.1)
    assert acknowledged == [9]  # the others are the only ones with b, and with c
    assert list(rates.due(0.5)) == []
    [(who, held)] = list(rates.due(1.0))
    assert who == ONE
    assert held.reported == Reported(
        {"a": 2, "b": 1, "c": 3}, "r3", superseded=3, earlier_ids=("r0", "r1", "r2")
    )
    assert rates.wait_s() is None
    for one in (*held.earlier, held.message):
        one.ack()
    assert acknowledged == [9, 10, 11, 12]


def test_what_waits_unacknowledged_is_bounded() -> None:
    rates, acknowledged = Rates(1), list[int]()
    for n in range(BURST_S + 1 + EARLIER):
        rates.admit(ONE, message(acknowledged, n), Reported({f"p{n}": n}), 0.0)
    [(_, held)] = list(rates.due(0.0))
    assert (len(held.earlier), len(held.reported.values), acknowledged) == (EARLIER, EARLIER + 1, [])


def test_names_that_nobody_bears_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("iotjobs.engine.rates._MOST", 10)
    rates = Rates(1)
    for n in range(1000):
        assert rates.admit(("external_id", f"made up {n}"), message([], n), Reported({}), n * 1.0)
    assert len(rates._buckets) <= 2 * BURST_S


def test_a_report_does_not_overtake_one_that_waits() -> None:
    rates, acknowledged = Rates(1), list[int]()
    for n in range(BURST_S + 1):
        rates.admit(ONE, message(acknowledged, n), Reported({"n": n}), 0.0)
    assert not rates.admit(ONE, message(acknowledged, 50), Reported({"n": 50}), 100.0)
    [(_, held)] = list(rates.due(100.0))
    assert held.reported.values == {"n": 50}


def test_without_a_rate_nothing_waits() -> None:
    rates = Rates(0)
    assert all(rates.admit(ONE, message([], n), Reported({}), 0.0) for n in range(10_000))
