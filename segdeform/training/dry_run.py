"""What a training would do and take, told before the hours are spent; no run is written."""

from __future__ import annotations

import math
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from segdeform.checking.report import SplitCount
from segdeform.config.loading import Draft
from segdeform.config.schema import Config
from segdeform.errors import InterruptedByUserError, ResourceError
from segdeform.machine.processes import own_share
from segdeform.models.deform import deformable_layers
from segdeform.training.checkpoint import KEEP, TrainState, optimizer_tensors
from segdeform.training.largest_batch import largest_batch as find_largest_batch
from segdeform.training.largest_batch import refuse_several
from segdeform.training.memory import memory_limit, usable_memory
from segdeform.training.meter import peak_memory
from segdeform.training.pace import Pace
from segdeform.training.plan import Plan
from segdeform.training.reporter import Reporter
from segdeform.training.setup import open_run
from segdeform.training.state import build_state
from segdeform.training.trial import (
    MEASURED,
    WARM_UP,
    evaluations_left,
    step_seconds,
    try_out,
)

_GIB = 2**30
_NEAR = 0.85  # of the memory that there is, from which on it is told that little is left
_LOGGED = 100  # bytes a step of log and TensorBoard, at the usual log_every


def dry_run(
    config: Config | Draft,
    data: Path,
    output: Path,
    *,
    device: str = "auto",
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    minutes: float | None = None,
    largest_batch: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Returns what a training would do and take, by ten real steps; the output folder stays as is.

    With `largest_batch` also the largest one that memory holds, by trying (`largest_batch.py`). The
    other arguments and errors are those of `training.loop.train`, but for that of a run folder that
    another process works in. All processes take part and return the same but for memory and pace.

    Raises:
        UsageError: `largest_batch` is asked of several processes.
    """
    began = time.perf_counter()
    if largest_batch:
        refuse_several(own_share()[1])
    with (
        _told_as_dry(),
        open_run(
            config,
            data,
            output,
            device=device,
            workers=workers,
            resume=resume,
            overwrite=overwrite,
            minutes=minutes,
            reporter=reporter,
            dry=True,
        ) as (plan, state),
    ):
        if state is None:
            return {"run": str(output), "finished": True, "steps": plan.config.train.steps}
        told = _rehearsed(plan, state, began)
        if largest_batch:
            told["largest_batch"] = find_largest_batch(plan)
        return told


@contextmanager
def _told_as_dry() -> Iterator[None]:
    """Words an interruption as one that lost nothing."""
    try:
        yield
    except InterruptedByUserError as error:
        raise type(error)(
            "interrupted: nothing was written, and nothing is to be resumed"
        ) from error


def refuse_too_little(plan: dict[str, Any]) -> None:
    """Raises ResourceError where what `dry_run` returned does not fit on the disk."""
    disk = plan.get("disk", {"needed_bytes": 0, "free_bytes": 0})
    if disk["needed_bytes"] > disk["free_bytes"]:
        raise ResourceError(
            f"{plan['run']}: {disk['needed_bytes'] / _GIB:.2f} GiB are needed and "
            f"{disk['free_bytes'] / _GIB:.2f} free: choose another --output, or make room"
        )


def _rehearsed(plan: Plan, state: TrainState, began: float) -> dict[str, Any]:
    train, first = plan.config.train, state.step
    usable, limit = usable_memory(plan.device), memory_limit(plan.device)
    parameters = list(state.model.parameters())
    # A short training has fewer steps than are measured.
    steps = max(train.steps, first + WARM_UP + MEASURED)
    longer = plan.config.model_copy(update={"train": train.model_copy(update={"steps": steps})})
    rehearsal = replace(plan, config=longer)
    pace = try_out(rehearsal, began, math.inf, state)
    memory = _memory(plan.device, usable, limit)
    evaluations = evaluations_left(train, first)
    saves = -(-train.steps // train.save_every) - first // train.save_every
    left = train.steps - first
    checkpoint = _bytes_of_checkpoint(state)
    weights = sum(value.nbytes for value in state.best_model.state_dict().values())
    kept = min(saves, KEEP) + 1  # the one that is written before the oldest goes
    # The model, while its former one is replaced; the best networks of two checkpoints.
    needed = kept * checkpoint + (2 + 2 * train.keep_best) * weights + left * _LOGGED
    return {
        "run": str(plan.run),
        "finished": False,
        "first_step": first,
        "steps": train.steps,
        "machine": {
            "device": str(plan.device),
            "threads": torch.get_num_threads(),
            "workers": plan.workers,
            "processes": plan.peers.size,
        },
        "data": _data(plan),
        "choices": [choice._asdict() for choice in plan.choices],
        "network": {
            "parameters": sum(value.numel() for value in parameters),
            "trainable": sum(value.numel() for value in parameters if value.requires_grad),
            "deformable_layers": sorted(deformable_layers(state.model.backbone)),
        },
        "time": {
            "step_seconds": pace.step,
            "images_per_second": train.batch_size / pace.step,
            "evaluation_seconds": pace.evaluation,
            "evaluations": evaluations,
            "saving_seconds": pace.saving,
            "saves": saves,
            "seconds": left * pace.step
            + evaluations * pace.evaluation
            + saves * pace.saving
            + (pace.compiling or 0.0),
        },
        "compile": _compiling(rehearsal, pace, left),
        "disk": {
            "checkpoint_bytes": checkpoint,
            "needed_bytes": needed,
            "free_bytes": shutil.disk_usage(_standing(plan.run)).free,
        },
        "memory": memory,
        "config": plan.config.model_dump(mode="json"),
    }


def _bytes_of_checkpoint(state: TrainState) -> int:
    tensors = [*state.model.state_dict().values(), *optimizer_tensors(state).values()]
    if state.averaged is not None:
        tensors += state.averaged.module.state_dict().values()
    return sum(tensor.nbytes for tensor in tensors)


def _data(plan: Plan) -> dict[str, Any]:
    """Returns what is known of the splits; shares and sizes where this process checked them."""
    told: dict[str, Any] = plan.record()["data"]
    if plan.report is not None:
        for facts, dataset in zip(told.values(), plan.datasets, strict=True):
            facts |= _counted(plan.report.split(dataset.split))
    return told


def _counted(split: SplitCount) -> dict[str, Any]:
    sizes = Counter(split.sizes)
    by_area = sorted(sizes, key=math.prod)
    return {
        "shares": [round(share, 8) for share in split.shares()],
        "ignored_share": round(split.ignored / max(1, split.ignored + sum(split.pixels)), 8),
        "sizes": {
            "smallest": list(by_area[0]),
            "commonest": list(sizes.most_common(1)[0][0]),
            "largest": list(by_area[-1]),
            "different": len(sizes),
        },
    }


def _compiling(plan: Plan, pace: Pace, left: int) -> dict[str, Any] | None:
    """Measures the steps without train.compile, too, where it is on; None: it is off."""
    if not plan.config.train.compile:
        return None
    told: dict[str, Any] = {"seconds": pace.compiling, "plain_step_seconds": pace.step}
    if pace.compiling is None:
        return told | {"pays": False}
    plan.reporter.message("measuring ten steps without train.compile")
    state = build_state(plan, None)
    plain = step_seconds(plan, state, plan.peers.wrap(state.model, plan.device), math.inf)
    pays = left * pace.step + pace.compiling < left * plain
    return told | {"plain_step_seconds": plain, "pays": pays}


def _memory(device: torch.device, usable: int | None, limit: int | None) -> dict[str, Any]:
    peak = peak_memory(device)
    return {
        "peak_bytes": peak,
        "usable_bytes": usable,
        "limit_bytes": limit,
        "near_limit": limit is not None and peak > _NEAR * limit,
    }


def _standing(path: Path) -> Path:
    """Returns the folder, or of those around it the nearest that exists."""
    path = path.resolve()
    return next(place for place in (path, *path.parents) if place.exists())
