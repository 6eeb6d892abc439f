"""Boundary IoU against its definition, class by class and pixel by pixel."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from segdeform.evaluation.boundary import boundary_counts

Mask = NDArray[np.uint8]


def labels(seed: int, shape: tuple[int, int], classes: int, void: float = 0.0) -> Mask:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, classes, (shape[0] // 3 + 1, shape[1] // 3 + 1)).astype(np.uint8)
    mask = coarse.repeat(3, 0).repeat(3, 1)[: shape[0], : shape[1]].copy()
    mask[rng.random(shape) < void] = 255
    return mask


def naive_band(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Marks the mask's pixels that see another pixel, or the outside, in the square around them."""
    band = np.zeros_like(mask)
    height, width = mask.shape
    for y, x in zip(*np.nonzero(mask), strict=True):
        for v in range(y - distance, y + distance + 1):
            for u in range(x - distance, x + distance + 1):
                inside = 0 <= v < height and 0 <= u < width
                band[y, x] |= not inside or not mask[v, u]
    return band


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    width=st.sampled_from([0.01, 0.1, 0.2, 1.0]),
    void=st.sampled_from([0.0, 0.2]),
)
def test_equals_the_definition(
    seed: int, shape: tuple[int, int], width: float, void: float
) -> None:
    truth, prediction = labels(seed, shape, 3, void), labels(seed + 1, shape, 3)
    common, either = boundary_counts(truth, prediction, 3, width)
    distance = max(1, round(width * math.hypot(*shape)))
    scored = truth != 255
    for k in range(3):
        true_band = naive_band(truth == k, distance)
        predicted_band = naive_band((prediction == k) & scored, distance)
        assert common[k] == (true_band & predicted_band).sum()
        assert either[k] == (true_band | predicted_band).sum()


def test_band_is_what_eroding_the_padded_mask_leaves() -> None:
    """The published definition in code: the mask minus the mask eroded d times, zeros outside."""
    truth, prediction = labels(1, (90, 120), 4), labels(2, (90, 120), 4)
    _, either = boundary_counts(truth, prediction, 4, 0.02)
    for k in range(4):
        bands = []
        for mask in (truth == k, prediction == k):
            padded = np.pad(mask.astype(np.uint8), 1)
            eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=3)[1:-1, 1:-1]
            bands.append(mask & (eroded == 0))
        assert either[k] == (bands[0] | bands[1]).sum()


@pytest.mark.parametrize("void", [0.0, 0.3])
def test_a_right_prediction_is_perfect_beside_ignored_pixels_too(void: float) -> None:
    truth = labels(3, (40, 50), 5, void)
    prediction = np.where(truth == 255, labels(4, (40, 50), 5), truth).astype(np.uint8)
    common, either = boundary_counts(truth, prediction, 5)
    np.testing.assert_array_equal(common, either)
    assert common.min() > 0


def test_a_shifted_outline_costs_more_than_in_plain_iou() -> None:
    truth = np.zeros((200, 200), np.uint8)
    truth[40:160, 40:160] = 1
    prediction = np.roll(truth, 4, axis=1)
    common, either = boundary_counts(truth, prediction, 2)
    iou = 116 / 124
    assert common[1] / either[1] < 0.6 < iou
