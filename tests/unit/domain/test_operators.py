"""What operators do with JSON values; `test_expressions` has them in their language."""

from __future__ import annotations

from typing import Any

import pytest

from iotjobs.domain import operators
from iotjobs.domain.operators import NoValue


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (1, 1.0, True),
        (10**20, 1e20, True),
        (1, True, False),
        (0, False, False),
        (None, False, False),
        ("1", 1, False),
        ([1, [2.0]], [1.0, [2]], True),
        ([1], [True], False),
        ([1], [1, 2], False),
        ({"a": [1]}, {"a": [1.0]}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"b": 1}, False),
        ([], {}, False),
    ],
)
def test_equality_is_of_values_and_never_across_kinds(left: Any, right: Any, expected: bool) -> None:
    assert operators.equal(left, right) is expected
    assert operators.equal(right, left) is expected


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "null"), (True, "true"), (1.5, "a number"), ("", "a text"), ([], "a list"), ({}, "an object")],
)
def test_a_kind_is_said_in_words(value: Any, said: str) -> None:
    assert operators.kind(value) == said


def _no_value(_: Any) -> Any:
    raise NoValue("why not")


@pytest.mark.parametrize("decisive", [True, False])
def test_one_side_decides_on_either_place_and_else_the_first_problem_is_told(decisive: bool) -> None:
    problem, decides, leaves_open = (
        (_no_value, "x"),
        (lambda _: decisive, "y"),
        (lambda _: not decisive, "z"),
    )
    assert operators.logic([problem, decides], decisive=decisive)(None) is decisive
    assert operators.logic([decides, problem], decisive=decisive)(None) is decisive
    assert operators.logic([leaves_open, leaves_open], decisive=decisive)(None) is not decisive
    with pytest.raises(NoValue, match="why not"):
        operators.logic([leaves_open, problem], decisive=decisive)(None)


def test_a_missing_member_is_told_apart_from_one_that_cannot_be() -> None:
    assert operators.has((lambda _: {}, "o"), "x")(None) is False
    assert operators.has((lambda _: {"x": None}, "o"), "x")(None) is True
    with pytest.raises(NoValue, match="n is a number and has no members"):
        operators.has((lambda _: 1, "n"), "x")(None)
    o_dot_x = operators.member((lambda _: {}, "o"), (lambda _: "x", "x"))
    with pytest.raises(NoValue, match="o has no x"):
        operators.has((o_dot_x, "o.x"), "y")(None)
