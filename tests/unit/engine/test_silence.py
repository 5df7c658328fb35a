from __future__ import annotations

import pytest

from iotjobs import clock
from iotjobs.engine.silence import Silence


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    moment = [1000.0]
    monkeypatch.setattr(clock, "monotonic", lambda: moment[0])
    return moment


def test_what_does_not_change_is_silent_after_its_time_by_our_own_watch(now: list[float]) -> None:
    silence: Silence[int] = Silence(10)
    assert silence.of({"dead": 1, "alive": 10**15}, 1000.0) == {}  # whatever it says

    now[0] = 1009.9
    assert silence.of({"dead": 1, "alive": 5}, 1009.9) == {}
    now[0] = 1010.0
    assert silence.of({"dead": 1, "alive": 6}, 1010.0) == {"dead": 1}
    assert silence.of({"dead": 2}, 1010.0) == {}


def test_a_look_that_took_long_counts_from_its_safe_end(now: list[float]) -> None:
    silence: Silence[int] = Silence(10)
    now[0] = 1020.0
    assert silence.of({"a": 1}, 1000.0) == {}  # seen at 1020, at the latest
    now[0] = 1031.0
    assert silence.of({"a": 1}, 1029.0) == {}  # asked at 1029, at the latest
    assert silence.of({"a": 1}, 1030.0) == {"a": 1}


def test_who_comes_back_is_watched_anew(now: list[float]) -> None:
    silence: Silence[int] = Silence(10)
    silence.of({"a": 1}, 1000.0)
    silence.of({}, 1005.0)
    now[0] = 1011.0
    assert silence.of({"a": 1}, 1011.0) == {}
