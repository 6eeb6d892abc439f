"""Do deformable layers pay here? Trains every arm with every seed and compares what comes out.

Each run is a `segdeform train` of its own, in a folder of its own: a killed ablation goes on where
it was, and its runs are models like any other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from segdeform.ablation.comparison import ArmResult, Interval, compare_arms, verdict
from segdeform.ablation.plan import Ablation, Arm, Variant, make_arms
from segdeform.ablation.runner import Runner
from segdeform.config.loading import load_config
from segdeform.errors import UsageError
from segdeform.files import kept_settings
from segdeform.files.atomic import write_error, write_json
from segdeform.files.kept_settings import keep_settings
from segdeform.files.lock import run_lock

__all__ = [
    "Ablation",
    "Arm",
    "ArmResult",
    "Interval",
    "Variant",
    "compare_arms",
    "make_arms",
    "run_ablation",
    "verdict",
]


def run_ablation(plan: Ablation, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains what is not trained yet, writes OUTPUT/ablation.json and returns its content.

    Raises:
        UsageError: OUTPUT holds something else, or an ablation with other settings.
        RunLockedError: another process works in OUTPUT.
        PartialFailureError: a run failed; the others are kept, and the next call tries it again.
        InterruptedByUserError, StoppedError: a run was stopped; call it again.
    """
    _refuse_foreign(plan.output)
    with run_lock(plan.output):
        _settle(plan)
        return _run(plan, say)


def _refuse_foreign(output: Path) -> None:
    try:
        holds = {path.name for path in output.iterdir()} if output.exists() else set()
    except OSError as error:
        raise UsageError(f"{output}: {error.strerror}; choose another --output") from error
    if holds and not holds & {kept_settings.FILE, "logs", ".lock"}:
        raise UsageError(
            f"{output}: holds something else than an ablation; choose another --output"
        )


def _settle(plan: Ablation) -> None:
    """Notes what all runs share, or compares it with what an earlier call noted."""
    config = load_config(plan.config, plan.overrides).model_dump(mode="json")
    shared = {
        f"{name}.{key}": value for name, part in config.items() for key, value in part.items()
    }
    shared["--data"] = None if plan.data is None else str(plan.data.resolve())
    keep_settings(plan.output, shared)
    try:
        (plan.output / "logs").mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(plan.output, error) from error


def _run(plan: Ablation, say: Callable[[str], None]) -> dict[str, Any]:
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
