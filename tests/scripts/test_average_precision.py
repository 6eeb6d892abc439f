"""COCO's average precision, called as meant: numbers worked out by hand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from detection.average_precision import Found, Truth, average_precision

A, B, C = (0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10)
FAR = (80, 80, 90, 90)
Box = tuple[float, float, float, float]


def there(*boxes: Box, ignored: int = 0) -> Truth:
    """Objects of class 1; the last `ignored` do not count."""
    flags = [i >= len(boxes) - ignored for i in range(len(boxes))]
    return Truth(boxes, [1] * len(boxes), flags)


def seen(*boxes: Box) -> Found:
    """Detections of class 1, best first."""
    return Found(boxes, [1] * len(boxes), [0.9 - 0.1 * i for i in range(len(boxes))])


def ap50(truth: list[Truth], found: list[Found]) -> float:
    return average_precision(truth, found, 1).ap50


def test_all_right_is_one_and_nothing_is_zero() -> None:
    found = average_precision([there(A, B)], [seen(B, A)], 1)
    assert (found.ap, found.ap50, found.ap75) == pytest.approx((1, 1, 1))
    assert average_precision([there(A, B)], [seen()], 1).ap == 0
    assert average_precision([there(A, B)], [seen(FAR, FAR)], 1).ap == 0


@pytest.mark.parametrize(
    ("detections", "expected"),
    [
        # Two objects. Precision 1 up to recall 1/2 (0, ..., 0.50: 51 places), then 2/3 (50).
        ((A, FAR, B), (51 + 50 * Fraction(2, 3)) / 101),
        # Right at the second and third place: 1/2, then 2/3; monotone: 2/3 everywhere.
        ((FAR, A, B), Fraction(2, 3)),
        # One is never found: precision 1 up to recall 1/2, then 0.
        ((A,), Fraction(51, 101)),
        # The same object twice: the second one is wrong.
        ((A, A, B), (51 + 50 * Fraction(2, 3)) / 101),
    ],
)
def test_hand_worked_precisions(detections: tuple[Box, ...], expected: Fraction) -> None:
    assert ap50([there(A, B)], [seen(*detections)]) == pytest.approx(float(expected), abs=1e-12)


def test_scores_rank_across_pictures() -> None:
    # Ranks: right (0.9), wrong (0.8), right (0.7); three objects: recalls 1/3, 1/3, 2/3.
    truth = [there(A, B), there(C)]
    found = [Found([A, FAR], [1, 1], [0.7, 0.8]), Found([C], [1], [0.9])]
    # 0, ..., 0.33: 34 places at 1; 0.34, ..., 0.66: 33 places at 2/3; the rest 0.
    assert ap50(truth, found) == pytest.approx((34 + 33 * 2 / 3) / 101, abs=1e-12)


def test_recall_reaches_its_place_whatever_the_last_bit_says() -> None:
    boxes = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0) for i in range(10)]
    for hits in range(11):
        expected = (10 * hits + 1) / 101 if hits else 0
        assert ap50([there(*boxes)], [seen(*boxes[:hits])]) == pytest.approx(expected, abs=1e-12)


def test_thresholds_count_by_overlap() -> None:
    # 10 x 8 of 10 x 10: IoU 0.8, which 0.50, ..., 0.80 accept: 7 of 10.
    found = average_precision([there(A)], [seen((0, 0, 10, 8))], 1)
    assert found.ap == pytest.approx(0.7) and found.ap75 == pytest.approx(1)
    # Half of it is an IoU of exactly 0.5.
    assert average_precision([there(A)], [seen((0, 0, 10, 5))], 1).ap == pytest.approx(0.1)


def test_a_detection_takes_the_free_object_of_largest_overlap() -> None:
    near = (0, 0, 10, 9)  # IoU 0.9 with A, 1 with itself
    # The first takes `near`, the second is left with A, at IoU 0.9.
    found = average_precision([there(A, near)], [seen(near, near)], 1)
    # Above 0.90 (one threshold) the second is wrong: 51 places.
    assert found.ap == pytest.approx(0.9 + 0.1 * 51 / 101)


def test_ignored_objects_neither_help_nor_harm() -> None:
    # A is found; two detections inside the ignored B are excused, FAR is wrong.
    inside = (22, 2, 26, 8)
    assert ap50([there(A, B, ignored=1)], [seen(B, inside, A)]) == pytest.approx(1)
    assert ap50([there(A, B, ignored=1)], [seen(B, FAR, A)]) == pytest.approx(0.5)
    # Half of it outside: 0.5 reaches the threshold; a little more does not.
    assert ap50([there(A, B, ignored=1)], [seen((25, 0, 35, 10), A)]) == pytest.approx(1)
    assert ap50([there(A, B, ignored=1)], [seen((26, 0, 36, 10), A)]) == pytest.approx(0.5)
    # What fits a real object is right, although it lies in an ignored one as well.
    assert ap50([there(A, (0, 0, 40, 40), ignored=1)], [seen(A)]) == pytest.approx(1)


def test_classes_do_not_mix_and_absent_ones_are_left_out() -> None:
    truth = [Truth([A, B], [1, 2], [False, False])]
    swapped = [Found([A, B], [2, 1], [0.9, 0.9])]
    assert average_precision(truth, swapped, 3).ap == 0
    half = average_precision(truth, [Found([A], [1], [0.9])], 3)
    assert half.ap == pytest.approx(0.5) and np.isnan(half.by_class[2]).all()
    with pytest.raises(ValueError, match="no picture shows an object"):
        average_precision([there(A, ignored=1)], [seen(A)], 1)


def test_the_101st_detection_of_a_picture_is_not_looked_at() -> None:
    wrong = [FAR] * 100
    late = Found([*wrong, A], [1] * 101, [0.9] * 100 + [0.1])
    assert ap50([there(A)], [late]) == 0
    soon = Found([*wrong[1:], A], [1] * 100, [0.9] * 99 + [0.1])
    assert ap50([there(A)], [soon]) == pytest.approx(1 / 100)
