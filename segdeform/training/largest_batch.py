"""The largest batch that memory holds, found by trying each in a process of its own."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from segdeform.config.schema import Config
from segdeform.errors import ConfigError, ResourceError, UsageError
from segdeform.machine.cpu import return_freed_memory
from segdeform.training.attempt import Job
from segdeform.training.memory import usable_memory
from segdeform.training.plan import Plan, check_config

_SLOW = 60.0  # seconds a step, from which on no larger batch is tried
_LONGEST = 900.0  # seconds an attempt may take
_PROGRAM = "from segdeform.training.attempt import main; main()"
_TINY_RATE = 1e-12  # what noise teaches must not run away


@dataclass(frozen=True)
class Attempt:
    """How steps of a batch size went."""

    batch_size: int
    fits: bool
    step_seconds: float | None = None  # None: it does not fit
    peak_bytes: int | None = None
    cause: str = ""  # why it does not fit

    @property
    def images_per_second(self) -> float | None:
        """Crops a second, without what the loader takes."""
        return None if self.step_seconds is None else self.batch_size / self.step_seconds


def refuse_several(processes: int) -> None:
    """Raises UsageError for more processes than one, whose memories are not tried together."""
    if processes > 1:
        raise UsageError(
            "--largest-batch tries one process: leave torchrun out; N GPUs, or machines, hold N "
            "times the batch of one"
        )


def largest_batch(plan: Plan, limit: int | None = None) -> dict[str, Any]:
    """Tries growing batches of the config's crop until memory ends; returns what was found.

    Each is tried by a few real steps on noise, uncompiled, in a process that cannot take more than
    `limit` bytes: those that `usable_memory` allows, if none is given. Nothing is written.

    Raises:
        ResourceError: nobody knows how much memory there is.
    """
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()
    return_freed_memory()
    most = usable_memory(plan.device) if limit is None else limit
    if most is None:
        raise ResourceError("--largest-batch: this system does not tell how much memory is free")
    plan.reporter.message("trying batches, each in a process of its own")
    tried: list[Attempt] = []

    def attempt(size: int) -> Attempt:
        tried.append(_attempt(plan, size, most))
        plan.reporter.message(f"  train.batch_size={size}: {_told(tried[-1])}")
        return tried[-1]

    train = plan.config.train
    best = search(attempt, train.batch_size, train.accumulate)
    current = next(t for t in tried if t.batch_size == train.batch_size)
    return {
        "batch_size": None if best is None else best.batch_size,
        "images_per_second": None if best is None else best.images_per_second,
        "peak_bytes": None if best is None else best.peak_bytes,
        "limit_bytes": most,
        "current": {
            "batch_size": current.batch_size,
            "fits": current.fits,
            "images_per_second": current.images_per_second,
        },
        "tried": [asdict(t) for t in tried],
    }


def search(attempt: Callable[[int], Attempt], start: int, unit: int) -> Attempt | None:
    """Returns the largest batch that fits, a multiple of `unit`; None: not even one unit does.

    Doubles from `start` on until one does not fit, or halves until one does, and bisects.
    """
    best, failing = None, None  # Attempt; units
    size = start // unit
    while True:
        tried = attempt(size * unit)
        if tried.fits:
            best = tried
        else:
            failing = size
        fitting = 0 if best is None else best.batch_size // unit
        if failing is None:
            if (tried.step_seconds or 0) > _SLOW:
                return best
            size = 2 * fitting
        elif failing - fitting <= 1:
            return best
        else:
            size = (failing + fitting) // 2


def _attempt(plan: Plan, size: int, limit: int) -> Attempt:
    """Tries a batch size in a process of its own."""
    update = {"batch_size": size, "compile": False, "lr": _TINY_RATE, "epochs": None}
    train = plan.config.train.model_copy(update=update)
    config: Config = plan.config.model_copy(update={"train": train})
    try:
        check_config(config, plan.train_set, plan.device, plan.peers)
    except ConfigError as error:
        return Attempt(size, False, cause=str(error))
    job = Job(config, plan.train_set, str(plan.device), torch.get_num_threads(), limit)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROGRAM],
            input=pickle.dumps(job),
            capture_output=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            timeout=_LONGEST,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Attempt(size, False, cause=f"a few steps took more than {_LONGEST:.0f} s")
    lines = done.stdout.decode(errors="replace").splitlines()
    if done.returncode or not lines:
        return Attempt(size, False, cause=_end(done.returncode, done.stderr))
    return Attempt(size, **json.loads(lines[-1]))


def _end(code: int, stderr: bytes) -> str:
    """Words how a process ended that had no time to say so, as C++ ends it where memory does."""
    if code < 0:
        return f"memory ended ({signal.Signals(-code).name})"
    return (stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]


def _told(tried: Attempt) -> str:
    if not tried.fits:
        return tried.cause
    assert tried.images_per_second is not None and tried.peak_bytes is not None
    return f"{tried.images_per_second:.1f} images/s, {tried.peak_bytes / 2**30:.2f} GiB"
