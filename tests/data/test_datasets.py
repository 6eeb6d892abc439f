from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeform.data import DATASETS, IGNORE, Dataset, Sample, load_dataset, read_pair
from segdeform.data.dataset import MissingSplitError, colour_map
from segdeform.errors import DataError, UsageError
from tests.conftest import external_data


def put(path: Path, values: object, dtype: type = np.uint8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype)).save(path)


def put_pair(images: Path, masks: Path, name: str, labels: object) -> None:
    values = np.asarray(labels)
    put(images / f"{name}.jpg", np.zeros((*values.shape, 3)))
    put(masks / f"{name}.png", values, np.uint16 if values.max() > 255 else np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, names in (("train", "ab"), ("val", "c")):
        for name in names:
            put_pair(
                tmp_path / split / "images", tmp_path / split / "masks", name, [[0, 1], [2, 255]]
            )
    return tmp_path


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


def test_listing_imports_neither_torch_nor_opencv() -> None:
    script = (
        "import sys, segdeform.data.dataset, segdeform.checking;"
        "print({'torch', 'cv2', 'albumentations'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.strip() == "set()", result.stderr


def test_colour_map_is_the_one_stored_in_the_official_masks() -> None:
    folder = external_data("data/VOCdevkit/VOC2012/SegmentationClass")
    with Image.open(next(iter(sorted(folder.iterdir())))) as mask:
        stored = mask.getpalette()
    assert stored is not None
    assert [channel for colour in colour_map(21) for channel in colour] == stored[:63]


@pytest.mark.parametrize(
    ("name", "relative", "classes", "sizes"),
    [
        ("camvid", "data/camvid", 11, {"train": 367, "val": 101}),
        ("folder", "data/camvid", 11, {"train": 367, "val": 101}),
        ("voc", "data", 21, {"train": 440, "val": 65}),
        ("voc", "data/VOCdevkit", 21, {"train": 440, "val": 65}),
        ("voc", "data/VOCdevkit/VOC2012", 21, {"train": 440, "val": 65}),
    ],
)
def test_real_data_sets_are_listed_in_their_lists_order(
    name: str, relative: str, classes: int, sizes: dict[str, int]
) -> None:
    root = external_data(relative)
    for split, size in sizes.items():
        dataset = load_dataset(name, root, split)
        assert len(dataset) == size
        assert len(dataset.classes) == len(dataset.palette) == len(set(dataset.palette)) == classes
        names = [sample.name for sample in dataset.samples]
        assert len(set(names)) == size
        listing = root / f"{split}.txt"
        if name == "camvid":
            assert names == listing.read_text().split()
        image, labels = read_pair(dataset, 0)
        assert image.shape[:2] == labels.shape
        assert set(np.unique(labels)) <= {*range(classes), IGNORE}
        with Image.open(dataset.samples[0].mask or "") as mask:
            stored = np.asarray(mask)
        np.testing.assert_array_equal(labels == IGNORE, np.isin(stored, list(dataset.void)))


def test_void_means_ignore(root: Path) -> None:
    (root / "classes.json").write_text('{"names": ["x", "y"], "void_id": 2, "comment": 1}')
    dataset = load_dataset("folder", root, "train")
    _, labels = read_pair(dataset, 0)
    assert dataset.classes == ("x", "y")
    np.testing.assert_array_equal(labels, [[0, 1], [IGNORE, IGNORE]])


def test_both_layouts_and_class_lists(root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for split in ("train", "val"):
        put_pair(other / "images" / split, other / "masks" / split, "sub/a", [[0, 2]])
    put(other / "images" / "train" / ".hidden.png", np.zeros((1, 1, 3)))
    (other / "images" / "train" / "Thumbs.db").touch()
    (other / "classes.txt").write_text("sky\n\n road \ncar\n")
    dataset = load_dataset("folder", other, "train")
    assert dataset.classes == ("sky", "road", "car")
    assert [sample.name for sample in dataset.samples] == ["sub/a"]
    counted = load_dataset("folder", root, "val")
    assert counted.classes == ("class_0", "class_1", "class_2")
    assert [sample.name for sample in load_dataset("folder", root, "train").samples] == ["a", "b"]


def test_classes_are_counted_over_all_splits_or_refused(root: Path) -> None:
    put(root / "val" / "masks" / "c.png", [[0, 3], [0, 0]])
    assert len(load_dataset("folder", root, "train").classes) == 4
    put(root / "val" / "masks" / "c.png", [[0, 200], [0, 0]])
    with pytest.raises(DataError, match=r"values 0, 1, 2, 200, 255.*label_mapping"):
        load_dataset("folder", root, "train")
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        put(root / split / "masks" / f"{name}.png", [[0, 255], [0, 0]])
    with pytest.raises(DataError, match=r"0: 0, 255: 1"):
        load_dataset("folder", root, "train")


def test_a_data_yaml_maps_values(root: Path) -> None:
    for split in ("train", "val"):
        put_pair(
            root / "set" / "images" / split,
            root / "set" / "labels" / split,
            "p",
            [[7, 8], [9, 255]],
        )
    (root / "data.yaml").write_text(
        "path: set\ntrain: images/train\nval: images/val\nmasks_dir: labels\nnc: 2\n"
        "names: {0: road, 1: car}\nlabel_mapping: {-1: 255, 7: 1, 8: 255, 9: 0, 255: 1}\n"
    )
    for place in (root, root / "data.yaml"):
        dataset = load_dataset("folder", place, "val")
        assert dataset.classes == ("road", "car")
        np.testing.assert_array_equal(read_pair(dataset, 0)[1], [[1, IGNORE], [0, 1]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a, a]\ntrain: train/images", "given twice"),
        ("names: [a, no]\ntrain: train/images", "False is not a text; put it in quotes"),
        ("names: {0: a, 2: b}\ntrain: train/images", "without a gap"),
        ("names: []\ntrain: train/images", "names is a list"),
        ("names: [a, b]\nnc: 3\ntrain: train/images", "nc is 3"),
        ("names: [a, b]\ntrain: train/images\nlable_mapping: {}", "Did you mean 'label_mapping'"),
        ("names: [a, b]\ntrain: train/images\nlabel_mapping: {0: 2}", "label_mapping 0: 2"),
        ("names: [a, b]\ntrain: train/images\nlabel_mapping: {70000: 1}", "70000"),
        ("names: [a, b]\ntrain: train/images\npalette: [[0, 0, 0]]", "palette is one"),
        ("names: [a, b]\nval: train/images", "no split 'train'; there are: val; write train:"),
        ("names: [a, b]\ntrain: train/pictures", "no part 'images'"),
        ("names: [a, b]\ntrain: nowhere/images", "no such folder"),
        ("names: [a, b]\ntrain: train/images\nnames: [c]", "given twice"),
        ("names: [a, b]\ntrain: [train/images, 3]", "several of them in brackets"),
        ("names: [a, b]\ntrain: train/images\npath: 3", "path is a folder's name, one text, not 3"),
        ("train: train/images", "needs names"),
        ("nams: [a, b]\ntrain: train/images", "unknown key 'nams'. Did you mean 'names'"),
    ],
)
def test_a_wrong_data_yaml_is_told_in_one_line(root: Path, text: str, message: str) -> None:
    (root / "my.yaml").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("folder", root / "my.yaml", "train")
    assert str(root) in one_line(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("data.yaml", "", "needs names"),
        ("data.yml", "nams: [a, b]", "Did you mean 'names'"),
        ("mine.yaml", "label_mapping: {0: 1}", "needs names"),
    ],
)
def test_a_data_yaml_without_names_is_not_ignored(
    root: Path, name: str, text: str, message: str
) -> None:
    (root / name).write_text(text)
    with pytest.raises(DataError, match=message):
        load_dataset("folder", root, "train")


def test_somebody_elses_yaml_is(root: Path) -> None:
    (root / "camera.yaml").write_text("lens: 35")
    assert len(load_dataset("folder", root, "train"))


def test_an_unknown_split_is_named(root: Path) -> None:
    (root / "data.yaml").write_text("names: [a, b]\ntrain: train/images")
    with pytest.raises(MissingSplitError, match="no split 'tran'"):
        load_dataset("folder", root, "tran")


@pytest.mark.parametrize(
    "text", ["[", "[1]", '{"names": 3}', '{"names": ["a"], "void_id": "x"}', '{"x": 1}', "\xff"]
)
def test_a_wrong_class_list_is_told_in_one_line(root: Path, text: str) -> None:
    (root / "classes.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        load_dataset("folder", root, "train")
    assert str(root) in one_line(caught.value)


def break_mask(root: Path) -> str:
    (root / "train" / "masks" / "b.png").unlink()
    return r"masks/b\.png: the mask of .*b\.jpg is missing"


def break_twice(root: Path) -> str:
    put(root / "train" / "images" / "b.png", np.zeros((2, 2, 3)))
    return "same name"


def break_pictures(root: Path) -> str:
    for path in (root / "train" / "images").iterdir():
        path.unlink()
    return "holds no picture"


def break_split(root: Path) -> str:
    (root / "train" / "masks").rename(root / "train" / "labels")
    return "no split 'train'"


@pytest.mark.parametrize("damage", [break_mask, break_twice, break_pictures, break_split])
def test_a_wrong_folder_is_told_in_one_line(root: Path, damage: Callable[[Path], str]) -> None:
    with pytest.raises(DataError, match=damage(root)) as caught:
        load_dataset("folder", root, "train")
    assert str(root) in one_line(caught.value)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("a\nmissing\n", r"missing\.\*: the picture is listed but missing"),
        ("a\nb\na\n", "lists 'a' twice"),
        ("\n\n", "lists no picture"),
    ],
)
def test_a_wrong_camvid_list_is_told_in_one_line(root: Path, lines: str, message: str) -> None:
    (root / "train.txt").write_text(lines)
    with pytest.raises(DataError, match=message) as caught:
        load_dataset("camvid", root, "train")
    one_line(caught.value)


def test_voc_names_the_file_that_a_list_has_and_the_folder_lacks(tmp_path: Path) -> None:
    home = tmp_path / "VOC2012"
    put_pair(home / "JPEGImages", home / "SegmentationClass", "2007_1", [[0, 20], [255, 3]])
    (home / "ImageSets" / "Segmentation").mkdir(parents=True)
    listing = home / "ImageSets" / "Segmentation" / "train.txt"
    listing.write_text("2007_1\n2007_2\n")
    with pytest.raises(DataError, match=r"JPEGImages/2007_2\.jpg: missing, but listed in"):
        load_dataset("voc", tmp_path, "train")
    listing.write_text("2007_1\n")
    assert read_pair(load_dataset("voc", tmp_path, "train"), 0)[1].tolist() == [[0, 20], [255, 3]]
    with pytest.raises(DataError, match="no such split; there are: train"):
        load_dataset("voc", tmp_path, "val")


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_root_that_is_missing_or_something_else_is_refused(name: str, tmp_path: Path) -> None:
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError, match=str(place)) as caught:
            load_dataset(name, place, "train")
        one_line(caught.value)


def test_an_unknown_data_set_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="Did you mean 'camvid'"):
        load_dataset("camvit", Path(), "train")


def test_a_label_outside_the_classes_names_file_value_and_position(root: Path) -> None:
    (root / "classes.txt").write_text("x\ny")
    dataset = load_dataset("folder", root, "train")
    with pytest.raises(DataError, match=r"a\.png: label 2 at row 1, column 0.*2 classes.*0 to 1"):
        read_pair(dataset, 0)
    put(root / "train" / "masks" / "a.png", [[0, 1], [1, 300]], np.uint16)
    with pytest.raises(DataError, match=r"a\.png: label 300 at row 1, column 1"):
        read_pair(dataset, 0)


def test_another_size_and_a_missing_mask_are_named(root: Path) -> None:
    dataset = load_dataset("folder", root, "train")
    put(root / "train" / "masks" / "a.png", [[0, 1, 1], [1, 0, 0]])
    with pytest.raises(DataError, match=r"a\.png: is 2x3 \(HxW\), its picture .*a\.jpg is 2x2"):
        read_pair(dataset, 0)
    bare = Dataset("folder", "x", root, ("a",), ((0, 0, 0),), (Sample("a", root / "a.jpg", None),))
    with pytest.raises(DataError, match=r"a\.jpg: has no mask"):
        read_pair(bare, 0)


def test_more_than_65535_classes_are_refused(root: Path) -> None:
    (root / "classes.json").write_text(json.dumps({"names": [f"c{i}" for i in range(65_536)]}))
    with pytest.raises(DataError, match="65536 classes; from 1 to 65535 are possible"):
        load_dataset("folder", root, "train")
    (root / "classes.json").write_text(json.dumps({"names": [f"c{i}" for i in range(255)]}))
    dataset = load_dataset("folder", root, "train")
    _, labels = read_pair(dataset, 0)
    assert len(dataset.palette) == 255 and labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, [[0, 1], [2, 255]])
