"""Steps of a batch size, in a process of their own that may run out of memory.

It reads what to try from standard input, pickled by `largest_batch`, and writes a line of JSON.
"""

from __future__ import annotations

import json
import pickle
import resource
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from segdeform.config.schema import Config
from segdeform.data.dataset import Dataset, label_type
from segdeform.errors import SegdeformError
from segdeform.machine.cpu import keep_freed_memory
from segdeform.machine.memory import (
    memory_that_ended,
    resident_memory,
    shared_memory,
    writable_memory,
)
from segdeform.machine.processes import ALONE
from segdeform.machine.signals import StopSignals
from segdeform.models.compiling import first_line
from segdeform.training.meter import peak_memory
from segdeform.training.plan import Plan
from segdeform.training.reporter import Reporter
from segdeform.training.state import build_state, class_weights
from segdeform.training.step import do_step

_MEASURED = 3  # steps, after one in which the optimiser's state and the kernels come up
_OOM = Path("/proc/self/oom_score_adj")
_LONG = 10.0  # seconds after which fewer have to do


@dataclass(frozen=True)
class Job:
    """What to try."""

    config: Config
    train_set: Dataset
    device: str
    threads: int
    limit: int  # bytes of main memory for itself, or of the GPU's, that the process may hold


def main() -> None:
    """Does the job on standard input and says how it went; never lets the system end others."""
    with suppress(OSError):  # should memory end all the same, then this process
        _OOM.write_text("1000")
    job: Job = pickle.load(sys.stdin.buffer)
    try:
        told = _steps(job)
    except (MemoryError, RuntimeError, SegdeformError) as error:
        cause = "memory ended" if memory_that_ended(error) else first_line(error)
        told = {"fits": False, "cause": cause}
    print(json.dumps(told), flush=True)


def _steps(job: Job) -> dict[str, Any]:
    torch.set_num_threads(job.threads)
    device, train = torch.device(job.device), job.config.train
    stop, reporter = StopSignals(), Reporter(Console(quiet=True))
    sets = (job.train_set, job.train_set)
    plan = Plan(job.config, *sets, Path(), device, 0, ALONE, stop, reporter, dry=True)
    torch.ones(2**20).exp()  # brings the threads up, whose stacks do not count
    _limit_memory(device, job.limit)
    state = build_state(plan, None)
    weights, batch = class_weights(plan), _noise(plan, train.batch_size)
    times: list[float] = []
    while len(times) <= _MEASURED and sum(times[1:]) < _LONG:
        begun = time.perf_counter()
        do_step(plan, state, state.model, batch, weights)
        state.step = 0  # also where the training has fewer
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    usual = sorted(times[1:])[(len(times) - 1) // 2]
    shared = 0 if device.type == "cuda" else shared_memory()
    return {"fits": True, "step_seconds": usual, "peak_bytes": peak_memory(device) - shared}


def _noise(plan: Plan, count: int) -> tuple[Tensor, Tensor]:
    """Returns crops of random pixels and labels, laid out as the loader's."""
    size, classes = (count, *plan.config.data.crop), len(plan.train_set.classes)
    images = torch.randint(0, 256, (*size, plan.train_set.channels), dtype=torch.uint8)
    kind = torch.uint8 if label_type(classes).itemsize == 1 else torch.int32
    return images.permute(0, 3, 1, 2), torch.randint(0, classes, size, dtype=kind)


def _limit_memory(device: torch.device, limit: int) -> None:
    """Has allocations beyond a limit fail, in this process alone."""
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
        return
    keep_freed_memory()
    taken = writable_memory()
    assert taken is not None  # where free memory is known, so is this
    data = taken + max(0, limit - (resident_memory() - shared_memory()))
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    soft = data if hard == resource.RLIM_INFINITY else min(data, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
