"""The bootstrap against its definition: draw pictures, add them up, score the sum."""

from __future__ import annotations

import math

import numpy as np
import pytest

from segdeform.evaluation import bootstrap
from segdeform.evaluation.bootstrap import interval, mean_ious, resampled_ious
from segdeform.evaluation.confusion import confusion_matrix, scores
from segdeform.evaluation.counts import Tally
from segdeform.machine.processes import Processes
from tests.evaluation.test_confusion import random_pair

PAIRS = [random_pair(seed, (6, 9), 1 + seed, void=0.1) for seed in range(5)]


def test_equals_drawing_and_scoring_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 20)
    tally = Tally(6, 0.02)
    for picture, pair in enumerate(PAIRS):
        tally.add(picture, *pair)
    ious = resampled_ious(tally.gather(Processes()).rows, 5, 6)
    generator = np.random.default_rng(0)
    matrices = [confusion_matrix(*pair, 6) for pair in PAIRS]
    lacking = 0
    for resample, miou in zip(ious, mean_ious(ious), strict=True):
        drawn = generator.integers(0, 5, 5)
        expected = scores(np.sum([matrices[k] for k in drawn], axis=0))
        np.testing.assert_allclose(resample, expected.iou, rtol=1e-15)
        assert miou == pytest.approx(expected.miou)
        lacking += math.isnan(expected.iou[4])
    assert lacking  # resamples without a class were among them


def test_interval_holds_the_middle_of_the_values() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1001) / 1000)
    assert interval(values, 50) == (pytest.approx(0.025), pytest.approx(0.975))
    assert interval(np.append(values, np.nan), 50) == interval(values, 50)
    assert interval(values, 1) is None
    assert interval(np.full(3, np.nan), 50) is None


def test_covers_the_truth_about_as_often_as_it_says() -> None:
    """Pictures of random difficulty; the IoU of all pictures ever is known."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        skill = rng.uniform(0.2, 0.8, 80)  # mean 0.5: of 1000 pixels, so many are right
        correct = (1000 * skill).astype(int)
        index, zeros = np.arange(80), np.zeros(80, int)
        truth = np.full(80, 1000)
        rows = np.column_stack([index, zeros, correct, truth, correct, zeros, zeros])
        low, high = interval(mean_ious(resampled_ious(rows, 80, 1)), 80) or (0, 0)
        covered += low <= 0.5 <= high
    assert 52 <= covered <= 60  # 57 expected
