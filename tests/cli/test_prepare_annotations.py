"""`segdeform prepare folder --masks` of annotations: a data set that is read as it was drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from segdeform.data import load_dataset, read_pair
from tests.cli.conftest import Command

SIZE = (40, 50)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for name in "abcdefgh":
        pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder


def _coco(names: str) -> dict[str, Any]:
    """Describes pictures with a square of class 3, 5 and on, each somewhere else."""
    images, annotations = [], []
    for index, name in enumerate(names):
        images.append({"id": index, "file_name": f"{name}.png", "height": 40, "width": 50})
        for category, left in ((9, index), (4, index + 20)):
            ring = [left, 5, left + 10, 5, left + 10, 15, left, 15]
            part = {"id": 2 * index + (category > 4), "image_id": index}
            annotations.append({**part, "category_id": category, "segmentation": [ring]})
    categories = [{"id": 9, "name": "crack"}, {"id": 4, "name": "spall"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def _labels(root: Path) -> dict[str, np.ndarray]:
    found = {}
    for split in ("train", "val"):
        dataset = load_dataset("folder", root, split)
        for index, sample in enumerate(dataset.samples):
            found[sample.name] = read_pair(dataset, index)[1]
    return found


def test_coco_becomes_a_data_set(command: Command, images: Path, tmp_path: Path) -> None:
    file, root = tmp_path / "instances.json", tmp_path / "ready"
    file.write_text(json.dumps(_coco("abcdefg")))
    words = ("prepare", "folder", "--images", images, "--masks", file, "--output", root)
    done = command(*words)
    assert done.code == 0, done.err
    assert "paired: 7 of 8 pictures" in done.out and "COCO: 14 shapes in 7 pictures" in done.out
    assert "left out: 1 pictures without a mask (h.png)" in done.out
    content = yaml.safe_load((root / "data.yaml").read_text())
    assert content["names"] == {0: "background", 1: "spall", 2: "crack"}
    labels = _labels(root)
    assert sorted(labels) == list("abcdefg")
    for index, name in enumerate("abcdefg"):
        expected = np.zeros(SIZE, np.uint8)
        expected[5:15, index : index + 10] = 2
        expected[5:15, index + 20 : index + 30] = 1
        np.testing.assert_array_equal(labels[name], expected)
    written = (root / "masks" / "a.png").stat().st_mtime_ns
    assert "the same as before" in command(*words).out
    assert (root / "masks" / "a.png").stat().st_mtime_ns == written
    kept = command(*words, "--keep-empty", "--classes", "crack,background,spall")
    assert kept.code == 0, kept.err
    labels = _labels(root)
    assert sorted(labels) == list("abcdefgh") and set(np.unique(labels["h"])) == {1}
    assert labels["a"][7, 3] == 0


def test_a_picture_that_cannot_be_read_is_left_out_and_listed(
    command: Command, images: Path, tmp_path: Path
) -> None:
    file, root = tmp_path / "instances.json", tmp_path / "ready"
    file.write_text(json.dumps(_coco("abcdefg")))
    (images / "c.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    done = command("prepare", "folder", "--images", images, "--masks", file, "--output", root)
    assert done.code == 8 and "c.png" in done.err and done.err.count("\n") == 1
    assert sorted(_labels(root)) == list("abdefg")


def test_labelme_files_beside_png_pictures_are_annotations(
    command: Command, images: Path, tmp_path: Path
) -> None:
    for index, name in enumerate("abcdefgh"):
        ring = [[index, 1], [index + 9, 1], [index + 9, 8], [index, 8]]
        shapes = [
            {"label": "crack", "shape_type": "polygon", "points": ring},
            {"label": "wall", "shape_type": "rectangle", "points": [[30, 30], [50, 40]]},
        ]
        content = {"shapes": shapes, "imagePath": f"{name}.png", "imageData": None}
        (images / f"{name}.json").write_text(json.dumps(content))
    words = ("prepare", "folder", "--images", images, "--masks", images, "--output")
    whole = command(*words, tmp_path / "ready", "--copy")
    assert whole.code == 0, whole.err
    expected = np.zeros(SIZE, np.uint8)
    expected[1:8, 3:12] = 1
    expected[30:40, 30:50] = 2
    np.testing.assert_array_equal(_labels(tmp_path / "ready")["d"], expected)
    partly = command(*words, tmp_path / "partly", "--partial")
    assert partly.code == 0, partly.err
    # Without a background, the two classes are the first ones; 0 - 1 is 255 in bytes.
    np.testing.assert_array_equal(_labels(tmp_path / "partly")["d"], expected - np.uint8(1))


def test_each_failure_has_its_code_and_one_line(
    command: Command, images: Path, tmp_path: Path
) -> None:
    root, file = tmp_path / "ready", tmp_path / "file"
    empty = _coco("abc")
    empty["images"][0]["height"] = 41
    bomb = '<!DOCTYPE a [<!ENTITY a "b">]><annotations>&a;</annotations>'
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.new("L", (50, 40)).save(masks / "a.png")
    good = json.dumps(_coco("abc"))
    for content, options, code, said in (
        (json.dumps(empty), (), 4, "image 0 (a.png) is of 41x50"),
        ('{"images": 3, "annotations": []}', (), 4, "images"),
        (bomb, (), 6, "document type"),
        ("PK\x03\x04", (), 4, "unpack it"),
        ("hello", (), 2, "neither a folder nor annotations"),
        (good, ("--classes", "background,crack"), 4, "'spall'"),
        (good, ("--values", "0:a,1:b"), 2, "--values is for masks"),
        (good, ("--partial", "--keep-empty"), 2, "exclude each other"),
        (good, ("--line-width", "0"), 2, "--line-width 0"),
        (None, ("--partial",), 2, "--partial is for annotations"),
        (None, ("--line-width", "3"), 2, "--line-width is for annotations"),
    ):
        file.write_text(content or "")
        source = file if content else masks
        ended = command(
            *("prepare", "folder", "--images", images, "--masks", source, "--output", root),
            *options,
        )
        assert (ended.code, ended.out) == (code, ""), ended.err
        assert ended.err.startswith("segdeform: ") and ended.err.count("\n") == 1
        assert said in ended.err and not root.exists()
    assert not list(tmp_path.glob(".ready*"))
