from __future__ import annotations

import pytest

from iotjobs.domain.errors import BadRequest
from iotjobs.inputs.moments import LATEST_MS, read_moment


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
