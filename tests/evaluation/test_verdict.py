"""What is said of scores: nobody takes 0.49 for half-way, and a lost class is named."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from segdeform.data.dataset import Dataset, colour_map
from segdeform.evaluation.evaluate import Evaluation, evaluate
from segdeform.evaluation.report import render_report
from segdeform.evaluation.verdict import never_predicted, score_line, warnings
from tests.evaluation.conftest import segmenter
from tests.evaluation.test_report import Page, evaluation_of


def with_matrix(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> Evaluation:
    evaluation = evaluation_of(len(classes))
    counts = dataclasses.replace(evaluation.counts, matrix=np.array(matrix, np.int64))
    return dataclasses.replace(evaluation, classes=tuple(classes), counts=counts)


ALL_ROAD = with_matrix([[984, 0], [16, 0]], ("road", "crack"))


def test_a_network_that_says_one_class_is_found_out() -> None:
    assert score_line(ALL_ROAD) == (
        "mIoU 0.4920 (road everywhere: 0.4920)  IoU: road 0.984, crack 0.000"
    )
    assert never_predicted(ALL_ROAD) == (1,)
    (line,) = warnings(ALL_ROAD)
    assert line.startswith("class crack (1.60%) was never predicted (shares are of ")
    assert "train.class_weights" in line and "train.steps" in line
    (other,) = warnings(ALL_ROAD, weighted=True)
    assert "train.class_weights" not in other and "train.steps" in other
    assert line in " ".join(Page(render_report(ALL_ROAD, colour_map(2), ())).text.split())


def test_classes_that_are_absent_or_found_are_not_complained_of() -> None:
    found = with_matrix([[5, 1, 0], [1, 3, 0], [0, 0, 0]], ("a", "b", "absent"))
    assert not list(warnings(found))
    assert score_line(found).endswith("IoU: a 0.714, b 0.600")
    assert "never predicted" not in render_report(found, colour_map(3), ())


def test_of_many_classes_the_lowest_are_shown() -> None:
    matrix = np.diag(np.arange(30, 0, -1))
    matrix[0, :] += 1
    line = score_line(with_matrix(matrix.tolist(), [f"c{k}" for k in range(30)]))
    title, _, ious = line.partition("  lowest IoU: ")
    assert title.startswith("mIoU 0.")
    assert ious == "c29 0.500, c0 0.517, c28 0.667, c27 0.750, c26 0.800"
    all_shown = score_line(with_matrix(np.eye(8).tolist(), [f"c{k}" for k in range(8)]))
    assert "  IoU: c0 1.000, " in all_shown and all_shown.endswith("c7 1.000")
    lost = with_matrix([[9] + [0] * 8] * 9, [f"c{k}" for k in range(9)])
    (line,) = warnings(lost)
    assert line.startswith("classes c1 (11.11%), c2 (11.11%), ")
    assert "c5 (11.11%) and 3 more were never predicted (" in line and "): try more st" in line


@pytest.mark.parametrize("matrix", [[[0, 0], [0, 0]], [[7, 0], [0, 0]]])
def test_nothing_or_one_class_to_score(matrix: list[list[int]]) -> None:
    line = score_line(with_matrix(matrix, ("a", "b")))
    expected = "mIoU 1.0000  IoU: a 1.000" if sum(matrix[0]) else "no pixel is labelled"
    assert line.endswith(expected)


def test_a_real_evaluation_is_judged(dataset: Dataset, tmp_path: Path) -> None:
    evaluation = evaluate(segmenter(), dataset)
    assert score_line(evaluation).startswith(f"mIoU {evaluation.scores.miou:.4f} (dark everywhere")
    assert not list(warnings(evaluation))
