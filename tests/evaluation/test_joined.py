"""Results of folds as one result: the same counts, and comparisons over all pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segdeform.errors import DataError
from segdeform.evaluation.compare import compare
from segdeform.evaluation.counts import Column
from segdeform.evaluation.joined import joined
from segdeform.evaluation.result import Result
from tests.evaluation.test_compare import result


def parts(whole: Result, *sizes: int, **protocol: object) -> list[Result]:
    """Cuts a result into results of some of its pictures, each in an order of its own."""
    order = np.random.default_rng(7).permutation(len(whole.pictures))
    found, start = [], 0
    for number, size in enumerate(sizes):
        chosen = order[start : start + size]
        start += size
        rows = []
        for index, picture in enumerate(chosen):
            block = whole.rows[whole.rows[:, Column.PICTURE] == picture].copy()
            block[:, Column.PICTURE] = index
            rows.append(block)
        names = tuple(whole.pictures[k] for k in chosen)
        own = {
            "names_sha256": f"n{number}",
            "labels_sha256": f"l{number}",
            "split": f"fold{number}",
        }
        metrics = {**whole.metrics, "protocol": {**whole.protocol, **own, **protocol}}
        found.append(Result(Path(f"fold{number}"), metrics, names, np.concatenate(rows)))
    return found


def test_folds_together_are_the_whole() -> None:
    whole = result([3, 9, 1, 14, 5, 7, 2])
    folds = parts(whole, 3, 2, 2)
    for order in (folds, folds[::-1]):
        one = joined(order, Path("all"))
        assert one.pictures == whole.pictures  # p0 to p6, sorted
        np.testing.assert_array_equal(one.rows, whole.rows)
        assert one.classes == whole.classes
        assert one.metrics["miou"] == pytest.approx(whole.metrics["miou"], abs=1e-15)
        for row, expected in zip(one.metrics["classes"], whole.metrics["classes"], strict=True):
            assert row == expected


def test_a_comparison_over_folds_is_that_over_the_whole() -> None:
    hard = [2 + 4 * (k % 10) for k in range(10)]
    first, second = result(hard), result([wrong - 1 for wrong in hard])
    expected = compare(first, second)
    found = compare(
        joined(parts(first, 4, 3, 3, steps=10), Path("a")),
        joined(parts(second, 4, 3, 3, steps=20)[::-1], Path("b")),
    )
    assert found.to_json() == expected.to_json() | {"protocol": {"steps": [10, 20]}}


def test_protocols_that_differ_within_a_side_are_lists() -> None:
    first, second = parts(result([3, 9, 1, 14]), 2, 2)
    other = replace(second, metrics={**second.metrics, "protocol": {**second.protocol, "tile": 64}})
    protocol = joined([first, other], Path("a")).protocol
    assert protocol["split"] == ["fold0", "fold1"] and protocol["tile"] == [None, 64]
    assert protocol["threads"] == 1


def test_other_pictures_other_folds_and_doubles_are_refused() -> None:
    whole = result([3, 9, 1, 14, 5])
    folds = parts(whole, 3, 2)
    with pytest.raises(DataError, match=r"fold0 and fold0 both have the picture p\d"):
        joined([folds[0], folds[0]], Path("a"))
    with pytest.raises(DataError, match="other pictures"):
        compare(joined(folds, Path("a")), joined(folds[:1], Path("b")))
    metrics = {**folds[1].metrics, "classes": [{"name": "x", "iou": 0.5}] * 3}
    with pytest.raises(DataError, match="other classes"):
        joined([folds[0], replace(folds[1], metrics=metrics)], Path("a"))
