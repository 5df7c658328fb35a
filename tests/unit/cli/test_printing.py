from __future__ import annotations

import pytest

from iotjobs.cli.printing import complain, first_line, visible
from iotjobs.cli.report import Report
from iotjobs.cli.running import Order
from iotjobs.client.errors import Problem, Unreachable
from iotjobs.client.shapes import Named


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ä ✓ 漢", "plain ä ✓ 漢"),
        ("\x00\t\x1b\x1f", "␀␉␛␟"),
        ("\x7f\x85\x9b", "␡\\x85\\x9b"),
        ("\u2028\u2066\u200b\ufeff", "\\u2028\\u2066\\u200b\\ufeff"),
        ("\udcff", "\\udcff"),
    ],
)
def test_control_characters_become_visible(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("\n \n", ""),
        ("\n\none\r\ntwo", "one"),
        ("a\tb", "a␉b"),
        ("x" * 201, "x" * 199 + "…"),
        ("x" * 200, "x" * 200),
    ],
)
def test_the_first_line_with_something_on_it(text: str, line: str) -> None:
    assert first_line(text) == line


def test_an_error_of_the_server_names_its_request(capsys) -> None:
    complain(Problem("internal", 500, "an error of ours", request_id="req-9"), about="press-057")

    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        "iotjobs: press-057: an error of ours",
        "  the server's log has it under req-9",
    ]


def test_a_job_that_may_have_been_started_comes_with_the_key_that_tells(capsys) -> None:
    order = Order(Named("1", "press-057", {}), Named("2", "restart", {}))
    report = Report(waits=True, as_json=True)
    report.orders = [order]
    report.not_started(order, Unreachable("http://x", "cut", maybe_done=True), "key-1")

    assert report.end() == 6
    told = capsys.readouterr()
    assert "--idempotency-key key-1" in told.err
    assert told.out == "[]\n"
