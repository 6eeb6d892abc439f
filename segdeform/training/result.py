"""What a finished run is: a model folder that tells of its training, and metrics.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segdeform.errors import ModelError
from segdeform.evaluation.evaluate import Evaluation
from segdeform.evaluation.result import write_metrics
from segdeform.files.manifest import read_json, verify_manifest
from segdeform.model_folder import DESCRIPTION, WEIGHTS
from segdeform.models.pyramid import silence_unreachable_taps
from segdeform.segmenter import ModelDescription, read_description, save_model
from segdeform.training.channels import statistics_used
from segdeform.training.checkpoint import TrainState
from segdeform.training.meter import peak_memory
from segdeform.training.plan import Plan, check_resumable, environment
from segdeform.training.run_folder import remove_broken_model


@dataclass(frozen=True)
class TrainResult:
    """A finished training run."""

    model: Path  # the model folder
    steps: int
    seconds: float  # of training steps, over all interruptions
    miou: float | None  # on the validation split; None: it has no labelled pixel
    images_per_second: float
    peak_memory_bytes: int  # of the GPU, or of the process without one; last resumption only
    weights_step: int  # whose weights the model has: the last, or the best by train.keep_best


def describe(plan: Plan, training: dict[str, Any]) -> ModelDescription:
    """Returns the model.json of this run's network, with what is known of its training."""
    mean, std = statistics_used(plan.config)
    return ModelDescription(
        model=plan.config.model,
        deform=plan.config.deform,
        classes=plan.train_set.classes,
        palette=plan.train_set.palette,
        mean=mean,
        std=std,
        eval=plan.config.eval,
        value_range=plan.train_set.value_range,
        bands=plan.train_set.bands,
        crop=plan.config.data.crop,
        training=training,
    )


def write_result(
    plan: Plan,
    state: TrainState,
    evaluations: Sequence[Evaluation],  # of `plan.val_sets`
    chosen: dict[str, Any] | None = None,
) -> None:
    """Writes RUN/model, then timing.json and, as the last file of a run, metrics.json."""
    evaluation, *others = evaluations
    model = plan.run / "model"
    remove_broken_model(plan.run)
    result = TrainResult(
        model=model,
        steps=state.step,
        seconds=round(state.seconds, 1),
        miou=evaluation.to_json()["miou"],
        images_per_second=round(state.step * plan.config.train.batch_size / state.seconds, 2),
        peak_memory_bytes=peak_memory(plan.device),
        weights_step=state.step if chosen is None else chosen["step"],
    )
    summary = _summary(plan, result, state.weights_sha256)
    if chosen is not None:
        summary["chosen"] = chosen
    # Scores of an earlier way to score must not outlive their model: a kill may come between.
    (plan.run / "metrics.json").unlink(missing_ok=True)
    # The momentum of an earlier version's run may have moved what is held at zero.
    silence_unreachable_taps(state.best_model, plan.config.data.crop)
    save_model(model, state.best_model, describe(plan, summary))
    write_metrics(plan.run, evaluation, {more.protocol["split"]: more for more in others})


def is_finished(plan: Plan) -> bool:
    """Tells whether the run folder holds what this plan ends with, whatever checkpoints are left.

    A damaged model or damaged scores are named and count as not written. Nor does a model count
    that is to be used in another way (`eval.*`): metrics.json has to say how it scores so.

    Raises:
        ConfigError, DataError: the finished run began with other settings or data.
    """
    if not (plan.run / "metrics.json").exists() or not (plan.run / "model").exists():
        return False
    try:
        verify_manifest(plan.run / "model", (WEIGHTS, DESCRIPTION))
        description = read_description(plan.run / "model" / DESCRIPTION)
        read_json(plan.run / "metrics.json")
    except ModelError as error:
        plan.reporter.message(f"{error}: it has to be written again")
        return False
    training = description.training
    networks = {
        key: getattr(description, key).model_dump(mode="json") for key in ("model", "deform")
    }
    record = {
        "config": networks | {key: training.get(key) for key in ("data", "train")},
        # A model of an earlier version does not tell its pictures.
        "data": training.get("pictures", plan.record()["data"]),
        "environment": training.get("environment"),
    }
    check_resumable(plan, record)
    return description.eval == plan.config.eval


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
        weights_step=training["chosen"]["step"] if "chosen" in training else training["steps"],
    )


def shared_result(plan: Plan) -> TrainResult:
    """Returns the result that rank 0 reads from its run folder, to every process.

    Raises:
        ModelError: the folder is damaged.
        PeerLostError: on the others, likewise.
    """
    values = None
    with plan.peers.in_step():
        if plan.peers.first:
            values = asdict(read_result(plan.run))
            values["model"] = str(values["model"])
    values = plan.peers.share(values)
    return TrainResult(**{**values, "model": Path(values["model"])})


def _summary(plan: Plan, result: TrainResult, weights_sha256: str | None) -> dict[str, Any]:
    """Returns what model.json tells of the training."""
    started_from = {"weights": Path(plan.config.model.weights).name}
    if weights_sha256 is not None:
        started_from["weights_sha256"] = weights_sha256
    values = asdict(result)
    del values["model"], values["weights_step"]  # "chosen" tells of the latter
    return {
        **values,
        "dataset": plan.train_set.name,
        "train_split": plan.train_set.split,
        "val_split": plan.val_set.split,
        "train_pictures": len(plan.train_set),
        "pictures": plan.record()["data"],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment(plan.device, plan.peers.size),
        **started_from,
        "train": plan.config.train.model_dump(mode="json"),
        "data": plan.config.data.model_dump(mode="json"),
    }
