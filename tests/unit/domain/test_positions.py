from __future__ import annotations

import pytest

from iotjobs.domain.positions import line_and_column


@pytest.mark.parametrize(
    ("position", "place"), [(0, (1, 1)), (2, (1, 3)), (3, (2, 1)), (4, (3, 1)), (6, (3, 3))]
)
def test_lines_and_columns_count_from_one(position: int, place: tuple[int, int]) -> None:
    assert line_and_column("ab\n\ncd", position) == place
