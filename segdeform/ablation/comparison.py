"""What the runs say: means, intervals, differences seed by seed, and a sentence.

Whoever tries many networks finds a good one by chance: what is claimed of the best of m is tested
as m claims are (Bonferroni for the verdict, Holm for the single comparisons), so that all claims
together are wrong in 5% of ablations at most.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from segdeform.ablation.plan import Arm

_LEVEL = 0.95  # of intervals and of all claims together


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with the interval that Student's t gives it; None for one seed."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float], level: float = _LEVEL) -> Interval:
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, None, None)
        from scipy.special import stdtrit  # half a second: not before the command line is seen

        t = float(stdtrit(len(values) - 1, (1 + level) / 2))
        half = t * statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval of a difference leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass
class ArmResult:
    """What the runs of an arm gave, by seed; what failed or has no score is missing."""

    arm: Arm
    miou: dict[int, float] = field(default_factory=dict)
    seconds: dict[int, float] = field(default_factory=dict)
    memory: dict[int, int] = field(default_factory=dict)  # bytes at the peak
    parameters: int | None = None

    def to_json(self, seeds: int) -> dict[str, Any]:
        """Returns means, interval and the single values as JSON values; None: no run gave one."""
        return {
            "arm": self.arm.name,
            "overrides": self.arm.overrides(),
            "miou": _interval_json(list(self.miou.values())),
            "miou_by_seed": [self.miou.get(seed) for seed in range(seeds)],
            "parameters": self.parameters,
            "seconds": statistics.fmean(self.seconds.values()) if self.seconds else None,
            "peak_memory_bytes": max(self.memory.values(), default=None),
        }


def _interval_json(values: Sequence[float]) -> dict[str, float | None]:
    return vars(Interval.of(values)) if values else {"mean": None, "low": None, "high": None}


def compare_arms(results: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """Compares every deformable arm with the plain one of its dilation, seed by seed.

    Intervals are of one comparison by itself; `beyond_noise` holds for all of them together (Holm
    1979, "A simple sequentially rejective multiple test procedure").
    """
    plain = {result.arm.dilation: result for result in results if not result.arm.layers}
    rows, chances = [], []
    for result in results:
        base = plain.get(result.arm.dilation)
        if not result.arm.layers or base is None:
            continue
        change = _differences(result, base)
        row = {"arm": result.arm.name, "against": base.arm.name, **_interval_json(change)}
        rows.append(row | {"beyond_noise": False, "time_ratio": _time_ratio(result, base)})
        chances.append(_chance(change))
    order = sorted(range(len(rows)), key=chances.__getitem__)
    for place, index in enumerate(order):
        if chances[index] * (len(rows) - place) > 1 - _LEVEL:
            break
        rows[index]["beyond_noise"] = True
    return rows


def _differences(result: ArmResult, base: ArmResult) -> list[float]:
    """Returns the differences of the seeds that both have a score of."""
    shared = sorted(result.miou.keys() & base.miou.keys())
    return [result.miou[seed] - base.miou[seed] for seed in shared]


def _chance(differences: Sequence[float]) -> float:
    """Returns how often chance alone gives a mean as far from 0: Student's t, two-sided."""
    if len(differences) < 2:
        return 1.0
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if spread == 0:
        return float(mean == 0)
    t = abs(mean) / (spread / math.sqrt(len(differences)))
    from scipy.special import stdtr  # as above

    return 2 * float(stdtr(len(differences) - 1, -t))


def _time_ratio(result: ArmResult, base: ArmResult) -> float | None:
    if not result.seconds or not base.seconds:
        return None
    return statistics.fmean(result.seconds.values()) / statistics.fmean(base.seconds.values())


def verdict(results: Sequence[ArmResult]) -> str:
    """Says in a sentence whether deformable layers paid.

    They paid if one deformable network beats every plain one, because a good part of what
    deformable layers gain is reach, which a larger dilation gives as well (Dai et al. 2017, table
    3); they did not if one plain network beats every deformable one. Against several, all tests
    must hold, which needs no correction (Berger 1982, intersection-union tests); of several that
    might, each is tested at 1/m of the level. So either claim is made by chance in 2.5% at most.
    """
    plain = [result for result in results if not result.arm.layers]
    deformable = [result for result in results if result.arm.layers]
    if not plain or not deformable:
        return "Nothing to compare: give 0 and another number of layers."
    plain, deformable = ([r for r in group if r.miou] for group in (plain, deformable))
    if not plain or not deformable:
        return "Nothing to compare: too few runs have a score."
    if found := _beats_all(deformable, plain):
        return f"Deformable layers paid: {_pair(*found, choices=len(deformable))}."
    if found := _beats_all(plain, deformable):
        return f"Deformable layers did not pay: {_pair(*found[::-1], choices=len(plain))}."
    best, base = (
        max(group, key=lambda r: statistics.fmean(r.miou.values())) for group in (deformable, plain)
    )
    which = f"{best.arm.name} against {base.arm.name}, the best of each"
    if len(differences := _differences(best, base)) < 2:
        change = f": {differences[0]:+.4f} mIoU" if differences else " have no seed in common"
        return f"{which}{change}. One seed cannot tell this from noise."
    pair = _pair(best, base, ", the best of each")
    if not Interval.of(differences).beyond_noise:
        return f"Not shown: {pair}. It cannot be told from noise."
    return (
        f"Not shown: {pair} by themselves. But with {len(deformable)} deformable and {len(plain)} "
        "plain networks tried, none beats all of the other kind by more than noise."
    )


def _beats_all(
    ours: Sequence[ArmResult], theirs: Sequence[ArmResult]
) -> tuple[ArmResult, ArmResult] | None:
    """Finds an arm that beats all others by more than noise, with the one that it beats least."""
    level = 1 - (1 - _LEVEL) / len(ours)
    winners = []
    for arm in ours:
        lows = [_low(_differences(arm, other), level) for other in theirs]
        if min(lows) > 0:
            winners.append((min(lows), arm, theirs[lows.index(min(lows))]))
    if not winners:
        return None
    _, arm, nearest = max(winners, key=lambda winner: winner[0])
    return arm, nearest


def _low(differences: Sequence[float], level: float) -> float:
    low = Interval.of(differences, level).low if differences else None
    return -math.inf if low is None else low


def _pair(first: ArmResult, second: ArmResult, which: str = "", choices: int = 1) -> str:
    """Words the difference of two arms that have two seeds in common at least."""
    differences, ratio = _differences(first, second), _time_ratio(first, second)
    change = Interval.of(differences, 1 - (1 - _LEVEL) / choices)
    time = "" if ratio is None else f", {ratio:.2f} times the time"
    corrected = f", corrected for the choice among {choices}" if choices > 1 else ""
    return (
        f"{first.arm.name} against {second.arm.name}{which}: {change.mean:+.4f} mIoU{time}, "
        f"95% interval {change.low:+.4f} to {change.high:+.4f} over "
        f"{len(differences)} seeds{corrected}"
    )
