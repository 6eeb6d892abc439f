"""Feeds training: the batches of consecutive steps, made by worker processes."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
import threading
from collections.abc import Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, cast

import cv2
import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from segdeform.config.schema import DataConfig
from segdeform.data.dataset import Dataset, read_pair
from segdeform.data.image_io import UInt8
from segdeform.data.sampler import batch_indices
from segdeform.data.transforms import TrainTransform
from segdeform.errors import ResourceError, SegdeformError

_TIMEOUT = 300  # seconds without a batch after which the workers count as hanging

Crop = tuple[UInt8, UInt8]


def train_loader(
    dataset: Dataset,
    config: DataConfig,
    *,
    seed: int,
    first_step: int,
    steps: int,
    batch_size: int,
    workers: int,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (images, labels) of the steps first_step .. first_step + steps - 1.

    Images are uint8 [N, 3, h, w] RGB (channels last in memory), labels uint8 [N, h, w]. Batches
    depend on the arguments alone, not on `workers`; `batch_size` counts over all ranks.
    Raises SegdeformError for a picture that cannot be read, ResourceError for lost workers.
    """
    plan = (
        batch_indices(seed, step, batch_size, len(dataset), rank, world_size)
        for step in range(first_step, first_step + steps)
    )
    loader: torch.utils.data.DataLoader[Crop] = torch.utils.data.DataLoader(
        _Crops(dataset, config, seed),
        batch_sampler=plan,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        # Its own generator, because the loader would draw a number from the global one.
        generator=torch.Generator(),
    )
    batches, processes = _start(loader)
    end = partial(_end, batches, processes)
    atexit.register(end)  # an exception's traceback may hold this generator until then
    try:
        while (batch := _next_batch(batches, processes)) is not None:
            yield batch
    finally:
        end()
        atexit.unregister(end)


def _start(loader: torch.utils.data.DataLoader[Crop]) -> tuple[Any, set[BaseProcess]]:
    """Starts the workers; returns the iterator of batches and the processes."""
    others = set(multiprocessing.active_children())
    handler = signal.getsignal(signal.SIGCHLD)
    batches: Any = iter(loader)
    if threading.current_thread() is threading.main_thread():
        # PyTorch's handler would raise in the midst of whatever runs when a worker dies.
        signal.signal(signal.SIGCHLD, handler)
    processes = set(multiprocessing.active_children()) - others
    if processes:
        # PyTorch's event takes a lock between processes, which a dead worker may hold for good.
        # The workers keep theirs and never see it set: `_end` ends them.
        batches._workers_done_event = threading.Event()
    return batches, processes


def _next_batch(batches: Any, processes: set[BaseProcess]) -> tuple[Tensor, Tensor] | None:
    # Reading from a worker that stopped has no limit of its own, but ends with the worker.
    guard = threading.Timer(_TIMEOUT, _kill, [processes])
    guard.daemon = True
    guard.start()
    try:
        batch = next(batches, None)
    except (RuntimeError, EOFError, OSError) as error:
        if not processes or "in DataLoader worker process" in str(error):
            raise  # an error of our own code, passed on by a worker
        raise ResourceError(
            f"a data loader worker was lost, or hung for {_TIMEOUT} s; "
            "free some memory or use fewer --workers, then continue with --resume"
        ) from error
    finally:
        guard.cancel()
    if isinstance(batch, SegdeformError):
        raise batch
    return cast("tuple[Tensor, Tensor] | None", batch)


def _end(batches: Any, processes: set[BaseProcess]) -> None:
    """Ends the workers by force: they own nothing that outlives them, and may hang."""
    _kill(processes)
    for process in processes:
        process.join()
    if processes:
        batches._shutdown_workers()


def _kill(processes: set[BaseProcess]) -> None:
    for process in processes:
        process.kill()


class _Crops(torch.utils.data.Dataset[Crop]):
    """Training crops, addressed by (epoch, index)."""

    def __init__(self, dataset: Dataset, config: DataConfig, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed
        self.transform = TrainTransform(
            crop=config.crop,
            scale=config.scale,
            max_class_share=config.max_class_share,
            flip=config.flip,
            rotate=config.rotate,
            color=config.color,
        )

    def __getitem__(self, key: tuple[int, int]) -> Crop | SegdeformError:  # type: ignore[override]
        epoch, index = key
        try:
            image, labels = read_pair(self.dataset, index)
            return self.transform(image, labels, self.seed, epoch, index)
        except SegdeformError as error:
            return error  # raised in a worker, it would arrive wrapped in a traceback
        except (MemoryError, cv2.error) as error:
            return _memory_ended(error)


def _collate(crops: list[Crop | SegdeformError]) -> tuple[Tensor, Tensor] | SegdeformError:
    images, labels = [], []
    for crop in crops:
        if isinstance(crop, SegdeformError):
            return crop
        images.append(crop[0])
        labels.append(crop[1])
    try:
        stacked = torch.from_numpy(np.stack(images))  # [N, h, w, 3]
        return stacked.permute(0, 3, 1, 2), torch.from_numpy(np.stack(labels))
    except MemoryError as error:
        return _memory_ended(error)


def _memory_ended(error: Exception) -> ResourceError:
    """Returns what a worker says of its memory; raises what is about something else."""
    if isinstance(error, MemoryError) or "memory" in str(error):  # cv2's has no type of its own
        return ResourceError("memory ended while crops were made: lower data.crop or batch_size")
    raise error


def _start_worker(worker: int) -> None:
    cv2.setNumThreads(0)
    # Ctrl-C and SIGTERM may reach the whole group; the main process saves first, then ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
