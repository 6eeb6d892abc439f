"""Several processes that train or score one model, as `torchrun` starts them; usually there is one.

Rank 0 alone writes files, and evaluates while training. All other exchange is the averaging of
gradients, the gathering of counts and, each step, the question whether anyone was asked to stop.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from segdeform.errors import PeerLostError, SegdeformError

TIMEOUT = timedelta(seconds=120)  # for a peer in the same step
RANK_ZERO_TIMEOUT = timedelta(minutes=30)  # while rank 0 checks data, evaluates or saves

_LOST = ("Connection closed", "Connection reset", "Timed out", "timed out", "NCCL error")


@dataclass(frozen=True)
class Processes:
    """This process among those that work together."""

    rank: int = 0
    size: int = 1
    waiting: dist.ProcessGroup | None = None  # of patient members, for waiting on rank 0

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Returns the module whose backward pass averages the gradients over all processes."""
        if self.size == 1:
            return model
        devices = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def any(self, flag: bool, *, patient: bool = False) -> bool:
        """Tells whether the flag is set in any process; all must ask, `patient` ones up to 30 min.

        Raises:
            PeerLostError: a process is gone or silent.
        """
        if self.size == 1:
            return flag
        value = torch.tensor([int(flag)])
        group = self.waiting if patient else None
        _exchange(lambda: dist.all_reduce(value, op=dist.ReduceOp.MAX, group=group))
        return bool(value.item())

    def on_first(self, action: Callable[[], object]) -> None:
        """Runs the action on rank 0 while the others wait; its failure ends all of them.

        Raises:
            SegdeformError: what the action raised, on rank 0.
            PeerLostError: the action failed on rank 0, or rank 0 is lost; on the others.
        """
        if self.size == 1:
            action()
            return
        failure = None
        if self.first:
            try:
                action()
            except SegdeformError as error:
                failure = error
        value = torch.tensor([int(failure is not None)])
        _exchange(lambda: dist.broadcast(value, src=0, group=self.waiting))
        if failure is not None:
            raise failure
        if value.item():
            raise PeerLostError("The first process failed: its message says why")

    def gather(
        self,
        rows: NDArray[np.int64],  # [R, C]; R may differ between processes, C not
    ) -> NDArray[np.int64]:  # [sum of R, C], in the order of the ranks
        """Returns the rows of all processes, to every process; all must ask.

        Raises:
            PeerLostError: a process is gone or silent.
        """
        if self.size == 1:
            return rows
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        _exchange(lambda: dist.all_gather(lengths, torch.tensor([len(rows)])))
        longest = max(int(length) for length in lengths)
        padded = torch.zeros(longest, rows.shape[1], dtype=torch.int64)
        padded[: len(rows)] = torch.from_numpy(rows)
        parts = [torch.zeros_like(padded) for _ in range(self.size)]
        _exchange(lambda: dist.all_gather(parts, padded))
        kept = [part[: int(length)] for part, length in zip(parts, lengths, strict=True)]
        return torch.cat(kept).numpy()

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Tells a lost peer, met in the averaging of gradients, from other errors.

        Raises:
            PeerLostError: a process is gone or silent.
        """
        try:
            yield
        except RuntimeError as error:
            if self.size == 1 or not any(sign in str(error) for sign in _LOST):
                raise
            raise _lost(error) from error


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Joins the process group that torchrun's environment describes; alone without one."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Processes()
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
        waiting = dist.new_group(backend="gloo", timeout=RANK_ZERO_TIMEOUT)
        assert isinstance(waiting, dist.ProcessGroup)  # every rank is a member
    except (RuntimeError, ValueError) as error:
        raise PeerLostError(f"The processes do not find each other: {_line(error)}") from error
    try:
        yield Processes(dist.get_rank(), size, waiting)
    finally:
        dist.destroy_process_group()


def own_device(device: torch.device) -> torch.device:
    """Returns the GPU of this process: number LOCAL_RANK, unless another was asked for."""
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device


def _exchange(collective: Callable[[], object]) -> None:
    try:
        collective()
    except RuntimeError as error:
        raise _lost(error) from error


def _lost(error: Exception) -> PeerLostError:
    return PeerLostError(
        f"Another process is lost ({_line(error)}): run the same command again, "
        "a training with --resume"
    )


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]
