from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
from pathlib import Path

import cv2
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
@pytest.mark.parametrize("error", [MemoryError(), cv2.error("Insufficient memory")])
def test_memory_that_ends_in_a_crop_is_told_in_a_line(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, workers: int, error: Exception
) -> None:
    def crop(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(TrainTransform, "__call__", crop)
    with pytest.raises(ResourceError, match=r"lower data\.crop") as caught:
        batches(dataset, workers=workers)
    assert "\n" not in str(caught.value)


def test_a_killed_worker_is_an_error_and_leaves_nobody_behind(dataset: Dataset) -> None:
    before = set(multiprocessing.active_children())
    loader = iter(
        train_loader(dataset, CONFIG, seed=0, first_step=0, steps=10**6, batch_size=2, workers=2)
    )
    next(loader)
    victim, _ = set(multiprocessing.active_children()) - before
    # What Ctrl-C and a scheduler send to the whole group must not end the workers.
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(victim.pid or 0, number)
    next(loader)
    assert victim.is_alive()
    victim.kill()
    with pytest.raises(ResourceError, match="worker was lost, or hung"):
        for _ in range(1000):
            next(loader)
    assert not set(multiprocessing.active_children()) - before


def test_a_worker_that_hangs_is_given_up(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segdeform.data.loader._TIMEOUT", 1)
    before = set(multiprocessing.active_children())
    loader = iter(
        train_loader(dataset, CONFIG, seed=0, first_step=0, steps=10**6, batch_size=2, workers=1)
    )
    next(loader)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid or 0, signal.SIGSTOP)
    with pytest.raises(ResourceError, match="hung for 1 s"):
        for _ in range(10):
            next(loader)
    assert not worker.is_alive()


def test_a_worker_that_dies_with_a_lock_of_the_loader_stops_nobody(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_the_lock_and_die(*arguments: object) -> None:
        frame = inspect.currentframe()
        while frame is not None and "done_event" not in frame.f_locals:
            frame = frame.f_back
        assert frame is not None, "PyTorch's worker loop has no done_event any more"
        frame.f_locals["done_event"]._cond.acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(TrainTransform, "__call__", take_the_lock_and_die)
    with pytest.raises(ResourceError, match="worker was lost"):
        batches(dataset, workers=1)
