"""Scores of a network in training on the validation splits, as the `eval` command gives them.

Of several splits all are scored, in the order of the config; the first is the one that decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from segdeform.errors import InterruptedByUserError
from segdeform.evaluation.evaluate import Evaluation, KeepLabels, evaluate
from segdeform.evaluation.verdict import score_line, warnings
from segdeform.files.manifest import verify_manifest
from segdeform.files.tensors import read_tensors
from segdeform.model_folder import DESCRIPTION, WEIGHTS
from segdeform.models import build_model
from segdeform.models.folding import fold_batch_norm
from segdeform.models.pyramid import silence_unreachable_taps
from segdeform.segmenter import Segmenter, load
from segdeform.training.channels import statistics_used
from segdeform.training.checkpoint import TrainState
from segdeform.training.pictures import Pictures
from segdeform.training.plan import Plan
from segdeform.training.run_folder import best_folder, checkpoint_folders
from segdeform.training.run_log import RunLog


def score_now(plan: Plan, state: TrainState, keep: KeepLabels | None = None) -> list[Evaluation]:
    """Scores the state's best network, all processes together, and leaves it in training mode.

    `keep` hears of what is predicted in the first split.

    Raises:
        InterruptedByUserError: a stop was asked for.
    """
    with current_segmenter(plan, state) as segmenter:
        return _score(plan, segmenter, keep)


@contextmanager
def current_segmenter(plan: Plan, state: TrainState) -> Iterator[Segmenter]:
    """Yields the state's best network as it is now, and leaves the state in training mode."""
    try:
        yield Segmenter(
            model=state.best_model.eval(),
            classes=plan.train_set.classes,
            palette=plan.train_set.palette,
            options=plan.config.eval,
            device=plan.device,
            info={"sha256": None, "crop": list(plan.config.data.crop)},
            value_range=plan.train_set.value_range,
            bands=plan.train_set.bands,
        )
    finally:
        state.model.train()


def score_last_checkpoint(
    plan: Plan, state: TrainState, keep: KeepLabels | None = None
) -> list[Evaluation]:
    """Scores the network of the newest checkpoint, in the way that the config says now.

    All processes do, those without a run folder with the same weights from the state.

    Raises:
        InterruptedByUserError, StoppedError: a stop was asked for; the training itself is saved.
    """
    with plan.peers.in_step():
        folder = checkpoint_folders(plan.run)[0] if plan.peers.first else plan.run
    return _score_folder(plan, state, folder, keep)


def score_best(plan: Plan, state: TrainState, step: int) -> list[Evaluation]:
    """Puts the network that was the best, at a step, into the state, and scores it likewise.

    Raises:
        ModelError: it is damaged.
        InterruptedByUserError, StoppedError: a stop was asked for; the training itself is saved.
    """
    folder, network = best_folder(plan.run, step), state.best_model
    with plan.peers.in_step():
        if plan.peers.first:
            verify_manifest(folder, (WEIGHTS, DESCRIPTION))
            network.load_state_dict(read_tensors(folder / WEIGHTS))
    plan.peers.copy_from_first(network.state_dict().values())
    return _score_folder(plan, state, folder)


def _score_folder(
    plan: Plan, state: TrainState, folder: Path, keep: KeepLabels | None = None
) -> list[Evaluation]:
    """Scores a folder of rank 0, whose weights the state has everywhere."""
    with plan.peers.in_step():
        own = load(folder, str(plan.device)) if plan.peers.first else None
        segmenter = _as_loaded(plan, state) if own is None else own
    segmenter.info = plan.peers.share(segmenter.info)
    segmenter.options = plan.config.eval
    try:
        return _score(plan, segmenter, keep)
    except InterruptedByUserError as error:
        raise plan.stop.error("trained and saved, but not yet evaluated") from error


def show_scores(
    plan: Plan,
    log: RunLog | None,
    step: int,
    evaluations: Sequence[Evaluation],
    pictures: Pictures,
) -> None:
    """Reports the scores of all splits and, where there is a log, writes them into it.

    So it does the pictures that were kept of the evaluation.
    """
    evaluation = evaluations[0]
    for val_set, found in zip(plan.val_sets, evaluations, strict=True):
        plan.reporter.message(f"step {step}: {val_set.split} {score_line(found)}")
    plan.reporter.scored(evaluation.scores.miou)
    if 2 * step > plan.config.train.steps:  # before, it means nothing yet
        for warning in warnings(evaluation, plan.config.train.class_weights is not None):
            plan.reporter.message(f"warning: {warning}")
    if log is not None:
        for val_set, found in zip(plan.val_sets, evaluations, strict=True):
            split = val_set.split if len(evaluations) > 1 else None
            first = found is evaluation
            log.evaluation(step, found.scores, found.classes, split, first=first)
        log.pictures(step, pictures.drawn())


def _as_loaded(plan: Plan, state: TrainState) -> Segmenter:
    """Returns what rank 0 loads, for a process that has no run folder."""
    config, classes = plan.config, plan.train_set.classes
    mean, std = statistics_used(config)
    model = build_model(
        config.model, config.deform, len(classes), pretrained=False, mean=mean, std=std
    )
    model.load_state_dict(state.best_model.state_dict())
    silence_unreachable_taps(model, config.data.crop)
    fold_batch_norm(model)
    model.to(plan.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Segmenter(
        model.eval(),
        classes,
        plan.train_set.palette,
        config.eval,
        plan.device,
        info={},
        value_range=plan.train_set.value_range,
        bands=plan.train_set.bands,
    )


def _score(plan: Plan, segmenter: Segmenter, keep: KeepLabels | None) -> list[Evaluation]:
    return [
        evaluate(
            segmenter,
            val_set,
            keep=keep if val_set is plan.val_set else None,
            peers=plan.peers,
            progress=plan.reporter.evaluating,
            stop=plan.stop,
        )
        for val_set in plan.val_sets
    ]
