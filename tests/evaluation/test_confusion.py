"""The confusion matrix against a naive count, its scores against the written-out formulas."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segdeform.errors import DataError
from segdeform.evaluation import confusion
from segdeform.evaluation.confusion import confusion_matrix, scores


def random_pair(
    seed: int, shape: tuple[int, int], classes: int, void: float = 0.2
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape).astype(np.uint8)
    prediction = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, classes, shape))
    truth[rng.random(shape) < void] = 255
    return truth, prediction.astype(np.uint8)


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    classes=st.integers(1, 255),
    chunk=st.sampled_from([1, 7, 2**20]),
)
def test_equals_a_naive_count(seed: int, shape: tuple[int, int], classes: int, chunk: int) -> None:
    truth, prediction = random_pair(seed, shape, classes)
    expected = np.zeros((classes, classes), np.int64)
    for t, p in zip(truth.flat, prediction.flat, strict=True):
        if t != 255:
            expected[t, p] += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(confusion, "_CHUNK", chunk)
        matrix = confusion_matrix(truth, prediction, classes)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, expected)


def test_equals_sklearn() -> None:
    metrics: Any = pytest.importorskip("sklearn.metrics")
    truth, prediction = random_pair(3, (90, 110), 7)
    counted = truth != 255
    matrix = confusion_matrix(truth, prediction, 7)
    expected = metrics.confusion_matrix(truth[counted], prediction[counted], labels=range(7))
    np.testing.assert_array_equal(matrix, expected)
    jaccard = metrics.jaccard_score(truth[counted], prediction[counted], average=None)
    np.testing.assert_allclose(scores(matrix).iou, jaccard, rtol=1e-12)
    assert scores(matrix).miou == pytest.approx(jaccard.mean(), rel=1e-12)
    truth_, said = truth[counted], prediction[counted]
    expected_scores = metrics.precision_recall_fscore_support(truth_, said, labels=range(7))
    for found, wanted in zip(
        (scores(matrix).precision, scores(matrix).class_accuracy, scores(matrix).f1),
        expected_scores,
        strict=False,
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert scores(matrix).mean_f1 == pytest.approx(
        metrics.f1_score(truth_, said, average="macro"), rel=1e-12
    )
    recall = metrics.balanced_accuracy_score(truth[counted], prediction[counted])
    assert scores(matrix).mean_accuracy == pytest.approx(recall, rel=1e-12)


def test_hand_counted_case() -> None:
    """Class 1 is never predicted, class 2 never true, class 3 neither."""
    truth = np.array([[0, 0, 0, 1], [0, 1, 255, 255]], np.uint8)
    prediction = np.array([[0, 0, 2, 0], [0, 0, 1, 3]], np.uint8)
    matrix = confusion_matrix(truth, prediction, 4)
    np.testing.assert_array_equal(matrix, [[3, 0, 1, 0], [2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    result = asdict(scores(matrix))
    assert result["iou"][:3] == (3 / 6, 0.0, 0.0)
    assert math.isnan(result["iou"][3])
    assert result["class_accuracy"][:2] == (3 / 4, 0.0)
    assert all(math.isnan(value) for value in result["class_accuracy"][2:])
    assert result["f1"][:3] == (6 / 9, 0.0, 0.0)
    assert result["precision"][::2] == (3 / 5, 0.0)
    assert all(math.isnan(result[name][3]) for name in ("f1", "precision"))
    assert math.isnan(result["precision"][1])
    assert result["mean_f1"] == pytest.approx(6 / 9 / 3)
    assert result["miou"] == pytest.approx((3 / 6 + 0 + 0) / 3)
    assert result["accuracy"] == 3 / 6
    assert result["mean_accuracy"] == pytest.approx((3 / 4 + 0) / 2)
    assert result["fw_iou"] == pytest.approx(4 / 6 * 3 / 6)
    assert result["constant_miou"] == pytest.approx(4 / 6 / 2)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), classes=st.integers(1, 9))
def test_constant_miou_is_that_of_a_constant_prediction(seed: int, classes: int) -> None:
    truth, prediction = random_pair(seed, (6, 7), classes)
    truth[0, 0] = 0
    value = scores(confusion_matrix(truth, prediction, classes)).constant_miou
    everywhere = [
        scores(confusion_matrix(truth, np.full_like(truth, k), classes)) for k in range(classes)
    ]
    assert value == pytest.approx(max(everywhere, key=lambda result: result.accuracy).miou)


def test_nothing_but_ignored_pixels_has_no_score() -> None:
    truth, prediction = np.full((4, 4), 255, np.uint8), np.zeros((4, 4), np.uint8)
    result = scores(confusion_matrix(truth, prediction, 3))
    for value in (
        result.miou,
        result.constant_miou,
        result.mean_f1,
        result.accuracy,
        result.mean_accuracy,
        result.fw_iou,
        *result.iou,
    ):
        assert math.isnan(value)


def test_sum_does_not_depend_on_order_or_split() -> None:
    pairs = [random_pair(seed, (13, 17), 5) for seed in range(20)]
    forth = sum(confusion_matrix(t, p, 5) for t, p in pairs)
    back = sum(confusion_matrix(t, p, 5) for t, p in reversed(pairs))
    stacked = [np.concatenate(arrays) for arrays in zip(*pairs, strict=True)]
    assert scores(np.asarray(forth)) == scores(np.asarray(back))
    np.testing.assert_array_equal(forth, confusion_matrix(stacked[0], stacked[1], 5))


def test_counts_beyond_32_bits_stay_exact() -> None:
    matrix = np.array([[2**53 + 1, 0], [2**53 + 1, 0]], np.int64)
    assert scores(matrix).accuracy == 0.5
    assert scores(matrix).iou == (0.5, 0.0)


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([[0, 1], [0, 3]], [[0, 0], [0, 0]], r"mask holds 3 at \(1, 1\); classes are 0 to 2"),
        ([[0, 1], [0, 0]], [[0, 0], [7, 0]], r"prediction holds 7 at \(1, 0\)"),
        ([[255, 1], [0, 0]], [[255, 0], [0, 0]], r"prediction holds 255 at \(0, 0\)"),
        ([[0, -1], [0, 0]], [[0, 0], [0, 0]], r"mask holds -1 at \(0, 1\)"),
        ([[0, 1]], [[0, 0], [0, 0]], r"prediction is 2x2 pixels and the mask 1x2"),
    ],
)
def test_values_that_are_no_class_are_named(
    truth: list[list[int]], prediction: list[list[int]], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        confusion_matrix(np.array(truth), np.array(prediction), 3)
