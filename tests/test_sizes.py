"""A network trained on the generated pictures, at sizes that it was not trained at."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import segdeform
from segdeform.config.loading import load_config
from segdeform.data import load_dataset
from segdeform.data.dataset import read_pair
from segdeform.evaluation.confusion import scores
from segdeform.inference import predict_labels
from segdeform.preparing.shapes import write_shapes
from segdeform.segmenter import Segmenter
from segdeform.training.loop import train

pytestmark = pytest.mark.slow  # two minutes of training

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, seed=0)
    return root


@pytest.fixture(scope="module")
def segmenter(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    """Trains what the demo trains."""
    torch.set_num_threads(2)
    run = tmp_path_factory.mktemp("run")
    train(load_config("shapes"), shapes, run, device="cpu")
    return segdeform.load(run, "cpu")


@pytest.fixture(scope="module")
def pairs(shapes: Path) -> list[Pair]:
    dataset = load_dataset("shapes", shapes, "val")
    return [read_pair(dataset, index) for index in range(len(dataset))]


def miou(segmenter: Segmenter, pairs: Iterable[Pair], rows: int, tile: int = 0) -> float:
    """Scores the upper rows of pictures."""
    classes = len(segmenter.classes)
    matrix = np.zeros((classes, classes), np.int64)
    options = segmenter.options.model_copy(update={"tile": tile})
    for image, truth in pairs:
        labels = predict_labels(segmenter.model, image, options, "cpu")[:rows]
        index = truth[:rows].astype(np.int64) * classes + labels
        matrix += np.bincount(index.ravel(), minlength=classes**2).reshape(matrix.shape)
    return scores(matrix).miou


def mosaics(pairs: list[Pair], side: int, count: int) -> list[Pair]:
    """Puts side x side pictures together, `count` times."""
    order = np.random.default_rng(7)

    def together(parts: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        rows = [np.concatenate(parts[i : i + side], 1) for i in range(0, side**2, side)]
        return np.concatenate(rows)

    chosen = [order.choice(len(pairs), side**2, replace=False) for _ in range(count)]
    return [
        (together([pairs[i][0] for i in group]), together([pairs[i][1] for i in group]))
        for group in chosen
    ]


def test_the_score_does_not_depend_on_the_height(segmenter: Segmenter, pairs: list[Pair]) -> None:
    """The network sees 112 to 128 rows, of which the stride divides 112 and 128 alone."""
    found = {
        height: miou(segmenter, [(i[: 2 * height].copy(), t) for i, t in pairs], rows=224)
        for height in (112, 113, 117, 121, 125, 128)
    }
    assert min(found.values()) > 0.8
    assert max(found.values()) - min(found.values()) <= 0.005, found


@pytest.mark.parametrize(("side", "count"), [(2, 24), (4, 6)])
def test_pictures_larger_than_the_crop_score_as_their_tiles_do(
    segmenter: Segmenter, pairs: list[Pair], side: int, count: int
) -> None:
    tile = segmenter.options.automatic_tile
    assert tile == 256  # the crop of 128 at scale 0.5
    large = mosaics(pairs, side, count)
    whole, tiled = (miou(segmenter, large, rows=256 * side, tile=t) for t in (0, tile))
    assert min(whole, tiled) > 0.8
    assert abs(whole - tiled) <= 0.01, (whole, tiled)
