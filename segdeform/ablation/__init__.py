"""Do deformable layers pay here? Trains every arm with every seed and compares what comes out.

Each run is a `segdeform train` of its own, in a folder of its own: a killed ablation goes on where
it was, and its runs are models like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from segdeform.ablation.comparison import ArmResult, Interval, compare_arms, verdict
from segdeform.ablation.plan import Arm, Plan, Variant, make_arms
from segdeform.ablation.runner import Runner
from segdeform.atomic import write_error, write_json

__all__ = [
    "Arm",
    "ArmResult",
    "Interval",
    "Plan",
    "Variant",
    "compare_arms",
    "make_arms",
    "run_ablation",
    "verdict",
]


def run_ablation(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains what is not trained yet, writes OUTPUT/ablation.json and returns its content.

    Raises:
        PartialFailureError: a run failed; the others are kept, and the next call tries it again.
        InterruptedByUserError, StoppedError: a run was stopped; call it again.
    """
    try:
        (plan.output / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(plan.output, error) from error
    finished = Runner(plan, say).run()
    results = [ArmResult(arm) for arm in plan.arms]
    for result in results:
        for seed in range(plan.seeds):
            run = finished[result.arm, seed]
            result.miou.append(run["miou"])
            result.seconds.append(run["seconds"])
            result.memory.append(run["peak_memory_bytes"])
            result.parameters = run["parameters"]
    facts = {
        "config": plan.config,
        "overrides": list(plan.overrides),
        "seeds": plan.seeds,
        "arms": [result.to_json() for result in results],
        "comparisons": compare_arms(results),
        "verdict": verdict(results),
    }
    write_json(plan.output / "ablation.json", facts)
    return facts
