"""What a finished run is: a model folder that tells of its training, and metrics.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segdeform.evaluation.evaluate import Evaluation
from segdeform.evaluation.result import write_metrics
from segdeform.files.manifest import MANIFEST, verify_manifest
from segdeform.segmenter import ModelDescription, read_description, save_model
from segdeform.training.checkpoint import Checkpoint, TrainState
from segdeform.training.logging import peak_memory
from segdeform.training.plan import Plan, environment


@dataclass(frozen=True)
class TrainResult:
    """A finished training run."""

    model: Path  # the model folder
    steps: int
    seconds: float  # of training steps, over all interruptions
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


def write_result(plan: Plan, state: TrainState, evaluation: Evaluation) -> None:
    """Writes RUN/model, then timing.json and, as the last file of a run, metrics.json."""
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
