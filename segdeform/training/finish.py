"""What a trained state becomes: scores on the validation split, and the model folder."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segdeform.errors import InterruptedByUserError
from segdeform.evaluation.evaluate import Evaluation, evaluate
from segdeform.evaluation.result import write_metrics
from segdeform.files.manifest import MANIFEST, verify_manifest
from segdeform.segmenter import ModelDescription, Segmenter, load, read_description, save_model
from segdeform.training import checkpoint
from segdeform.training.checkpoint import Checkpoint, TrainState
from segdeform.training.logging import RunLog, peak_memory
from segdeform.training.plan import Plan, environment


@dataclass(frozen=True)
class TrainResult:
    """A finished training run."""

    model: Path  # the model folder
    steps: int
    seconds: float  # of training, over all interruptions
    miou: float | None  # on the validation split; None: it has no labelled pixel
    images_per_second: float
    peak_memory_bytes: int  # of the GPU, or of the process without one; last resumption only


def describe(plan: Plan, training: dict[str, Any]) -> ModelDescription:
    """Returns the model.json of this run's network, with what is known of its training."""
    return ModelDescription(
        model=plan.config.model,
        deform=plan.config.deform,
        classes=plan.train_set.classes,
        palette=plan.train_set.palette,
        eval=plan.config.eval,
        training=training,
    )


def evaluate_now(plan: Plan, state: TrainState) -> Evaluation:
    """Scores the state's best network on the validation split, as the `eval` command does.

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
        return _evaluate(plan, segmenter)
    finally:
        state.model.train()


def finish(plan: Plan, state: TrainState, log: RunLog | None) -> None:
    """Scores the last checkpoint and writes RUN/model, then RUN/metrics.json as the last file.

    Raises:
        InterruptedByUserError, StoppedError: a stop was asked for; the training itself is saved.
    """
    segmenter = load(checkpoint.checkpoint_folders(plan.run)[0], str(plan.device))
    try:
        evaluation = _evaluate(plan, segmenter)
    except InterruptedByUserError as error:
        raise plan.stop.error("trained and saved, but not yet evaluated") from error
    show_scores(plan, log, state.step, evaluation)
    result = TrainResult(
        model=plan.run / "model",
        steps=state.step,
        seconds=round(state.seconds, 1),
        miou=evaluation.to_json()["miou"],
        images_per_second=round(state.step * plan.config.train.batch_size / state.seconds, 2),
        peak_memory_bytes=peak_memory(plan.device),
    )
    summary = _summary(plan, result, state.weights_sha256)
    save_model(result.model, state.best_model, describe(plan, summary))
    write_metrics(plan.run, evaluation)


def show_scores(plan: Plan, log: RunLog | None, step: int, evaluation: Evaluation) -> None:
    """Reports the scores and, where there is a log, writes them into it."""
    scores = evaluation.scores
    plan.reporter.message(f"step {step}: val mIoU {scores.miou:.4f}")
    if log is not None:
        log.evaluation(step, scores.miou, scores.accuracy)


def finished_result(plan: Plan, found: Checkpoint | None) -> TrainResult | None:
    """Returns the result of a run that has nothing left to do; None of any other.

    Raises:
        ModelError: the finished model is damaged.
    """
    finished = found is not None and found.step == plan.config.train.steps
    written = (plan.run / "metrics.json", plan.run / "model" / MANIFEST)
    if not finished or not all(path.exists() for path in written):
        return None
    return read_result(plan.run)


def read_result(run: Path) -> TrainResult:
    """Reads the result of a finished run from its model folder.

    Raises:
        ModelError: the folder is damaged.
    """
    verify_manifest(run / "model")
    training = read_description(run / "model" / "model.json").training
    return TrainResult(
        model=run / "model",
        steps=training["steps"],
        seconds=training["seconds"],
        miou=training["miou"],
        images_per_second=training["images_per_second"],
        peak_memory_bytes=training["peak_memory_bytes"],
    )


def _evaluate(plan: Plan, segmenter: Segmenter) -> Evaluation:
    return evaluate(segmenter, plan.val_set, progress=plan.reporter.evaluating, stop=plan.stop)


def _summary(plan: Plan, result: TrainResult, weights_sha256: str | None) -> dict[str, Any]:
    """Returns what model.json tells of the training."""
    started_from = {"weights": Path(plan.config.model.weights).name}
    if weights_sha256 is not None:
        started_from["weights_sha256"] = weights_sha256
    values = asdict(result)
    del values["model"]
    return {
        **values,
        "dataset": plan.train_set.name,
        "train_split": plan.train_set.split,
        "val_split": plan.val_set.split,
        "train_pictures": len(plan.train_set),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(plan.device, plan.peers.size),
        **started_from,
        "train": plan.config.train.model_dump(mode="json"),
        "data": plan.config.data.model_dump(mode="json"),
    }
