"""Comparisons whose outcome is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segdeform.errors import DataError
from segdeform.evaluation.bootstrap import interval, mean_ious, resampled_ious
from segdeform.evaluation.compare import compare
from segdeform.evaluation.counts import Tally
from segdeform.evaluation.result import Result
from segdeform.machine.processes import Processes

CLASSES = ("ground", "thing", "never")


def result(errors: list[int], seed: int = 0, **protocol: object) -> Result:
    """A result on as many pictures of varying difficulty as there are numbers of wrong pixels."""
    rng = np.random.default_rng(seed)
    tally = Tally(3, 0.02)
    for picture, wrong in enumerate(errors):
        truth = np.zeros((10, 10), np.uint8)
        truth[: 3 + picture % 5] = 1
        labels = truth.copy().ravel()
        labels[rng.permutation(100)[:wrong]] ^= 1
        tally.add(picture, truth, labels.reshape(10, 10))
    counts = tally.gather(Processes())
    correct = counts.matrix.diagonal()
    union = counts.matrix.sum(0) + counts.matrix.sum(1) - correct
    iou = [None if not u else c / u for c, u in zip(correct.tolist(), union.tolist(), strict=True)]
    metrics = {
        "miou": float(np.mean([value for value in iou if value is not None])),
        "classes": [{"name": n, "iou": i} for n, i in zip(CLASSES, iou, strict=True)],
        "protocol": {"names_sha256": "n", "labels_sha256": "t", "threads": 1, **protocol},
    }
    names = tuple(f"p{k}" for k in range(len(errors)))
    return Result(Path(f"r{seed}"), metrics, names, counts.rows)


def test_a_result_against_itself_is_no_difference() -> None:
    outcome = compare(result([5] * 12), result([5] * 12))
    assert outcome.miou.change == 0 and outcome.miou.interval == (0.0, 0.0)
    assert not outcome.miou.clear
    assert outcome.protocol == {}


def test_a_gain_on_every_picture_is_clear_though_the_intervals_overlap() -> None:
    """What the pairing is for: pictures differ far more than the two models do."""
    hard = [2 + 4 * (k % 10) for k in range(40)]
    first, second = result(hard), result([wrong - 1 for wrong in hard])
    outcome = compare(first, second)
    assert outcome.miou.clear and outcome.miou.change > 0
    alone = [
        interval(mean_ious(resampled_ious(r.rows, 40, 3)), 40) or (0, 0) for r in (first, second)
    ]
    assert alone[0][1] > alone[1][0]
    assert outcome.classes[2].interval is None and not outcome.classes[2].clear


def test_equal_models_with_other_mistakes_are_not_told_apart() -> None:
    same = [4 + k % 3 for k in range(30)]
    outcome = compare(result(same), result(same, seed=9))
    assert outcome.miou.change != 0 and not outcome.miou.clear


def test_swapped_results_give_the_opposite() -> None:
    a, b = result([3] * 9), result([8] * 9, seed=4)
    forth, back = compare(a, b), compare(b, a)
    assert forth.miou.change == -back.miou.change
    assert forth.miou.interval and back.miou.interval
    assert forth.miou.interval == pytest.approx((-back.miou.interval[1], -back.miou.interval[0]))
    assert forth.miou.interval[1] < 0  # b has more wrong pixels in every picture
    for row in forth.classes[:2]:
        assert row.change < 0 and row.interval and row.interval[1] < 0 and row.clear


def test_pictures_are_listed_from_the_largest_loss_on() -> None:
    outcome = compare(result([5, 5, 5]), result([5, 40, 0]))
    assert [image.name for image in outcome.images] == ["p1", "p0", "p2"]
    assert outcome.images[0].change < 0 < outcome.images[2].change
    json.dumps(outcome.to_json(), allow_nan=False)


def test_what_else_differs_is_named() -> None:
    outcome = compare(
        result([5] * 3, model_sha256="a", inference={"flip": False, "tile": 0}),
        result([5] * 3, model_sha256="b", inference={"flip": True, "tile": 0}, threads=2),
    )
    assert outcome.protocol == {"inference.flip": (False, True), "threads": (1, 2)}


def test_other_data_is_refused() -> None:
    first = result([5, 5])
    fewer = result([5], names_sha256="m")
    with pytest.raises(DataError, match=r"other pictures \(2 and 1, 1 in both\)"):
        compare(first, fewer)
    with pytest.raises(DataError, match="other masks"):
        compare(first, result([5, 5], labels_sha256="u"))
    renamed = result([5, 5])
    renamed.metrics["classes"][0]["name"] = "floor"
    with pytest.raises(DataError, match="other classes"):
        compare(first, renamed)
