"""Our confusion matrix on real VOC masks against a naive count and torchmetrics."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segdeform.data import load_dataset
from segdeform.data.dataset import Dataset, read_labels
from segdeform.evaluation.confusion import confusion_matrix, scores
from tests.conftest import external_data

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8]]


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """The masks of the val split, and predictions that shift them and mistake some classes."""
    dataset: Dataset = load_dataset("voc", external_data("data"), "val")
    rng = np.random.default_rng(0)
    found = []
    for sample in dataset.samples:
        assert sample.mask is not None
        truth = read_labels(dataset, sample.mask)
        prediction = np.roll(truth, rng.integers(-9, 10, 2), (0, 1))
        prediction[prediction == 255] = 0
        wrong = rng.integers(0, 21, (truth.shape[0] // 16 + 1, truth.shape[1] // 16 + 1))
        blocks = np.kron(rng.random(wrong.shape) < 0.2, np.ones((16, 16))).astype(bool)
        blocks = blocks[: truth.shape[0], : truth.shape[1]]
        mistaken = np.kron(wrong, np.ones((16, 16), np.uint8))[: truth.shape[0], : truth.shape[1]]
        found.append((truth, np.where(blocks, mistaken, prediction).astype(np.uint8)))
    return found


def ours(pairs: list[Pair]) -> NDArray[np.int64]:
    return np.sum([confusion_matrix(*pair, 21) for pair in pairs], axis=0)


def test_equals_a_naive_count(pairs: list[Pair]) -> None:
    counted: Counter[tuple[int, int]] = Counter()
    for truth, prediction in pairs:
        counted.update(zip(truth.ravel().tolist(), prediction.ravel().tolist(), strict=True))
    matrix = ours(pairs)
    assert len(pairs) == 65 and (matrix > 0).sum() > 200
    for row in range(21):
        for column in range(21):
            assert matrix[row, column] == counted[row, column]
    scored = sum(count for (truth, _), count in counted.items() if truth != 255)
    assert matrix.sum() == scored < sum(counted.values())


def test_equals_torchmetrics(pairs: list[Pair]) -> None:
    classification: Any = pytest.importorskip(
        "torchmetrics.classification", reason="torchmetrics is not installed"
    )
    import torch

    count = classification.MulticlassConfusionMatrix(21, ignore_index=255)
    jaccard = classification.MulticlassJaccardIndex(21, ignore_index=255, average=None)
    for truth, prediction in pairs:
        tensors = [torch.from_numpy(labels.astype(np.int64)) for labels in (prediction, truth)]
        count.update(*tensors)
        jaccard.update(*tensors)
    np.testing.assert_array_equal(ours(pairs), count.compute().numpy())
    iou = np.nan_to_num(scores(ours(pairs)).iou)  # torchmetrics has 0 for absent classes
    np.testing.assert_allclose(iou, jaccard.compute().numpy(), atol=1e-6)
