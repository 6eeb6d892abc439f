"""What a training would do and take, told before the hours are spent; no run is written."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from segdeform.config.loading import Draft
from segdeform.config.schema import Config
from segdeform.errors import InterruptedByUserError, ResourceError
from segdeform.models.deform import deformable_layers
from segdeform.training.checkpoint import KEEP, TrainState, optimizer_tensors
from segdeform.training.memory import usable_memory
from segdeform.training.meter import peak_memory
from segdeform.training.pace import duration
from segdeform.training.plan import Plan
from segdeform.training.reporter import Reporter
from segdeform.training.setup import open_run
from segdeform.training.trial import MEASURED, WARM_UP, evaluations_left, try_out

_GIB = 2**30
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
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Returns what a training would do and take, by ten real steps; the output folder stays as is.

    Arguments and errors are those of `training.loop.train`, but for that of a run folder that
    another process works in. All processes take part and return the same but for memory and pace.
    """
    began = time.perf_counter()
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
        return _rehearsed(plan, state, began)


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
    train, first, usable = plan.config.train, state.step, usable_memory(plan.device)
    parameters = list(state.model.parameters())
    # A short training has fewer steps than are measured.
    steps = max(train.steps, first + WARM_UP + MEASURED)
    longer = plan.config.model_copy(update={"train": train.model_copy(update={"steps": steps})})
    pace = try_out(replace(plan, config=longer), began, math.inf, state)
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
        "data": plan.record()["data"],
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
            "seconds": left * pace.step + evaluations * pace.evaluation + saves * pace.saving,
        },
        "disk": {
            "checkpoint_bytes": checkpoint,
            "needed_bytes": needed,
            "free_bytes": shutil.disk_usage(_standing(plan.run)).free,
        },
        "memory": {"peak_bytes": peak_memory(plan.device), "usable_bytes": usable},
        "config": plan.config.model_dump(mode="json"),
    }


def _bytes_of_checkpoint(state: TrainState) -> int:
    tensors = [*state.model.state_dict().values(), *optimizer_tensors(state).values()]
    if state.averaged is not None:
        tensors += state.averaged.module.state_dict().values()
    return sum(tensor.nbytes for tensor in tensors)


def _standing(path: Path) -> Path:
    """Returns the folder, or of those around it the nearest that exists."""
    path = path.resolve()
    return next(place for place in (path, *path.parents) if place.exists())


def lines(plan: dict[str, Any]) -> Iterator[str]:
    """Writes what `dry_run` returned for a person to read."""
    if plan["finished"]:
        yield f"{plan['run']} is finished: nothing is left to do"
        return
    for split, told in plan["data"].items():
        yield (
            f"{split + ':':9} {told['pictures']} pictures of {told['dataset']}/{told['split']}, "
            f"{len(told['classes'])} classes, names {told['names_sha256'][:12]}"
        )
    network, spent = plan["network"], plan["time"]
    yield (
        f"network:  {network['parameters']:,} parameters, {network['trainable']:,} trainable, "
        f"{len(network['deformable_layers'])} deformable layers"
    )
    for name in network["deformable_layers"]:
        yield f"          {name}"
    begins = f"steps {plan['first_step'] + 1} to {plan['steps']}"
    yield (
        f"pace:     {duration(spent['step_seconds'])} a step, "
        f"{spent['images_per_second']:.1f} images/s"
    )
    end = datetime.now().astimezone() + timedelta(seconds=spent["seconds"])
    yield (f"time:     about {duration(spent['seconds'])} for {begins}, until {end:%Y-%m-%d %H:%M}")
    yield (
        f"          with {_counted(spent['evaluations'], 'evaluation')} of "
        f"{duration(spent['evaluation_seconds'])}, {_counted(spent['saves'], 'checkpoint')} of "
        f"{duration(spent['saving_seconds'])}"
    )
    disk, memory = plan["disk"], plan["memory"]
    yield (
        f"disk:     {disk['needed_bytes'] / _GIB:.2f} GiB needed, "
        f"{disk['free_bytes'] / _GIB:.1f} GiB free"
    )
    yield f"memory:   {memory['peak_bytes'] / _GIB:.2f} GiB at most in these steps"
    starts = disk["needed_bytes"] <= disk["free_bytes"]
    yield f"Nothing was written{'; without --dry-run it starts' if starts else ''}."


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
