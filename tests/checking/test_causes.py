"""Renumbering all masks is offered on the evidence of all masks, never for a stray value."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import labels as official_labels
from PIL import Image

from segdeform.checking import check_sound
from segdeform.data import list_dataset, load_dataset, read_pair
from tests.checking.conftest import Check

TRAINED = [label for label in official_labels if 0 <= label.trainId < 255]
CITYSCAPES = [label.name for label in sorted(TRAINED, key=lambda label: label.trainId)]
ORGANS = [f"organ{index}" for index in range(19)]
SIDE = 16

Splits = dict[str, list[list[int]]]  # split -> the values of each mask


def write(root: Path, names: list[str], splits: Splits) -> None:
    """Writes a data set whose masks hold the values given: the first ones in one pixel each, the
    last one in all others."""
    rng = np.random.default_rng(3)
    for split, masks in splits.items():
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for index, values in enumerate(masks):
            pixels = np.full((SIDE, SIDE), values[-1], np.uint8)
            pixels.flat[: len(values)] = values
            Image.fromarray(pixels).save(root / split / "masks" / f"{index}.png")
            picture = Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8))
            picture.save(root / split / "images" / f"{index}.png")
    (root / "classes.json").write_text(json.dumps({"names": names}))


def causes(check: Check, *arguments: object) -> set[str]:
    """Returns the kinds of errors found."""
    findings = check(*arguments).report["findings"]
    return {finding["kind"] for finding in findings if finding["severity"] == "error"}


@pytest.mark.parametrize(
    ("names", "masks"),
    [
        (ORGANS, [[*range(19)], [*range(18), 25]]),
        (ORGANS, [[7, 8, 11, 21, 23, 26]] * 4),
        (CITYSCAPES, [[*range(19)]] * 3 + [[*range(18), 25]]),
        (CITYSCAPES, [[25, 7]]),  # one value of a single mask
        (CITYSCAPES, [[*range(19), 19, 20]] * 4),  # two classes more than there are
        (CITYSCAPES, [[7, 8, 9]] * 3 + [[7, 21, 23, 26]]),  # in few masks
        (CITYSCAPES, [[7, 8, 11, 21, 23, 26, 255]] * 4),  # no label id is 255
        (["a", "b", "c"], [[1, 2]] * 3 + [[1, 2, 3]]),
        (["a", "b", "c"], [[1, 2, 3, 9]] * 3),
        (["a", "b", "c"], [[0, 1, 2, 3]] * 3),
        (["a", "b"], [[0]] * 3 + [[7, 0]]),
        (["a", "b"], [[0, 1, 7]] * 3),
        (["a"], [[0, 7]]),
    ],
)
def test_in_doubt_the_values_are_told_one_by_one(
    tmp_path: Path, check: Check, names: list[str], masks: list[list[int]]
) -> None:
    root, copy = tmp_path / "source", tmp_path / "copy"
    write(root, names, {"train": masks})
    assert causes(check, root) == {"label-outside"}
    # What is copied keeps its numbers.
    good = [values for values in masks if not set(values) - {255} - set(range(len(names)))]
    fixed = check(root, "--fix", copy)
    assert fixed.code == (8 if good else 4)
    if good:
        dataset = load_dataset("folder", copy, "train")
        assert [read_pair(dataset, index)[1].flat[-1] for index in range(len(dataset))] == [
            values[-1] for values in good
        ]


@pytest.mark.parametrize(
    ("names", "masks", "cause"),
    [
        (CITYSCAPES, [[*range(7), 7, 8, 11, *range(19, 29), 33]] * 3 + [[7, 8]], "label-ids"),
        (["a", "b", "c"], [[1, 2, 3]] * 3 + [[2]], "off-by-one"),
        (["a", "b"], [[0]] * 3 + [[255, 0]], "binary"),
        (["a", "b"], [[0, 128]] * 3 + [[0]], "binary"),
    ],
)
def test_the_evidence_of_most_masks_is_enough(
    tmp_path: Path, check: Check, names: list[str], masks: list[list[int]], cause: str
) -> None:
    write(tmp_path, names, {"train": masks})
    assert cause in causes(check, tmp_path)


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_255_is_void_unless_there_are_two_classes(
    tmp_path: Path, check: Check, names: list[str]
) -> None:
    write(tmp_path / "source", names, {"train": [[0, 255], [255, 0]]})
    assert check(tmp_path / "source").code == 0
    assert check(tmp_path / "source", "--fix", tmp_path / "copy").code == 0
    dataset = load_dataset("folder", tmp_path / "copy", "train")
    for index in range(2):
        assert set(np.unique(read_pair(dataset, index)[1])) == {0, 255}


def test_a_split_alone_is_judged_with_the_others_in_mind(tmp_path: Path, check: Check) -> None:
    write(tmp_path, ["a", "b"], {"train": [[0, 1, 255]], "val": [[0, 255]]})
    assert check(tmp_path).code == 0
    assert check(tmp_path, "--split", "val").code == 0
    check_sound([list_dataset("folder", tmp_path, "val")])
    (tmp_path / "train" / "masks" / "0.png").write_bytes(
        (tmp_path / "val" / "masks" / "0.png").read_bytes()
    )
    assert causes(check, tmp_path, "--split", "val") == {"binary"}
