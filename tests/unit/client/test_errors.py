from __future__ import annotations

import pytest

from iotjobs.client.errors import NotNow, Refused, problem_of


@pytest.mark.parametrize("content", [None, [], "text", {"errors": "x"}, {"errors": [1, None]}])
def test_a_refusal_without_a_readable_problem_still_has_its_status(content) -> None:
    error = problem_of(418, content, "from the header")

    assert type(error) is Refused
    assert (error.code, error.status, error.request_id, error.errors) == ("", 418, "from the header", ())
    assert str(error) == "HTTP status 418"


def test_the_title_stands_in_for_a_missing_detail() -> None:
    error = problem_of(500, {"title": "Internal error", "code": "internal", "request_id": "r"}, "h")

    assert type(error) is NotNow
    assert (str(error), error.code, error.request_id) == ("Internal error", "internal", "r")
