"""What the runs say: means, intervals, differences seed by seed, and a sentence."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from segdeform.ablation.plan import Arm

# Student's t, 97.5%, for 1, 2, ... degrees of freedom; beyond the last it is a little too wide.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
      2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)  # fmt: skip


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with the 95% interval that Student's t gives it; None for one seed."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, None, None)
        t = _T[min(len(values) - 1, len(_T)) - 1]
        half = t * statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval of a difference leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass
class ArmResult:
    """What the runs of an arm gave, a value a seed."""

    arm: Arm
    miou: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # bytes at the peak
    parameters: int = 0

    def to_json(self) -> dict[str, Any]:
        """Returns means, interval and the single values as JSON values."""
        return {
            "arm": self.arm.name,
            "overrides": self.arm.overrides(),
            "miou": vars(Interval.of(self.miou)),
            "miou_by_seed": self.miou,
            "parameters": self.parameters,
            "seconds": statistics.fmean(self.seconds),
            "peak_memory_bytes": max(self.memory),
        }


def compare_arms(results: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """Compares every deformable arm with the plain one of its dilation, seed by seed."""
    plain = {result.arm.dilation: result for result in results if not result.arm.layers}
    found = []
    for result in results:
        base = plain.get(result.arm.dilation)
        if result.arm.layers and base is not None:
            found.append(_difference(result, base))
    return found


def _difference(result: ArmResult, base: ArmResult) -> dict[str, Any]:
    change = Interval.of([a - b for a, b in zip(result.miou, base.miou, strict=True)])
    return {
        "arm": result.arm.name,
        "against": base.arm.name,
        **vars(change),
        "beyond_noise": change.beyond_noise,
        "time_ratio": statistics.fmean(result.seconds) / statistics.fmean(base.seconds),
    }


def verdict(results: Sequence[ArmResult]) -> str:
    """Says in a sentence whether deformable layers paid, against the best plain network.

    The best plain network, because a good part of what deformable layers gain is reach, which a
    larger dilation gives as well (Dai et al. 2017, table 3).
    """
    plain = [result for result in results if not result.arm.layers]
    deformable = [result for result in results if result.arm.layers]
    if not plain or not deformable:
        return "Nothing to compare: give 0 and another number of layers."
    best, base = (
        max(group, key=lambda r: statistics.fmean(r.miou)) for group in (deformable, plain)
    )
    found = _difference(best, base)
    change = f"{found['mean']:+.4f} mIoU, {found['time_ratio']:.2f} times the time"
    pair = f"{best.arm.name} against {base.arm.name}, the best of each: {change}"
    if found["low"] is None:
        return f"{pair}. One seed cannot tell this from noise."
    pair += (
        f", 95% interval {found['low']:+.4f} to {found['high']:+.4f} over {len(base.miou)} seeds"
    )
    if not found["beyond_noise"]:
        return f"Not shown: {pair}. It cannot be told from noise."
    return f"Deformable layers {'paid' if found['mean'] > 0 else 'did not pay'}: {pair}."
