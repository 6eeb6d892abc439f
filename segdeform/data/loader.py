"""Feeds training: the batches of consecutive steps, made by worker processes.

The workers are programs of their own (see `worker.py`), started by `subprocess` and not by
`multiprocessing`: nothing depends on how that starts processes, which differs between versions of
Python; nothing is forked while threads of torch hold locks; a script that trains needs no
`if __name__ == "__main__"`. Batches come through anonymous memory, so the size of /dev/shm, 64 MB
in containers, does not matter.
"""

from __future__ import annotations

import atexit
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial

import numpy as np
import torch
from torch import Tensor

from segdeform.config.schema import DataConfig
from segdeform.data.batches import Batch, Batches
from segdeform.data.dataset import Dataset
from segdeform.data.image_io import UInt8
from segdeform.errors import ResourceError

_TIMEOUT = 300  # seconds that a batch may take; more count as hanging
_LAST = 10.0  # seconds for a process to be gone after its end
_PLACES = 2  # batches of a worker in memory: one that is trained on next, one in the making
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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

    Images are uint8 [N, C, h, w], RGB where C is 3 (channels last in memory), labels uint8 [N, h,
    w], of more than 255 classes int32. Batches depend on the arguments alone, not on `workers`;
    `batch_size` counts over all ranks.
    Raises SegdeformError for a picture that cannot be read, ResourceError for lost workers and
    when memory, shared memory or open files end.
    """
    batches = Batches(dataset, config, seed, batch_size, rank, world_size)
    order = range(first_step, first_step + steps)
    if workers:
        yield from _made_by_workers(batches, order, min(workers, steps))
        return
    for step in order:
        batch = batches.place(np.empty(batches.nbytes, np.uint8))
        batches.fill(step, batch)
        yield _tensors(batch)


def _made_by_workers(batches: Batches, steps: range, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Asks `count` workers for the steps in turn, each for the next as soon as one is fetched."""
    with ExitStack() as stack:
        memory, workers = _start(batches, count, stack)
        places = [batches.place(memory, place) for place in range(_PLACES * count)]
        for turn, step in enumerate(steps[: len(places)]):
            workers[turn % count].ask(step, turn)
        for turn in range(len(steps)):
            worker, place = workers[turn % count], turn % len(places)
            worker.fetch()
            images, labels = places[place]
            batch = images.copy(), labels.copy()  # the place is needed again
            if turn + len(places) < len(steps):
                worker.ask(steps[turn + len(places)], place)
            yield _tensors(batch)


def _tensors(batch: Batch) -> tuple[Tensor, Tensor]:
    images, labels = batch
    # Of unsigned integers of 16 bits torch knows little.
    known = labels.astype(np.int32) if labels.dtype == np.uint16 else labels
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(known)


def _start(batches: Batches, count: int, stack: ExitStack) -> tuple[UInt8, list[_Worker]]:
    """Starts the workers, which end with the stack; returns them and the memory that they share."""
    job = pickle.dumps(batches)
    start = _PLACES * count * batches.nbytes
    descriptor, memory = _share(start + len(job), stack)
    memory[start:] = np.frombuffer(job, np.uint8)
    workers: list[_Worker] = []
    end = partial(_end, workers)
    stack.callback(atexit.unregister, end)
    stack.callback(end)
    # An exception's traceback may hold the generator, and with it the stack, until the very end.
    atexit.register(end)
    try:
        for _ in range(count):
            workers.append(_Worker(descriptor, start))
    except OSError as error:
        raise ResourceError(
            f"a data loader worker cannot be started ({error.strerror}): use fewer --workers"
        ) from error
    return memory, workers


def _share(size: int, stack: ExitStack) -> tuple[int, UInt8]:
    """Returns an open file of anonymous memory, closed with the stack, and its bytes."""
    try:
        descriptor = os.memfd_create("segdeform-batches")
        stack.callback(os.close, descriptor)
        os.posix_fallocate(descriptor, 0, size)  # what cannot be had is told here, not by SIGBUS
        return descriptor, np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
    except OSError as error:
        raise ResourceError(
            f"{size / 2**20:.1f} MiB of shared memory for the loader's batches cannot be had "
            f"({error.strerror}): use fewer --workers or --workers 0, or lower train.batch_size"
        ) from error


class _Worker:
    """A running worker process. Raises OSError where it cannot be started."""

    def __init__(self, memory: int, job: int) -> None:
        self._channel, theirs = socket.socketpair()
        self._channel.settimeout(_TIMEOUT)
        self._answers = self._channel.makefile("rb")
        numbers = (theirs.fileno(), memory, job)
        program = "from segdeform.data.worker import main; main()"
        with theirs, _signals_held():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", program, *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # ours may be read by a program
                pass_fds=numbers[:2],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
            )

    def ask(self, step: int, place: int) -> None:
        """Orders the batch of a step, into a place of the memory."""
        with suppress(ConnectionError):  # `fetch` says that it is lost
            self._channel.sendall(b"%d %d\n" % (step, place))

    def fetch(self) -> None:
        """Waits for the batch ordered first. Raises what went wrong with it, or ResourceError."""
        try:
            error = pickle.load(self._answers)
        except TimeoutError as silence:
            raise ResourceError(
                f"a data loader worker hung for {_TIMEOUT} s: does the drive of the pictures "
                "answer? Continue with --resume"
            ) from silence
        except (EOFError, ConnectionError, pickle.UnpicklingError) as end:
            raise ResourceError(
                f"a data loader worker was lost ({self._cause()}): free some memory or use fewer "
                "--workers, then continue with --resume"
            ) from end
        if error is not None:
            raise error

    def kill(self) -> None:
        """Ends the process by force: it owns nothing that outlives it, and may hang."""
        self._process.kill()

    def wait(self) -> None:
        """Waits until the process is gone, as far as the system lets it go."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST)
        self._answers.close()
        self._channel.close()

    def _cause(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_LAST)
            return signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return "it fell silent"


def _end(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.wait()


@contextmanager
def _signals_held() -> Iterator[None]:
    """Has processes that are started meanwhile never see Ctrl-C, SIGTERM and SIGHUP.

    These may reach a whole group; the main process saves first, then ends its workers.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
