from __future__ import annotations

import pytest

from iotjobs.domain.errors import BadRequest
from iotjobs.inputs.moments import LATEST_MS, read_ago, read_ahead, read_moment


@pytest.mark.parametrize(
    ("text", "moment_ms"),
    [
        ("0", 0),
        ("1795328126916", 1795328126916),
        ("1970-01-01T00:00:00.001Z", 1),
        ("2026-11-22T10:00:00+01:00", 1795338000000),
        (str(LATEST_MS), LATEST_MS),
    ],
)
def test_a_moment_is_digits_or_a_date_with_its_zone(text: str, moment_ms: int) -> None:
    assert read_moment("start_at", text) == moment_ms


@pytest.mark.parametrize(
    "text",
    ["", "soon", "-1", "1.5", "2026-11-22T10:00:00", "9999-12-31T23:59:59Z", "999999999999999", "1e3", "١٢"],
)
def test_what_no_calendar_has_is_refused_with_the_parameters_name(text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        read_moment("start_at", text)

    assert refused.value.errors[0].field == "start_at"


NOW = 1_795_328_126_916


@pytest.mark.parametrize(
    ("text", "away_ms"), [("30s", 30_000), ("90m", 5_400_000), ("2h", 7_200_000), ("7d", 604_800_000)]
)
def test_a_span_counts_back_or_ahead_as_the_parameter_means_it(text: str, away_ms: int) -> None:
    assert read_ago("since", text, NOW) == NOW - away_ms
    assert read_ahead("until", text, NOW) == NOW + away_ms


def test_a_moment_is_as_good_as_a_span_and_has_its_zone() -> None:
    before, after = "2026-11-01T10:00:00Z", "2026-12-01T10:00:00Z"
    assert read_ago("since", before, NOW) == read_moment("since", before)
    assert read_ahead("until", after, NOW) == read_moment("until", after)
    assert read_ago("since", "999999d", NOW) == 0
    assert read_ago("since", after, NOW) == read_moment("since", after)  # a list may be asked for it
    for over in (before, "0s"):
        with pytest.raises(BadRequest, match="until is over already"):
            read_ahead("until", over, NOW)


@pytest.mark.parametrize("text", ["1 hour", "", "2w", "-2h", "1.5h", "٢h", "2026-11-22T10:00:00", "h"])
def test_what_is_neither_is_refused_with_both_named(text: str) -> None:
    for read in (read_ago, read_ahead):
        with pytest.raises(BadRequest, match="since: a span such as 90m, 2h or 7d, or a moment in RFC 3339"):
            read("since", text, NOW)
