"""Where in a text something stands, as people count."""

from __future__ import annotations


def line_and_column(text: str, position: int) -> tuple[int, int]:
    """The line and column, both from 1, of a position, from 0."""
    begin = text.rfind("\n", 0, position) + 1
    return text.count("\n", 0, position) + 1, position - begin + 1
