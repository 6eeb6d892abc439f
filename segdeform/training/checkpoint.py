"""Checkpoints: all that training needs to go on with the same bits, in one folder a step.

RUN/checkpoints/step-00001234/ holds model.safetensors, ema.safetensors (with averaging),
optimizer.safetensors, state.json, model.json (so that it is a model folder as well) and
manifest.json. A folder appears complete or not at all, older ones go only after the new one was
verified, and the newest is found by its step number. No random-generator state is kept: every
step seeds the generators from (seed, step, rank).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from segdeform.errors import ModelError
from segdeform.files.atomic import json_number, sync
from segdeform.files.manifest import (
    MANIFEST,
    read_json,
    replacing_folder,
    verify_manifest,
    write_json,
)
from segdeform.files.tensors import check_fit, read_tensors, write_tensors
from segdeform.models.deeplab import DeepLab
from segdeform.segmenter import ModelDescription, write_description
from segdeform.training.run_folder import best_folder, best_folders, checkpoint_folders, step_of

FORMAT = 1
KEEP = 2  # checkpoints that stay: the newest and one to fall back to


@dataclass
class TrainState:
    """What changes from step to step; a checkpoint holds all of it."""

    model: DeepLab
    averaged: AveragedModel | None  # moving average, of as many updates as steps
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    step: int = 0  # steps done
    seconds: float = field(default=0.0)  # of training steps, over all interruptions
    weights_sha256: str | None = None  # of the file that the backbone started from
    scores: dict[int, float] = field(default_factory=dict)  # val mIoU by the step evaluated at
    compiled: bool | None = None  # whether the steps so far were; None: nobody knows

    @property
    def best_model(self) -> DeepLab:
        """The network to evaluate and to save in the end: the average where there is one."""
        return self.model if self.averaged is None else cast(DeepLab, self.averaged.module)


class Checkpoint(NamedTuple):
    """A verified checkpoint folder and what its state.json says."""

    folder: Path
    record: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.record["step"])


def save(
    run: Path, state: TrainState, record: dict[str, Any], description: ModelDescription
) -> Path:
    """Writes and verifies the checkpoint of `state`, then deletes all but it and the one before.

    `record` is what state.json holds besides the step: see `newest` for how it is read back.

    Raises:
        ResourceError: the disk is full; the checkpoints that were there stay.
    """
    folder = run / "checkpoints" / f"step-{state.step:08d}"
    if folder.is_dir() and not (folder / MANIFEST).exists():
        shutil.rmtree(folder)  # a damaged one of the same step
    with replacing_folder(folder) as new:
        write_tensors(new / "model.safetensors", state.model.state_dict())
        if state.averaged is not None:
            write_tensors(new / "ema.safetensors", state.averaged.module.state_dict())
        write_tensors(new / "optimizer.safetensors", optimizer_tensors(state))
        write_description(new, description)
        progress = {
            "step": state.step,
            "seconds": round(state.seconds, 3),
            "scores": [[step, json_number(score)] for step, score in state.scores.items()],
        }
        scaler = state.scaler.state_dict()
        write_json(new / "state.json", {"format": FORMAT, **progress, "scaler": scaler, **record})
    _delete_others(run, folder, state)
    return folder


def newest(run: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Finds the newest good checkpoint of a run; None when there is none at all.

    Every file is checked by its SHA-256; a damaged checkpoint is passed over with a warning.

    Raises:
        ModelError: there are checkpoints, but each is damaged.
    """
    problem = None
    for folder in checkpoint_folders(run):
        try:
            return _read(folder)
        except ModelError as error:
            problem = error
            warn(f"{error}: trying the checkpoint before it")
    if problem is not None:
        raise ModelError(f"{problem}: no good checkpoint is left, start again with --overwrite")
    return None


def restore(checkpoint: Checkpoint, state: TrainState) -> None:
    """Loads a checkpoint into a state built from the same config, keeping every memory layout.

    Raises:
        ModelError: names the file that does not fit.
    """
    folder = checkpoint.folder
    _load_model(state.model, folder / "model.safetensors")
    if state.averaged is not None:
        _load_model(state.averaged.module, folder / "ema.safetensors")
    path = folder / "optimizer.safetensors"
    fill_optimizer(state, read_tensors(path), str(path))
    if state.scaler.is_enabled():
        state.scaler.load_state_dict(checkpoint.record["scaler"])
    state.step = checkpoint.step
    state.seconds = float(checkpoint.record["seconds"])
    state.scores = scores_of(checkpoint.record)


def scores_of(record: dict[str, Any]) -> dict[int, float]:
    """Returns the scores that a state.json holds; those of earlier versions have none."""
    return {step: math.nan if score is None else score for step, score in record.get("scores", [])}


def optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    """Names each tensor of the optimiser's state "PARAMETER/KEY"."""
    return {
        f"{name}/{key}": value
        for name, parameter in state.model.named_parameters()
        for key, value in state.optimizer.state.get(parameter, {}).items()
        if value is not None
    }


def fill_optimizer(state: TrainState, tensors: dict[str, Tensor], source: str) -> None:
    """Sets the optimiser's state from what `optimizer_tensors` returned, keeping memory layouts.

    Raises:
        ModelError: the tensors are not those of this network; names their source.
    """
    parameters = dict(state.model.named_parameters())
    for full_name, value in tensors.items():
        name, _, key = full_name.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None:
            raise ModelError(f"{source} does not fit this network: it has unknown {name}")
        if value.dim() == 0:  # AdamW's step counter, which stays on the CPU
            state.optimizer.state[parameter][key] = value
        elif value.shape == parameter.shape:
            # The parameter's memory layout: sums over another one round differently.
            state.optimizer.state[parameter][key] = torch.empty_like(parameter).copy_(value)
        else:
            raise ModelError(f"{source} does not fit: {full_name} has shape {list(value.shape)}")


def _read(folder: Path) -> Checkpoint:
    verify_manifest(folder, ("model.safetensors", "optimizer.safetensors", "state.json"))
    record = read_json(folder / "state.json")
    match record:
        case {"format": 1, "step": int(step), "seconds": int() | float(), "scaler": dict()}:
            if step != step_of(folder):
                raise ModelError(f"{folder} holds step {step}; the folder was renamed")
            return Checkpoint(folder, record)
        case _:
            raise ModelError(f"{folder / 'state.json'} is not a training state of this version")


def _delete_others(run: Path, newest_folder: Path, state: TrainState) -> None:
    """Deletes what is older than the last KEEP, and any abandoned steps after the newest.

    Of the networks that were once the best, those stay that are by the scores of a checkpoint.
    """
    folders = checkpoint_folders(run)
    recent = [path for path in folders if step_of(path) <= step_of(newest_folder)][:KEEP]
    needed = [best_folder(run, step) for step in _best_steps(state.scores, recent)]
    for path in [*folders, *best_folders(run)]:
        if path not in recent and path not in needed:
            # Renamed first: a kill half-way must not leave a damaged checkpoint behind.
            shutil.rmtree(path.rename(path.with_name(f".{path.name}.old")))
    sync(newest_folder.parent)


def best_step(scores: Mapping[int, float]) -> int | None:
    """Returns the step of the highest mIoU, of equal ones the first; None: there is no score."""
    scored = sorted(step for step, score in scores.items() if not math.isnan(score))
    return max(scored, key=scores.__getitem__, default=None)


def _best_steps(scores: Mapping[int, float], checkpoints: Sequence[Path]) -> set[int]:
    """Returns the steps that are the best by what each of some checkpoints knows."""
    found = set()
    for last in map(step_of, checkpoints):
        # One may have been written before the evaluation of its own step.
        for end in (last, last - 1):
            found.add(best_step({step: v for step, v in scores.items() if step <= end}))
    return {step for step in found if step is not None}


def _load_model(model: nn.Module, path: Path) -> None:
    tensors = read_tensors(path)
    check_fit(model.state_dict(), tensors, path)
    model.load_state_dict(tensors)
