"""Scores of a network in training on the validation split, as the `eval` command gives them."""

from __future__ import annotations

from segdeform.errors import InterruptedByUserError
from segdeform.evaluation.evaluate import Evaluation, evaluate
from segdeform.segmenter import Segmenter, load
from segdeform.training import checkpoint
from segdeform.training.checkpoint import TrainState
from segdeform.training.logging import RunLog
from segdeform.training.plan import Plan


def score_now(plan: Plan, state: TrainState) -> Evaluation:
    """Scores the state's best network and leaves it in training mode.

    Raises:
        InterruptedByUserError: a stop was asked for.
    """
    segmenter = Segmenter(
        model=state.best_model.eval(),
        classes=plan.train_set.classes,
        palette=plan.train_set.palette,
        options=plan.config.eval,
        device=plan.device,
        info={"sha256": None},
    )
    try:
        return _score(plan, segmenter)
    finally:
        state.model.train()


def score_last_checkpoint(plan: Plan) -> Evaluation:
    """Scores the network of the newest checkpoint, in the way that the config says now.

    Raises:
        InterruptedByUserError, StoppedError: a stop was asked for; the training itself is saved.
    """
    segmenter = load(checkpoint.checkpoint_folders(plan.run)[0], str(plan.device))
    segmenter.options = plan.config.eval
    try:
        return _score(plan, segmenter)
    except InterruptedByUserError as error:
        raise plan.stop.error("trained and saved, but not yet evaluated") from error


def show_scores(plan: Plan, log: RunLog | None, step: int, evaluation: Evaluation) -> None:
    """Reports the scores and, where there is a log, writes them into it."""
    scores = evaluation.scores
    plan.reporter.message(f"step {step}: val mIoU {scores.miou:.4f}")
    if log is not None:
        log.evaluation(step, scores.miou, scores.accuracy)


def _score(plan: Plan, segmenter: Segmenter) -> Evaluation:
    return evaluate(segmenter, plan.val_set, progress=plan.reporter.evaluating, stop=plan.stop)
