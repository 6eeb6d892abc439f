"""Run lengths are those of pycocotools, letter by letter, and decode to the same masks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as reference
from pycocotools.coco import COCO

from segdeform.errors import UsageError
from segdeform.preparing.polygons.coco import decode
from segdeform.results import rle
from segdeform.results.rle import class_runs, coco_dataset


def label_maps() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    blocks = np.kron(rng.integers(0, 5, (9, 7)), np.ones((11, 13))).astype(np.uint8)
    diagonal = (np.add.outer(np.arange(40), np.arange(23)) % 7).astype(np.uint8)
    return {
        "noise": rng.integers(0, 4, (37, 53)).astype(np.uint8),
        "blocks": blocks,
        "one class": np.full((31, 17), 3, np.uint8),
        "first and last pixel": np.pad(np.zeros((7, 9), np.uint8), 1, constant_values=2)[1:, 1:],
        "diagonal": diagonal,
        "one row": rng.integers(0, 3, (1, 91)).astype(np.uint8),
        "one column": rng.integers(0, 3, (91, 1)).astype(np.uint8),
        "long runs": np.repeat(rng.integers(0, 2, (1, 60)), 3000, 0).astype(np.uint8),
        "many classes": rng.integers(0, 1000, (40, 30)).astype(np.uint16),
        "one pixel": np.ones((1, 1), np.uint8),
    }


@pytest.mark.parametrize("strip", [1, 100, 2**20])
@pytest.mark.parametrize("name", label_maps())
def test_runs_are_those_of_pycocotools(
    name: str, strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rle, "_STRIP", strip)
    labels = label_maps()[name]
    found = class_runs(labels, int(labels.max()) + 3)
    assert list(found) == np.unique(labels).tolist()
    for index, runs in found.items():
        mask = np.asfortranarray(labels == index).astype(np.uint8)
        expected = reference.encode(mask)
        assert runs["counts"] == expected["counts"].decode()
        assert runs["area"] == reference.area(expected) == mask.sum()
        assert runs["bbox"] == reference.toBbox(expected).tolist()
        lengths = decode(runs["counts"])
        drawn = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(labels.shape[::-1]).T
        np.testing.assert_array_equal(drawn, mask)


def test_the_file_is_a_data_set_that_pycocotools_opens(tmp_path: Path) -> None:
    labels = label_maps()["blocks"]
    names = [f"class {k}" for k in range(6)]
    (tmp_path / "a.json").write_text(json.dumps(coco_dataset(labels, names, "street/a.jpg")))
    coco = COCO(tmp_path / "a.json")
    (image,) = coco.loadImgs(coco.getImgIds())
    assert (image["file_name"], image["height"], image["width"]) == ("street/a.jpg", 99, 91)
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == names
    drawn = np.full_like(labels, 77)
    for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]])):
        drawn[coco.annToMask(annotation) == 1] = annotation["category_id"]
    np.testing.assert_array_equal(drawn, labels)


def test_more_pixels_than_the_format_counts_are_refused() -> None:
    labels = np.broadcast_to(np.zeros(1, np.uint8), (2**16, 2**16))
    with pytest.raises(UsageError, match="leave rle out of --outputs"):
        class_runs(labels, 2)
