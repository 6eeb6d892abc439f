"""How sure a score is: intervals from drawing the pictures again, with replacement.

Pixels of one picture are alike, so pictures and not pixels are drawn (Efron and Tibshirani 1993, An
Introduction to the Bootstrap, chapter 13: percentile intervals). This tells what other pictures of
the same kind would have given; it does not tell how another training run would have ended.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segdeform.evaluation.counts import Column, Floats, Rows, class_sums, ratio, union

RESAMPLES: Final = 1000
LEVEL: Final = 0.95
SEED: Final = 0

Interval = tuple[float, float] | None  # None: too few pictures to say


def resampled_ious(
    rows: Rows,
    pictures: int,  # N
    classes: int,  # K
) -> Floats:  # [RESAMPLES, K]
    """Computes the class IoUs of resampled splits; NaN where a class was not drawn.

    The draws depend on the number of pictures alone, so two models' resamples are pairs.
    """
    generator = np.random.default_rng(SEED)
    correct = rows[:, Column.CORRECT]
    either = union(rows)
    result = np.empty((RESAMPLES, classes))
    for resample in result:
        drawn = np.bincount(generator.integers(0, pictures, pictures), minlength=pictures)
        times = drawn[rows[:, Column.PICTURE]]  # how often each row's picture was drawn
        resample[:] = ratio(
            class_sums(rows, times * correct, classes), class_sums(rows, times * either, classes)
        )
    return result


def mean_ious(
    ious: Floats,  # [RESAMPLES, K]
) -> Floats:  # [RESAMPLES]
    """Returns the mean over the classes that occur, NaN where none does."""
    present = ~np.isnan(ious)
    return ratio(np.where(present, ious, 0).sum(axis=1), present.sum(axis=1))


def interval(values: NDArray[Any], pictures: int) -> Interval:
    """Returns the central percentiles of resampled values; None for less than two pictures."""
    values = values[~np.isnan(values)]
    if pictures < 2 or not len(values):
        return None
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def describe() -> dict[str, Any]:
    """Describes the intervals, for the protocol."""
    return {
        "method": "percentile bootstrap over pictures",
        "level": LEVEL,
        "resamples": RESAMPLES,
        "seed": SEED,
    }
