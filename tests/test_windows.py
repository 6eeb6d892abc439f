"""Cutting pictures into windows with context."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segdeform.windows import Window, cores, grown


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    step=st.sampled_from([8, 16, 32]),
    context=st.integers(0, 20),
    most=st.integers(1, 4_000_000),
)
def test_windows_cover_a_picture_once_and_keep_to_the_bound(
    height: int, width: int, step: int, context: int, most: int
) -> None:
    around, size = step * context, (height, width)
    found = cores(Window(0, 0, height, width), around, most, step, size)
    covered = np.zeros(size, np.uint8)
    for core in found:
        covered[core.top : core.top + core.height, core.left : core.left + core.width] += 1
        assert core.top % step == core.left % step == 0
        outer = grown(core, around, size)
        least = outer.height * outer.width <= (128 + step + 2 * around) ** 2
        assert outer.height * outer.width <= most or least
    assert (covered == 1).all()


def test_a_window_grows_within_the_picture() -> None:
    assert grown(Window(32, 64, 16, 16), 32, (100, 90)) == Window(0, 32, 80, 58)


@pytest.mark.parametrize("most", [3_000_000, 8_000_000])
def test_few_pixels_are_seen_twice(most: int) -> None:
    """No regular cut of a square into rows and columns of the same context is cheaper."""
    side, around, step = 4096, 256, 16

    def total(rows: int, columns: int) -> float:
        def wide(count: int) -> tuple[int, int]:
            part = math.ceil(side / count / step) * step
            spans = [
                min(side, at + part + around) - max(0, at - around) for at in range(0, side, part)
            ]
            return max(spans), sum(spans)

        (high, down), (broad, across) = wide(rows), wide(columns)
        return down * across if high * broad <= most else math.inf

    best = min(total(rows, columns) for rows in range(1, 17) for columns in range(1, 17))
    found = cores(Window(0, 0, side, side), around, most, step, (side, side))
    outer = [grown(core, around, (side, side)) for core in found]
    assert sum(window.height * window.width for window in outer) == best
    assert best < 1.8 * side**2
