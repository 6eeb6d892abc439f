"""Counts of single pictures: they add up, split over processes, and score by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from segdeform.evaluation.boundary import boundary_counts
from segdeform.evaluation.confusion import scores
from segdeform.evaluation.counts import Column, Counts, Tally, class_sums, picture_scores, union
from segdeform.machine.processes import Processes
from tests.evaluation.test_confusion import random_pair

PAIRS = [random_pair(seed, (7 + seed, 11), 6) for seed in range(5)]
ALONE = Processes()


class Together(Processes):
    """Stands for several processes: gathers what the others are known to give."""

    def __init__(self, others: list[list[NDArray[np.int64]]]) -> None:
        super().__init__()
        self.__dict__["others"] = others

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        parts: list[NDArray[np.int64]] = self.__dict__["others"].pop(0)
        return np.concatenate([rows, *parts])


class Listening(Processes):
    """Keeps what is gathered."""

    def __init__(self) -> None:
        super().__init__()
        self.__dict__["given"] = []

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        self.__dict__["given"].append(rows)
        return rows


def tally(pictures: list[int]) -> Tally:
    counted = Tally(6, 0.02)
    for picture in pictures:
        counted.add(picture, *PAIRS[picture])
    return counted


def test_rows_add_up_to_the_matrix() -> None:
    counts = tally([0, 1, 2, 3, 4]).gather(ALONE)
    assert counts.rows.dtype == np.int64
    iou = class_sums(counts.rows, counts.rows[:, Column.CORRECT], 6) / class_sums(
        counts.rows, union(counts.rows), 6
    )
    assert tuple(iou) == scores(counts.matrix).iou
    np.testing.assert_array_equal(counts.sizes, [(7 + k, 11) for k in range(5)])
    assert counts.void.tolist() == [int((truth == 255).sum()) for truth, _ in PAIRS]
    assert counts.matrix.sum() == (counts.sizes.prod(axis=1) - counts.void).sum()


def test_any_split_over_processes_gives_the_same() -> None:
    def equal(a: Counts, b: Counts) -> bool:
        arrays = ("matrix", "rows", "sizes", "void")
        same: list[Any] = [np.array_equal(getattr(a, x), getattr(b, x)) for x in arrays]
        return all(same) and a.truth_sha256 == b.truth_sha256

    alone = tally([0, 1, 2, 3, 4]).gather(ALONE)
    listening = Listening()
    tally([1, 3]).gather(listening)
    shared = tally([0, 2, 4]).gather(Together([[given] for given in listening.__dict__["given"]]))
    assert equal(alone, shared)
    assert not equal(alone, tally([0, 1, 2, 3]).gather(ALONE))


def test_pictures_are_scored_by_themselves() -> None:
    counts = tally([0, 1, 2, 3, 4]).gather(ALONE)
    by_picture = picture_scores(counts.rows, 5)
    for index in range(5):
        own = scores(tally([index]).gather(ALONE).matrix)
        assert by_picture.miou[index] == pytest.approx(own.miou)
        assert by_picture.accuracy[index] == pytest.approx(own.accuracy)


def test_boundary_iou_of_a_picture_is_that_of_its_outlines() -> None:
    truth = np.zeros((60, 60), np.uint8)
    truth[10:40, 10:40] = 1
    counted = Tally(6, 0.02)
    counted.add(0, truth, np.roll(truth, 2, axis=1))
    common, either = boundary_counts(truth, np.roll(truth, 2, axis=1), 6, 0.02)
    found = picture_scores(counted.gather(ALONE).rows, 1)
    assert found.boundary_iou[0] == pytest.approx((common[:2] / either[:2]).mean())
    assert found.boundary_iou[0] < found.miou[0] - 0.1


def test_a_picture_without_scored_pixels_has_no_score() -> None:
    counted = Tally(6, 0.02)
    counted.add(0, np.full((3, 4), 255, np.uint8), np.zeros((3, 4), np.uint8))
    counts = counted.gather(ALONE)
    assert len(counts.rows) == 0
    by_picture = picture_scores(counts.rows, 1)
    assert math.isnan(by_picture.miou[0]) and math.isnan(by_picture.accuracy[0])


def test_memory_is_for_the_classes_that_occur() -> None:
    counted = Tally(255, 0.02)
    for picture in range(40):
        counted.add(picture, *random_pair(picture, (20, 20), 8))
    assert len(counted.gather(ALONE).rows) == 40 * 8
