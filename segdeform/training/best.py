"""Which of a run's networks is the best, and when to stop waiting for a better one.

Both follow from the scores of its evaluations alone, which the state holds: a run that was killed
decides as one that was not. The best network so far lies in RUN/checkpoints/best-STEP, a model
folder; it stays as long as a checkpoint is there by whose scores it is the best.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from segdeform.config.train import TrainConfig
from segdeform.segmenter import save_model
from segdeform.training.checkpoint import TrainState, best_step
from segdeform.training.plan import Plan
from segdeform.training.result import describe
from segdeform.training.run_folder import best_folder


def has_waited_long_enough(train: TrainConfig, scores: Mapping[int, float]) -> bool:
    """Tells whether the last `train.patience` evaluations are no better than one before them."""
    best = best_step(scores)
    if train.patience is None or best is None:
        return False
    return sum(step > best for step in scores) >= train.patience


def evaluation_is_due(train: TrainConfig, state: TrainState) -> bool:
    """Tells whether the state's step is one to evaluate at that has no score yet."""
    due = train.eval_every and state.step % train.eval_every == 0
    return bool(due) and 0 < state.step < train.steps and state.step not in state.scores


def is_over(train: TrainConfig, state: TrainState) -> bool:
    """Tells whether a training has done its steps, or waited long enough."""
    return state.step >= train.steps or has_waited_long_enough(train, state.scores)


def keep_best(plan: Plan, state: TrainState) -> None:
    """Writes the network, where the evaluation of this very step is the best so far.

    Raises:
        ResourceError: the disk is full; what was there stays.
    """
    if best_step(state.scores) == state.step:
        description = describe(plan, {"steps": state.step, "dataset": plan.train_set.name})
        save_model(best_folder(plan.run, state.step), state.best_model, description)


def tell_end(plan: Plan, state: TrainState) -> None:
    """Says why a training ended early, and which network is kept of it."""
    train, step, best = plan.config.train, state.step, best_step(state.scores)
    earlier = {key: score for key, score in state.scores.items() if key < train.steps}
    if step < train.steps and has_waited_long_enough(train, earlier):
        plan.reporter.message(
            f"no better for {train.patience} evaluations: ended at step {step} of {train.steps}"
        )
    if train.keep_best and best is not None:
        count = len(state.scores)
        plan.reporter.message(
            f"kept is the network of step {best}, mIoU {state.scores[best]:.4f}, the best of "
            f"{count} evaluations: on new pictures it may score a little less than that"
        )


def chosen(plan: Plan, state: TrainState) -> dict[str, Any] | None:
    """Returns what model.json tells of a network that was chosen by its score; None: the last."""
    step = best_step(state.scores)
    if not plan.config.train.keep_best or step is None:
        return None
    return {"step": step, "by": f"mIoU on {plan.val_set.split}", "evaluations": len(state.scores)}
