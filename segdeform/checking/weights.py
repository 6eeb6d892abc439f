"""How much a class's pixels weigh in training where classes are rare: one rule, told and chosen."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

HEAVIEST = 10  # weight of a class: its few pixels must not decide a step alone
RULE = f"the root of median share / share, at most {HEAVIEST}"


def balancing_weights(shares: Sequence[float]) -> list[float]:
    """Weighs classes by the square root of median share / share; those that are absent by 1.

    Eigen and Fergus 2015, section 6.3.1, weigh by the ratio itself, with which common pixels are
    taken for rare ones many times over. With its 0.4th power thin cracks of 1.6% were still not
    predicted at all after 130 steps.
    """
    present = [share for share in shares if share > 0]
    if not present:
        return [1.0 for _ in shares]
    middle = median(present)
    return [round(min(HEAVIEST, (middle / s) ** 0.5), 3) if s > 0 else 1.0 for s in shares]
