"""Do deformable layers pay here? Trains every arm with every seed and compares what comes out.

Each run is a `segdeform train` of its own, in a folder of its own: a killed ablation goes on where
it was, and its runs are models like any other.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from segdeform.ablation.comparison import ArmResult, Interval, compare_arms, verdict
from segdeform.ablation.plan import Ablation, Arm, Variant, drop_repeated, make_arms
from segdeform.callbacks import Say
from segdeform.config.dotted import by_key
from segdeform.config.loading import Draft, load_draft
from segdeform.errors import UsageError
from segdeform.files import kept_settings
from segdeform.files.atomic import write_error, write_json
from segdeform.files.kept_settings import keep_settings, read_settings
from segdeform.files.lock import run_lock

__all__ = [
    "Ablation",
    "Arm",
    "ArmResult",
    "Interval",
    "Variant",
    "compare_arms",
    "drop_repeated",
    "make_arms",
    "refuse_foreign",
    "run_ablation",
    "verdict",
]


def run_ablation(plan: Ablation, say: Say) -> dict[str, Any]:
    """Trains what is not trained yet, writes OUTPUT/ablation.json and returns its content.

    A run that fails, or has no score, is left out of the comparison, which goes on; "failed" names
    it, and the next call tries it again.

    Raises:
        UsageError: OUTPUT holds something else, or an ablation with other settings.
        RunLockedError: another process works in OUTPUT.
        InterruptedByUserError, StoppedError: a run was stopped; call it again.
    """
    refuse_foreign(plan.output)
    with run_lock(plan.output):
        return _run(_settle(plan, say), say)


def refuse_foreign(output: Path) -> None:
    """Raises UsageError where a folder holds something else than an ablation."""
    try:
        holds = {path.name for path in output.iterdir()} if output.exists() else set()
    except OSError as error:
        raise UsageError(f"{output}: {error.strerror}; choose another --output") from error
    if holds and not holds & {kept_settings.FILE, "logs", ".lock"}:
        raise UsageError(
            f"{output}: holds something else than an ablation; choose another --output"
        )


def _settle(plan: Ablation, say: Say) -> Ablation:
    """Notes what all runs share, or compares it with what an earlier call noted.

    Returns the plan with a value for each key that the config leaves `auto`, the same for all.
    """
    draft = load_draft(plan.config, plan.overrides)
    values: dict[str, Any] = {}
    if draft.auto:
        noted = read_settings(plan.output)
        values = {key: noted[key] for key in draft.auto if key in noted}
        if len(values) < len(draft.auto):
            values = _choose(plan, draft, say)
    shared = by_key(draft.config(values).model_dump(mode="json"))
    shared["--data"] = None if plan.data is None else str(plan.data.resolve())
    keep_settings(plan.output, shared)
    try:
        (plan.output / "logs").mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(plan.output, error) from error
    chosen = [f"{key}={json.dumps(value)}" for key, value in sorted(values.items())]
    if "train.steps" in values:  # decided, also where they were those of some epochs
        chosen.append("train.epochs=null")
    return replace(plan, overrides=[*plan.overrides, *chosen])


def _choose(plan: Ablation, draft: Draft, say: Say) -> dict[str, Any]:
    # torch is imported here because command lines are looked at before it is loaded.
    from segdeform.data import data_root, load_dataset
    from segdeform.machine.device import resolve_device
    from segdeform.training.settling import choose_alone

    data = draft.filled().data
    root = data_root(data.name, plan.data)
    names = (data.train_split, *data.val_splits)
    splits = [load_dataset(data.name, root, name) for name in names]
    return choose_alone(draft, splits, resolve_device(plan.devices[0]), say)


def _run(plan: Ablation, say: Say) -> dict[str, Any]:
    # Its torch is imported here because command lines are looked at before.
    from segdeform.ablation.runner import Runner

    runner = Runner(plan, say)
    finished = runner.run()
    results = [ArmResult(arm) for arm in plan.arms]
    for result in results:
        for seed in range(plan.seeds):
            run = finished.get((result.arm, seed))
            if run is None:
                continue
            if run.result.miou is not None:
                result.miou[seed] = run.result.miou
            result.seconds[seed] = run.result.seconds
            result.memory[seed] = run.result.peak_memory_bytes
            result.parameters = run.parameters
    facts = {
        "config": plan.config,
        "overrides": list(plan.overrides),
        "seeds": plan.seeds,
        "arms": [result.to_json(plan.seeds) for result in results],
        "comparisons": compare_arms(results),
        "verdict": verdict(results),
        "failed": [text for text, _ in runner.failed],
    }
    write_json(plan.output / "ablation.json", facts)
    return facts
