from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotjobs.engine.happenings import Connection, Reported
from iotjobs.engine.rates import BURST_S, EARLIER, LET_GO, Held, Rates, Said
from iotjobs.transports.mqtt_messages import Received

ONE, OTHER = ("thing", "one"), ("thing", "other")


def message(acknowledged: list[int], mid: int, qos: int = 1) -> Received:
    return Received("t", b"", qos, False, False, mid, _acknowledge=acknowledged.append)


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
    for one in held.messages:
        one.ack()
    assert acknowledged == [9, 10, 11, 12]


def test_of_merged_reports_every_job_that_led_to_them_is_known() -> None:
    rates = Rates(1)
    for n in range(BURST_S):
        rates.admit(ONE, message([], n), Reported({}), 0.0)
    for n, job_ids in enumerate((("deep",), ("j1", "j2"), (), ("j1",))):
        rates.admit(ONE, message([], 9 + n), Reported({"a": n}, job_ids=job_ids), 0.1)
    [(_, held)] = list(rates.due(1.0))
    assert held.reported == Reported({"a": 3}, job_ids=("deep", "j1", "j2"), superseded=3)


def test_nothing_is_acknowledged_for_what_is_not_sent_again() -> None:
    rates, acknowledged = Rates(0.2), list[int]()
    assert rates.admit(ONE, message(acknowledged, 1), Reported({}), 0.0)
    for mid, qos, what in (
        (2, 1, Reported({"t": 90})),
        (3, 0, Reported({"t": 91})),
        (4, 1, Connection(online=False)),
        (5, 0, Reported({"t": 92})),
    ):
        assert not rates.admit(ONE, message(acknowledged, mid, qos), what, 0.1)
    assert acknowledged == []
    [(_, held)] = list(rates.due(10.0))
    assert [one.mid for one in held.messages] == [2, 4, 5]  # 3 is not sent again, and has no value left
    assert [part for _, part in held.parts] == [Reported({"t": 92}, superseded=3)]


def test_a_rate_of_less_than_one_in_a_burst_admits_one_at_a_time() -> None:
    rates = Rates(0.1)
    admitted = [rates.admit(ONE, message([], n), Reported({}), at) for n, at in enumerate((0.0, 5.0))]
    assert admitted == [True, False]
    assert list(rates.due(6.0)) == []
    assert len(list(rates.due(10.5))) == 1


def test_of_the_ids_of_a_flood_the_newest_are_kept() -> None:
    rates = Rates(1)
    for n in range(BURST_S + 1000):
        rates.admit(ONE, message([], n), Reported({"a": n}, f"r{n}"), 0.0)
    [(_, held)] = list(rates.due(1.0))
    assert held.reported is not None
    newest = BURST_S + 1000 - 1
    assert held.reported.report_id == f"r{newest}"
    assert held.reported.earlier_ids == tuple(f"r{n}" for n in range(newest - 256, newest))
    assert list(held.ids) == [f"r{n}" for n in range(newest - 255, newest + 1)]


def test_what_came_before_has_no_value_and_is_acknowledged_with_the_next_sign_of_life() -> None:
    acknowledged = list[int]()
    rates = spent(acknowledged)
    acknowledged.clear()
    rates.admit(ONE, message(acknowledged, 10), Reported({"t": 95}, "b"), 0.1)
    rates.admit(ONE, message(acknowledged, 11), Reported({"t": 20}, "a"), 0.1, known=1)
    rates.admit(ONE, message(acknowledged, 12), Reported({"t": 95}, "b"), 0.1)
    rates.admit(ONE, message(acknowledged, 13), Connection(False, report_id="w"), 0.1, known=1)
    assert acknowledged == [11, 13]
    [(messages, what)] = rates.held[ONE].parts
    assert ([one.mid for one in messages], what) == (
        [10, 12],
        Reported({"t": 95}, superseded=2, earlier_ids=("b",)),
    )
    assert isinstance(what, Reported)
    assert what.parts == (Reported({"t": 95}, "b"), Reported({}, "b"))


def test_a_word_that_came_before_and_nothing_else_waits_for_no_token() -> None:
    acknowledged = list[int]()
    rates = spent(acknowledged)
    assert not rates.admit(ONE, message(acknowledged, 10), Connection(False, report_id="w"), 0.1, known=1)
    assert acknowledged == [10]
    assert not rates.held


def test_what_came_with_qos_0_is_not_sent_again_so_its_repeat_waits_with_it() -> None:
    acknowledged = list[int]()
    rates = spent(acknowledged)
    acknowledged.clear()
    rates.admit(ONE, message(acknowledged, 10, 0), Reported({"t": 95}, "b"), 0.1)
    rates.admit(ONE, message(acknowledged, 11), Reported({"t": 95}, "b"), 0.1)
    rates.admit(ONE, message(acknowledged, 12), Connection(False, report_id="w"), 0.1, known=0)
    rates.admit(ONE, message(acknowledged, 13), Reported({}), 0.1)
    assert acknowledged == []
    [(messages, _)] = rates.held[ONE].parts
    assert [one.mid for one in messages] == [10, 11, 12, 13]


def test_who_may_have_to_wait_is_told_before() -> None:
    rates = Rates(1)
    assert [rates.is_short(ONE, count, 0.0) for count in (BURST_S, BURST_S + 1)] == [False, True]
    rates = spent([])
    assert [rates.is_short(ONE, 1, now) for now in (0.5, 1.0)] == [True, False]
    assert not Rates(0).is_short(ONE, 99, 0.0)


def test_what_waits_unacknowledged_is_bounded() -> None:
    rates, acknowledged = Rates(1), list[int]()
    for n in range(BURST_S + 1 + EARLIER):
        rates.admit(ONE, message(acknowledged, n), Reported({f"p{n}": n}), 0.0)
    [(_, held)] = list(rates.due(0.0))
    assert held.reported is not None
    assert (len(held.messages), len(held.reported.values), acknowledged) == (EARLIER + 1, EARLIER + 1, [])


@pytest.mark.parametrize(
    ("qos", "names"), [((0,), "t"), ((1,), "th"), ((0,), "thx"), ((0, 1), "t"), ((0, 0, 1), "th")]
)
def test_a_flood_has_no_more_effects_than_its_rate_however_it_is_said(
    qos: tuple[int, ...], names: str
) -> None:
    rates, effects = Rates(10), 0
    for n in range(10_000):
        now = n / 5000
        if n % 20 == 0:
            effects += len(list(rates.due(now)))
        one = message([], n, qos[n % len(qos)])
        effects += rates.admit(ONE, one, Reported({names[n % len(names)]: n}), now)
    assert effects <= 10 * BURST_S + 10 * 2


def test_of_each_value_the_newest_message_waits_and_of_a_sign_of_life_too() -> None:
    acknowledged = list[int]()
    rates = spent(acknowledged)
    acknowledged.clear()
    for mid, qos, values in ((10, 1, {"a": 0, "b": 0}), (11, 0, {"a": 1}), (12, 1, {}), (13, 1, {"a": 2})):
        rates.admit(ONE, message(acknowledged, mid, qos), Reported(values), 0.1)
    held = rates.held[ONE]
    assert [one.mid for one in held.messages] == [10, 13]
    assert acknowledged == [12]
    rates.admit(ONE, message(acknowledged, 14), Reported({"b": 3}), 0.1)
    assert [one.mid for one in held.messages] == [13, 14]
    assert acknowledged == [12, 10]
    assert [part for _, part in held.parts] == [Reported({"a": 2, "b": 3}, superseded=4)]


def test_what_waits_and_comes_again_has_its_place_already() -> None:
    lost, acknowledged = list[int](), list[int]()
    rates = spent(lost)
    for mid, values in ((10, {"a": 0}), (11, {"a": 1, "b": 1}), (12, {"b": 2})):
        assert not rates.admit(ONE, message(lost, mid), Reported(values), 0.1)
    held = rates.held[ONE]
    for mid in (10, 11, 12):
        assert rates.came_before(ONE, message(acknowledged, mid))
        assert not rates.came_before(OTHER, message(acknowledged, mid))
    assert not rates.came_before(ONE, message(acknowledged, 13))
    assert acknowledged == [10]
    assert [one.mid for one in held.messages] == [11, 12]
    assert [part for _, part in held.parts] == [Reported({"a": 1, "b": 2}, superseded=2)]
    rates.admit(ONE, message(acknowledged, 13), Reported({"a": 3}), 0.1)
    assert acknowledged == [10, 11]
    assert [one.mid for one in held.messages] == [12, 13]


def test_what_comes_again_though_it_was_acknowledged_is_known_as_long_as_it_can() -> None:
    """The broker waits for so many acknowledgements of all devices together."""
    rates = Rates(1)
    devices = [("thing", str(n)) for n in range(4)]
    for n in range(4 * (BURST_S + 100)):
        rates.admit(devices[n % 4], message([], n), Reported({"a": n}), 0.0)
    superseded = [4 * BURST_S + n for n in range(4 * 100 - 4)]
    known = [mid for mid in superseded if rates.came_before(devices[mid % 4], message([], mid))]
    assert known == superseded[-LET_GO:]
    assert sum(len(held.let_go) for _, held in rates.due(1.0)) == LET_GO


_reports = st.builds(Reported, st.dictionaries(st.sampled_from("abc"), st.integers(0, 99), max_size=3))
_words = st.builds(Connection, st.booleans(), retained=st.booleans())
_lines = st.lists(st.tuples(st.one_of(_reports, _words), st.sampled_from((1, 1, 1, 0))), max_size=30)


@given(_lines, st.integers(0, 30))
def test_what_waits_unacknowledged_is_enough_to_tell_it_all_again(
    lines: list[tuple[Said, int]], kept: int
) -> None:
    """Should we die meanwhile; of QoS 0 what is lost then is its own values. The broker had one report kept."""
    lines = [
        (replace(what, retained=True) if at == kept else what, qos) for at, (what, qos) in enumerate(lines)
    ]
    acknowledged = list[int]()
    waiting, again = Held(), Held()
    for mid, (what, qos) in enumerate(lines):
        waiting.add(message(acknowledged, mid, qos), what)
    for mid, (what, qos) in enumerate(lines):
        if qos and mid not in acknowledged:
            again.add(message([], mid), what)
    if all(qos for _, qos in lines):
        for of in ("values", "retained"):
            assert getattr(again.reported, of, None) == getattr(waiting.reported, of, None)
        assert getattr(again.connection, "online", None) == getattr(waiting.connection, "online", None)
    told = [one.mid for messages, _ in waiting.parts for one in messages]
    assert sorted(told) == sorted(one.mid for one in waiting.messages) == sorted(set(told))
    unacknowledged = {mid for mid, (_, qos) in enumerate(lines) if qos} - set(acknowledged)
    assert unacknowledged == {one.mid for one in waiting.messages if one.qos}


def test_a_word_whose_next_one_is_not_sent_again_waits_with_it() -> None:
    acknowledged = list[int]()
    rates = spent(acknowledged)
    acknowledged.clear()
    for mid, qos in ((10, 1), (11, 0), (12, 0)):
        rates.admit(ONE, message(acknowledged, mid, qos), Connection(bool(mid % 2)), 0.1)
    [(words, what)] = rates.held[ONE].parts
    assert (what, {one.mid for one in words}, acknowledged) == (Connection(False, superseded=2), {10, 12}, [])


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


def spent(acknowledged: list[int]) -> Rates:
    """Rates of one a second, whose burst a device has used up with its words."""
    rates = Rates(1)
    for n in range(BURST_S):
        assert rates.admit(ONE, message(acknowledged, n), Connection(bool(n % 2)), 0.0)
    return rates


def test_of_the_words_of_a_connection_that_come_too_quickly_the_last_one_counts() -> None:
    acknowledged = list[int]()
    rates = spent(acknowledged)
    for n in range(9):
        assert not rates.admit(ONE, message(acknowledged, 10 + n), Connection(bool(n % 2)), 0.1)
    assert acknowledged == list(range(10, 18))
    [(_, held)] = list(rates.due(1.0))
    assert [(what, len(messages)) for messages, what in held.parts] == [(Connection(False, superseded=8), 1)]


def test_a_word_stands_behind_the_reports_before_it_and_ends_with_the_report_after_it() -> None:
    acknowledged = list[int]()
    rates = spent(acknowledged)
    rates.admit(ONE, message(acknowledged, 10), Reported({"a": 1}, "r0"), 0.1)
    rates.admit(ONE, message(acknowledged, 11), Connection(False), 0.1)
    rates.admit(ONE, message(acknowledged, 12), Connection(True, retained=True), 0.1)
    held = rates.held[ONE]
    assert [what for _, what in held.parts] == [
        Reported({"a": 1}, "r0"),
        Connection(False, superseded=1),
    ]
    assert acknowledged == [12]

    rates.admit(ONE, message(acknowledged, 13), Reported({"b": 2}, "r1"), 0.1)
    assert [what for _, what in held.parts] == [
        Reported({"a": 1, "b": 2}, "r1", superseded=3, earlier_ids=("r0",))
    ]
    assert acknowledged == [12, 11]
    for n in range(100):
        rates.admit(ONE, message(acknowledged, 20 + n), Connection(False), 0.1)
        rates.admit(ONE, message(acknowledged, 20 + n), Reported({"a": n, "b": n}), 0.1)
    assert len(held.messages) == 1


def test_the_ids_of_words_that_came_too_quickly_are_known() -> None:
    rates = spent([])
    for n in range(3):
        rates.admit(ONE, message([], 10 + n), Connection(bool(n % 2), report_id=f"w{n}"), 0.1)
    rates.admit(ONE, message([], 20), Connection(True, retained=True, report_id="k"), 0.1)
    held = rates.held[ONE]
    assert held.connection == Connection(False, superseded=3, report_id="w2", earlier_ids=("k", "w0", "w1"))
    rates.admit(ONE, message([], 21), Reported({"a": 1}, "r"), 0.1)
    assert held.reported == Reported({"a": 1}, "r", superseded=4, earlier_ids=("k", "w0", "w1", "w2"))


def test_what_the_broker_had_kept_is_older_than_what_came_as_it_was_sent() -> None:
    acknowledged = list[int]()
    rates = spent(acknowledged)
    rates.admit(ONE, message(acknowledged, 10), Connection(False), 0.1)
    rates.admit(ONE, message(acknowledged, 11), Reported({"a": 1, "b": 1}, "k0", retained=True), 0.1)
    held = rates.held[ONE]
    assert held.connection == Connection(False)  # not a sign of life
    rates.admit(ONE, message(acknowledged, 12), Reported({"a": 2}, "r0"), 0.1)
    rates.admit(ONE, message(acknowledged, 13), Reported({"a": 0, "c": 0}, "k1", retained=True), 0.1)
    assert held.reported == Reported({"a": 2, "b": 1, "c": 0}, "r0", superseded=3, earlier_ids=("k1", "k0"))
    assert acknowledged == [10]
