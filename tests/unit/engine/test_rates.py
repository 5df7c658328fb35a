from __future__ import annotations

from iotjobs.engine.rates import BURST_S, Rates
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


def test_the_last_value_wins_and_each_message_before_it_is_acknowledged() -> None:
    rates, acknowledged = Rates(1), list[int]()
    for n in range(BURST_S):
        rates.admit(ONE, message(acknowledged, n), Reported({}), 0.0)
    for n, values in enumerate(({"a": 1, "b": 1}, {"a": 2}, {"c": 3})):
        assert not rates.admit(ONE, message(acknowledged, 10 + n), Reported(values, f"r{n}"), 0.1)
    assert acknowledged == [10, 11]
    assert list(rates.due(0.5)) == []
    [(who, held)] = list(rates.due(1.0))
    assert who == ONE
    assert held.reported == Reported({"a": 2, "b": 1, "c": 3}, "r2", superseded=2)
    assert rates.wait_s() is None
    held.message.ack()
    assert acknowledged == [10, 11, 12]


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
