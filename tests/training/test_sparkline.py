from __future__ import annotations

import math

import pytest

from segdeform.training.sparkline import sparkline


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        ([], 5, ""),
        ([1.0], 5, ""),
        ([0.0, 7.0], 5, "▁█"),
        ([7.0, 0.0, 3.5], 5, "█▁▅"),
        ([2.0, 2.0, 2.0], 5, "▁▁▁"),
        ([0.0, 0.0, 7.0, 7.0, 0.0, 0.0], 3, "▁█▁"),  # means of two
        ([math.nan, 1.0, math.inf, 2.0], 9, "▁█"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
    ],
)
def test_bars(values: list[float], width: int, drawn: str) -> None:
    assert sparkline(values, width) == drawn


def test_a_terminal_that_knows_no_bars_gets_letters() -> None:
    assert sparkline([7.0, 0.0, 3.5], 5, "ascii") == "@_+"


@pytest.mark.parametrize("count", [2, 3, 17, 1000])
def test_no_value_is_left_out(count: int) -> None:
    """A single high value among many is seen wherever it is."""
    for place in range(0, count, max(1, count // 7)):
        values = [0.0] * count
        values[place] = 1.0
        drawn = sparkline(values, 16)
        assert len(drawn) == min(16, count) and drawn.count("█") == 1
