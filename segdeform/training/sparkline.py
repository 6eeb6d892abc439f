"""Numbers as a row of small bars, for a line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

_BARS, _ASCII = "▁▂▃▄▅▆▇█", "_.-=+*#@"


def sparkline(values: Sequence[float], width: int, encoding: str = "utf-8") -> str:
    """Draws values between their lowest and highest, as many characters at most as `width`.

    More values than that are averaged in runs of about equal length; what is no number is left out.
    """
    known = [value for value in values if math.isfinite(value)]
    count = min(width, len(known))
    if count < 2:
        return ""
    edges = [round(k * len(known) / count) for k in range(count + 1)]
    runs = [known[a:b] for a, b in pairwise(edges)]
    means = [math.fsum(run) / len(run) for run in runs]
    low, high = min(means), max(means)
    bars = _BARS if encoding.lower().startswith("utf") else _ASCII
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(bars[round((value - low) * scale)] for value in means)
