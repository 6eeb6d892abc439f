from __future__ import annotations

import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segdeform.config.schema import DataConfig
from segdeform.data import Dataset, load_dataset, read_pair
from segdeform.data.loader import train_loader
from segdeform.data.sampler import batch_indices
from segdeform.data.transforms import TrainTransform
from segdeform.errors import DataError, ResourceError
from segdeform.preparing.shapes import write_shapes
from tests.data import faults

CONFIG = DataConfig(name="shapes", crop=(40, 56), rotate=10.0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("loader") / "shapes"
    write_shapes(root, train=7, val=1, size=64)
    return load_dataset("shapes", root, "train")


def batches(dataset: Dataset, **changes: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    options = {"seed": 3, "first_step": 0, "steps": 5, "batch_size": 4, "workers": 0} | changes
    return list(train_loader(dataset, CONFIG, **options))


def test_batches_hold_the_crops_that_the_sampler_names(dataset: Dataset) -> None:
    crop = TrainTransform((40, 56), (0.5, 2.0), 1.0, 0.5, 10.0, 0.4)
    for step, (images, labels) in enumerate(batches(dataset)):
        assert images.shape == (4, 3, 40, 56)
        assert labels.shape == (4, 40, 56)
        assert images.dtype == labels.dtype == torch.uint8
        assert images.is_contiguous(memory_format=torch.channels_last)
        for row, (epoch, index) in enumerate(batch_indices(3, step, 4, len(dataset))):
            image, mask = crop(*read_pair(dataset, index), 3, epoch, index)
            np.testing.assert_array_equal(images[row].permute(1, 2, 0).numpy(), image)
            np.testing.assert_array_equal(labels[row].numpy(), mask)


def test_workers_resuming_and_ranks_change_nothing(dataset: Dataset) -> None:
    torch.manual_seed(0)
    whole = batches(dataset)
    state = torch.get_rng_state()
    with_workers = batches(dataset, workers=2)
    resumed = batches(dataset, first_step=3, steps=2)
    ranks = [batches(dataset, rank=rank, world_size=3) for rank in range(3)]
    for step, (images, labels) in enumerate(whole):
        assert torch.equal(images, with_workers[step][0])
        assert torch.equal(labels, with_workers[step][1])
        assert torch.equal(images, torch.cat([rank[step][0] for rank in ranks]))
        assert torch.equal(labels, torch.cat([rank[step][1] for rank in ranks]))
    for step in (3, 4):
        assert torch.equal(whole[step][0], resumed[step - 3][0])
    assert torch.equal(state, torch.get_rng_state()), "the loader drew from the global generator"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_breaks_during_training_is_named(
    dataset: Dataset, tmp_path: Path, workers: int
) -> None:
    write_shapes(tmp_path / "s", train=5, val=1, size=32)
    broken = load_dataset("shapes", tmp_path / "s", "train")
    (tmp_path / "s" / "train" / "images" / "00003.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"00003\.png") as caught:
        batches(broken, workers=workers)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", [faults.memory_ends, faults.opencv_ends])
def test_memory_that_ends_in_a_crop_is_told_in_a_line(
    dataset: Dataset, workers: int, fault: Callable[[Path], Any]
) -> None:
    with pytest.raises(ResourceError, match=r"lower data\.crop") as caught:
        batches(replace(dataset, decode_mask=fault), workers=workers)
    assert "\n" not in str(caught.value)


def test_a_bug_in_a_worker_is_shown_with_the_workers_traceback(dataset: Dataset) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)faults\.py.*ZeroDivisionError: of a planted bug"):
        batches(replace(dataset, decode_mask=faults.has_a_bug), workers=1)


def endless(dataset: Dataset, workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return train_loader(
        dataset, CONFIG, seed=0, first_step=0, steps=10**6, batch_size=2, workers=workers
    )


def children() -> set[int]:
    """Returns the ids of this process's children that run, or are stopped, or wait to be reaped."""
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(status.parent.name))
    return found


def test_a_killed_worker_is_an_error_and_leaves_nobody_behind(dataset: Dataset) -> None:
    before = children()
    loader = endless(dataset, workers=2)
    next(loader)
    victim, other = children() - before
    # What Ctrl-C, a scheduler and a closed terminal send to the whole group must not end workers.
    for number, pid in product((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), (victim, other)):
        os.kill(pid, number)
    for _ in range(10):
        next(loader)
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(ResourceError, match=r"worker was lost \(SIGKILL\): free some memory"):
        for _ in range(1000):
            next(loader)
    assert children() == before


def test_a_worker_that_dies_before_its_first_batch_is_an_error(dataset: Dataset) -> None:
    with pytest.raises(ResourceError, match=r"worker was lost \(SIGKILL\)"):
        batches(replace(dataset, decode_mask=faults.kills_its_process), workers=1)


def test_a_worker_that_hangs_is_given_up(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    before = children()
    loader = endless(dataset, workers=1)
    next(loader)
    loader.close()
    assert children() == before
    monkeypatch.setattr("segdeform.data.loader._TIMEOUT", 1)
    loader = endless(replace(dataset, decode_mask=faults.stops_its_process), workers=1)
    with pytest.raises(ResourceError, match=r"hung for 1 s: does the drive of the pictures"):
        next(loader)
    assert children() == before


def test_batches_are_made_ahead_of_training_but_not_without_bound(tmp_path: Path) -> None:
    write_shapes(tmp_path / "s", train=5, val=1, size=32)
    counted = load_dataset("shapes", tmp_path / "s", "train")
    loader = endless(replace(counted, decode_mask=faults.is_counted), workers=1)
    for fetched in (1, 2, 3):
        next(loader)
        time.sleep(0.2)  # what is made is at most this, however fast or slow the worker
        crops = (tmp_path / "s" / "train" / "calls").stat().st_size
        assert 2 * fetched <= crops <= 2 * (fetched + 2)
    loader.close()


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_batches_do_not_depend_on_how_python_starts_processes(
    dataset: Dataset, method: str
) -> None:
    usual = multiprocessing.get_start_method()
    try:
        multiprocessing.set_start_method(method, force=True)
        with_worker = batches(dataset, workers=1)
    finally:
        multiprocessing.set_start_method(usual, force=True)
    for ours, alone in zip(with_worker, batches(dataset), strict=True):
        assert all(map(torch.equal, ours, alone))


@contextmanager
def limit(resource_number: int, soft: int) -> Iterator[None]:
    usual = resource.getrlimit(resource_number)
    resource.setrlimit(resource_number, (soft, usual[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource_number, usual)


def test_too_few_open_files_are_told_at_once(dataset: Dataset) -> None:
    before = children()
    free = [os.dup(0) for _ in range(7)]  # not in a row where others left files open
    for number in free:
        os.close(number)
    with (
        limit(resource.RLIMIT_NOFILE, free[-1]),
        pytest.raises(ResourceError, match=r"cannot be started \(Too many open files\): use fewer"),
    ):
        batches(dataset, steps=40, workers=20)
    assert children() == before


def test_shared_memory_that_cannot_be_had_is_told_at_once(dataset: Dataset) -> None:
    with (
        limit(resource.RLIMIT_FSIZE, 30_000),  # a batch of this test has 35,840 bytes
        pytest.raises(ResourceError, match=r"[\d.]+ MiB of shared memory .* --workers 0"),
    ):
        batches(dataset, workers=1)


SCRIPT = """
import sys, time, zlib
from pathlib import Path
from segdeform.config.schema import DataConfig
from segdeform.data import load_dataset
from segdeform.data.loader import train_loader

dataset = load_dataset("shapes", Path(sys.argv[1]), "train")
config = DataConfig(name="shapes", crop=(200, 200))
sums = 0
for images, labels in train_loader(
    dataset, config, seed=0, first_step=0, steps=5, batch_size=2, workers=2
):
    sums = zlib.crc32(labels.numpy(), zlib.crc32(images.permute(0, 2, 3, 1).numpy(), sums))
    if len(sys.argv) > 2:
        print("on the way", flush=True)
        time.sleep(1000)
print("sums", sums)
"""


def test_tiny_dev_shm_is_enough(dataset: Dataset) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace of its own: needs root and unshare")
    mount = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && exec "$@"'
    script = [sys.executable, "-c", SCRIPT, str(dataset.root)]
    command = [unshare, "-m", "bash", "-c", mount, "bash", *script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    config, sums = DataConfig(name="shapes", crop=(200, 200)), 0
    for images, labels in train_loader(
        dataset, config, seed=0, first_step=0, steps=5, batch_size=2, workers=0
    ):
        sums = zlib.crc32(labels.numpy(), zlib.crc32(images.permute(0, 2, 3, 1).numpy(), sums))
    assert done.stdout.splitlines()[-1] == f"sums {sums}"


def running(worker: Path) -> bool:
    with suppress(OSError):
        return b"segdeform.data.worker" in worker.read_bytes()  # empty once it has ended
    return False


def test_workers_end_with_a_training_that_is_killed(dataset: Dataset) -> None:
    # A script without `if __name__ == "__main__"`, which is not run again in its workers.
    command = [sys.executable, "-c", SCRIPT, str(dataset.root), "and wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        assert "on the way\n" in training.stdout
        tasks = Path(f"/proc/{training.pid}/task/{training.pid}/children")
        workers = [Path("/proc", pid, "cmdline") for pid in tasks.read_text().split()]
        assert len(workers) == 2 and all(map(running, workers))
        training.kill()
    deadline = time.monotonic() + 60
    while any(map(running, workers)):
        assert time.monotonic() < deadline, "a worker outlives its training"
        time.sleep(0.02)
