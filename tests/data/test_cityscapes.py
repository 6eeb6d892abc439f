from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cityscapesscripts.helpers.annotation import Annotation
from cityscapesscripts.helpers.labels import labels as official_labels
from cityscapesscripts.helpers.labels import trainId2label
from cityscapesscripts.preparation.json2labelImg import createLabelImage
from PIL import Image

from segdeform.data import IGNORE, load_dataset, read_pair
from segdeform.data.cityscapes import (
    CITYSCAPES_LABELS,
    default_root,
    read_train_ids,
    train_ids_to_label_ids,
)
from segdeform.errors import DataError, SegdeformError
from tests.data.cityscapes_frames import write_frames


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "cityscapes", splits=("train", "val", "test"))


def test_the_labels_are_the_official_ones(root: Path) -> None:
    assert len(CITYSCAPES_LABELS) == 35
    for ours, theirs in zip(CITYSCAPES_LABELS, official_labels, strict=True):
        assert ours == (theirs.name, theirs.id, theirs.trainId, theirs.category, theirs.color)
    dataset = load_dataset("cityscapes", root, "val")
    assert dataset.classes == tuple(trainId2label[k].name for k in range(19))
    assert dataset.palette == tuple(trainId2label[k].color for k in range(19))


def test_frames_are_listed_by_city_and_name(root: Path) -> None:
    names = [sample.name for sample in load_dataset("cityscapes", root, "train").samples]
    assert names == [
        f"{city}/{city}_{frame:06d}_000019" for city in ("aachen", "bad-honnef") for frame in (0, 1)
    ]
    assert len(load_dataset("cityscapes", root, "test")) == 2


@pytest.mark.parametrize("kinds", [("labelIds",), ("labelTrainIds",), ("polygons",), ()])
def test_each_kind_of_mask_gives_the_official_train_ids(root: Path, kinds: tuple[str, ...]) -> None:
    dataset = load_dataset("cityscapes", root, "train")
    expected = []
    for sample in dataset.samples:
        truth = str(sample.mask).replace("labelIds", "labelTrainIds")
        with Image.open(truth) as image:
            expected.append(np.asarray(image))
    assert all({*range(19), IGNORE} == set(np.unique(mask)) for mask in expected)
    for path in (root / "gtFine").rglob("*_gtFine_*"):
        if kinds and not any(path.stem.endswith(kind) for kind in kinds):
            path.unlink()
    dataset = load_dataset("cityscapes", root, "train")
    for index, mask in enumerate(expected):
        np.testing.assert_array_equal(read_pair(dataset, index)[1], mask)


def test_train_ids_return_to_the_ids_of_the_server() -> None:
    mask = np.array([[*range(19), IGNORE]], np.uint8)
    expected = [[*(trainId2label[k].id for k in range(19)), 0]]
    np.testing.assert_array_equal(train_ids_to_label_ids(mask), expected)
    with pytest.raises(ValueError, match="train id 19"):
        train_ids_to_label_ids(np.array([[0, 19]], np.uint8))


def put(path: Path, values: object) -> Path:
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


def test_masks_are_never_taken_for_another_kind(tmp_path: Path) -> None:
    ids = tmp_path / "a_0_0_gtFine_labelIds.png"
    with pytest.raises(DataError, match=r"a_0_0_gtFine_labelIds\.png: holds 255.*train ids"):
        read_train_ids(put(ids, [[0, 1, 255]]))
    with pytest.raises(DataError, match="holds 34; label ids end at 33"):
        read_train_ids(put(ids, [[34]]))
    train = tmp_path / "a_0_0_gtFine_labelTrainIds.png"
    with pytest.raises(DataError, match=r"labelTrainIds\.png: holds 26;.*label ids"):
        read_train_ids(put(train, [[7, 26, 255]]))
    assert read_train_ids(put(ids, [[7, 33, 0]])).tolist() == [[0, 18, IGNORE]]


def annotate(path: Path, **content: Any) -> Path:
    whole = {"imgHeight": 9, "imgWidth": 11, "objects": [], **content}
    path.write_text(json.dumps(whole))
    return path


def test_polygons_are_drawn_as_by_the_official_script(tmp_path: Path) -> None:
    path = annotate(
        tmp_path / "x_gtFine_polygons.json",
        objects=[
            {"label": "road", "polygon": [[0, 0], [20, 0], [20.5, 20], [-3, 8.5]]},
            {"label": "car", "polygon": [[1, 1], [6, 2], [4, 7]], "deleted": 1},
            {"label": "cargroup", "polygon": [[5, 1], [9, 2], [7, 7]]},
            {"label": "polegroup", "polygon": [[1, 4], [2, 8]]},
            {"label": "license plate", "polygon": [[0, 0], [9, 0], [9, 9]]},
        ],
    )
    annotation = Annotation()
    annotation.fromJsonFile(str(path))
    expected = np.asarray(createLabelImage(annotation, "trainIds"))
    assert set(np.unique(expected)) == {0, 13, IGNORE}
    np.testing.assert_array_equal(read_train_ids(path), expected)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 4),
        ("{", 4),
        ("[]", 4),
        ("\xff", 4),
        ("[" * 100_000, 4),
        ('{"imgHeight": 9, "imgWidth": 9}', 4),
        ('{"imgHeight": "9", "imgWidth": 9, "objects": []}', 4),
        ('{"imgHeight": 0, "imgWidth": 9, "objects": []}', 4),
        ('{"imgHeight": 1e9, "imgWidth": 9, "objects": []}', 4),
        ('{"imgHeight": 1000000, "imgWidth": 1000000, "objects": []}', 6),
        ('{"imgHeight": 9, "imgWidth": 9, "objects": [{"label": "rood", "polygon": []}]}', 4),
        ('{"imgHeight": 9, "imgWidth": 9, "objects": [{"label": [], "polygon": []}]}', 4),
        ('{"imgHeight": 9, "imgWidth": 9, "objects": [{"label": "car", "polygon": [[1, 2]]}]}', 4),
        (
            '{"imgHeight": 9, "imgWidth": 9,'
            ' "objects": [{"label": "car", "polygon": [[1, 2], [NaN, 1]]}]}',
            4,
        ),
        (
            '{"imgHeight": 9, "imgWidth": 9,'
            ' "objects": [{"label": "car", "polygon": [[1, 2], ["a", 1]]}]}',
            4,
        ),
        (
            '{"imgHeight": 9, "imgWidth": 9,'
            ' "objects": [{"label": "car", "polygon": [[1, 2], [1e300, 1]]}]}',
            4,
        ),
    ],
)
def test_damaged_polygons_are_refused_by_name(tmp_path: Path, text: str, code: int) -> None:
    path = tmp_path / "x_gtFine_polygons.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SegdeformError, match=r"x_gtFine_polygons\.json") as caught:
        read_train_ids(path)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)


def test_the_root_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CITYSCAPES_DATASET", "/data/cs")
    assert default_root() == Path("/data/cs")
    monkeypatch.setenv("CITYSCAPES_DATASET", "")
    assert default_root() is None
