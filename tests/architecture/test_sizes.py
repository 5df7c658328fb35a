"""Sizes that keep a file to one subject and a function to one screen.

Lines are counted as the editor shows them, docstrings and blanks included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from tests.architecture.source import AGENTS, PACKAGE, FunctionNode, Module, modules, snippet

Measured = list[tuple[int, str]]


def module_lengths(measured: Iterable[Module]) -> Measured:
    return [(module.line_count, module.path) for module in measured]


def function_lengths(measured: Iterable[Module]) -> Measured:
    return [
        ((node.end_lineno or node.lineno) - node.lineno + 1, f"{module.path}:{node.lineno} {node.name}")
        for module in measured
        for node in module.functions()
    ]


def positional_counts(measured: Iterable[Module]) -> Measured:
    return [
        (positional(node), f"{module.path}:{node.lineno} {node.name}")
        for module in measured
        for node in module.functions()
    ]


def positional(node: FunctionNode) -> int:
    names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def over(measured: Measured, *, usual: int, most: int) -> str:
    """Why the sizes are too big, with the worst five; empty when they are not.

    `usual` is the limit for 95 of 100, rounded up to at least one exception; `most` is for all.
    """
    allowed = math.ceil(len(measured) * 0.05)
    above = [size for size, _ in measured if size > usual]
    if len(above) <= allowed and not any(size > most for size, _ in measured):
        return ""
    return f"{len(above)} of {len(measured)} over {usual} (allowed: {allowed}), none may be over {most}\n{worst(measured)}"


def worst(measured: Measured) -> str:
    return "\n".join(f"{size:6} {where}" for size, where in sorted(measured, reverse=True)[:5])


@pytest.mark.parametrize(
    ("measure", "usual", "most"),
    [(module_lengths, 400, 500), (function_lengths, 40, 60), (positional_counts, 5, 5)],
    ids=["lines of a module", "lines of a function", "positional parameters"],
)
def test_sizes_stay_readable(measure, usual: int, most: int) -> None:
    measured = measure(modules(PACKAGE, AGENTS))
    print(worst(measured))  # noqa: T201 - shown by `make test ARGS="-n0 -s tests/architecture/test_sizes.py"`

    assert not over(measured, usual=usual, most=most), over(measured, usual=usual, most=most)


def test_sizes_over_the_limits_are_found() -> None:
    small = [(10, "small")] * 40

    assert "501 big" in over([*small, (501, "big")], usual=400, most=500)
    assert "4 of 44" in over([*small, *[(450, "long")] * 4], usual=400, most=500)
    assert over([*small, (450, "long"), (450, "long")], usual=400, most=500) == ""


def test_what_is_measured() -> None:
    sample = snippet(
        "class A:\n    def f(self, a, b, /, c, *, d):\n        return (\n            a\n        )\n"
    )

    assert module_lengths([sample]) == [(5, sample.path)]
    assert function_lengths([sample]) == [(4, f"{sample.path}:2 f")]
    assert positional_counts([sample]) == [(3, f"{sample.path}:2 f")]
