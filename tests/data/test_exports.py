"""Data sets as other programs and systems leave them: marks, spellings, suffixes, stray files."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeform.data import list_dataset, load_dataset, read_pair
from segdeform.data.dataset import Dataset
from segdeform.errors import DataError, SegdeformError
from tests.conftest import external_data

BOM = b"\xef\xbb\xbf"


def put(
    root: Path,
    names: list[str],
    values: list[int],
    mask: Callable[[str], str] = str,
    split: str = "",
) -> None:
    """Writes pairs into ROOT/{images,masks}[/SPLIT]; each mask's first row begins with `values`."""
    labels = np.full((3, 5), values[0], np.uint8)
    labels[0, : len(values)] = values
    for name in names:
        for folder, file, content in (
            ("images", name, np.zeros((*labels.shape, 3), np.uint8)),
            ("masks", mask(name), labels),
        ):
            path = root / folder / split / f"{file}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set of two splits, classes 0 and 1, without a class list."""
    root = tmp_path / "set"
    put(root / "train", ["a", "b"], [0, 1])
    put(root / "val", ["c"], [0, 1])
    return root


def kinds(dataset: Dataset) -> list[str]:
    return [problem.kind for problem in dataset.problems]


@pytest.mark.parametrize(
    "content",
    [
        BOM + b"road\r\ncar\r\n",
        BOM + b"\n road \n\ncar",
        "road\r\ncar\r\n".encode("utf-16"),
        b"\xfe\xff" + "road\ncar".encode("utf-16-be"),
    ],
)
def test_a_byte_order_mark_is_no_part_of_a_name(root: Path, content: bytes) -> None:
    (root / "classes.txt").write_bytes(content)
    assert load_dataset("folder", root, "train").classes == ("road", "car")


def test_byte_order_marks_in_json_and_yaml(root: Path) -> None:
    (root / "classes.json").write_bytes(BOM + b'{"names": ["road", "car"]}')
    assert load_dataset("folder", root, "train").classes == ("road", "car")
    (root / "data.yaml").write_bytes(BOM + b"names: [x, y]\r\ntrain: train/images\r\n")
    assert load_dataset("folder", root, "train").classes == ("x", "y")


def test_json_maps_values_as_a_yaml_does(tmp_path: Path) -> None:
    put(tmp_path, ["a"], [7, 9, 255], split="train")
    mapping = {"7": 1, "9": 0, "-1": 255}
    (tmp_path / "classes.json").write_text(
        json.dumps({"names": ["x", "y"], "label_mapping": mapping})
    )
    expected = read_pair(load_dataset("folder", tmp_path, "train"), 0)[1]
    assert expected[0].tolist()[:3] == [1, 0, 255]
    (tmp_path / "classes.json").unlink()
    for keys in ("{7: 1, 9: 0, -1: 255}", "{'7': 1, '9': 0}"):
        (tmp_path / "data.yaml").write_text(
            f"names: [x, y]\ntrain: images/train\nlabel_mapping: {keys}\n"
        )
        labels = read_pair(load_dataset("folder", tmp_path, "train"), 0)[1]
        np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    "keys", ["{7: 0, '7': 1}", "{x: 0}", "{yes: 0}", "{7: true}", "{'70000': 0}"]
)
def test_mappings_that_say_nothing_are_refused(tmp_path: Path, keys: str) -> None:
    put(tmp_path, ["a"], [7, 9], split="train")
    text = f"names: [x, y]\ntrain: images/train\nlabel_mapping: {keys}\n"
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match="label_mapping"):
        load_dataset("folder", tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "odd"),
    [
        ("train: ../train/images\nval: ../val/images\n", ["moved-folder"]),
        ("train: ../../deep/train/images\nval: ./val/images\n", ["moved-folder"]),
        ("train: /content/set/train/images\nval: /content/set/val/images\n", ["moved-folder"]),
        ("path: /home/else/set\ntrain: train/images\nval: val/images\n", ["moved-folder"]),
        ("path: ../set\ntrain: train/images\nval: val/images\n", []),
        ("train: train/images\nvalid: val/images\nnc: 2\n", []),
        ("train: train/images\nvalidation: val/images\nservice: {a: 1}\n", ["unused-block"]),
        ("train: train/images\nval: val/images\ntask: semantic\n", ["unused-key"]),
    ],
)
def test_exported_yamls_are_read(root: Path, text: str, odd: list[str]) -> None:
    (root / "data.yaml").write_text(text + "names: ['a', 'b']\n")
    for split, names in (("train", ["a", "b"]), ("val", ["c"])):
        dataset = load_dataset("folder", root, split)
        assert [sample.name for sample in dataset.samples] == names
        assert dataset.samples[0].image.resolve() == root / split / "images" / f"{names[0]}.png"
    assert kinds(load_dataset("folder", root, "train")) == odd


def test_folders_that_are_nowhere_are_still_refused(root: Path) -> None:
    put(root, ["x"], [0])  # ROOT/images is no split's folder
    for place in ("../test/images", "/content/images"):
        text = f"names: [a, b]\ntrain: train/images\ntest: {place}\n"
        (root / "data.yaml").write_text(text)
        with pytest.raises(DataError, match="no such folder"):
            load_dataset("folder", root, "test")


def test_the_validation_split_may_have_its_long_name(tmp_path: Path) -> None:
    for name in ("valid", "validation"):
        put(tmp_path / name / name, ["x"], [0, 1])
        put(tmp_path / name, ["y"], [0, 1], split="train")
        dataset = load_dataset("folder", tmp_path / name, "val")
        assert (dataset.split, [sample.name for sample in dataset.samples]) == ("val", ["x"])


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_two_spellings_of_a_letter_are_one_name(tmp_path: Path, forms: tuple[str, str]) -> None:
    names = ["straße_grün", "café/Ångström"]

    def spelt(form: str) -> Callable[[str], str]:
        return lambda name: unicodedata.normalize(form, name)

    put(tmp_path / "train", [spelt(forms[0])(name) for name in names],
        [0, 1], lambda name: spelt(forms[1])(name))  # fmt: skip
    for kind in ("folder", "camvid"):
        if kind == "camvid":  # with a list in the other spelling
            listing = "".join(f"{spelt(forms[1])(name)}\n" for name in names)
            (tmp_path / "train.txt").write_text(listing)
        dataset = load_dataset(kind, tmp_path, "train")
        assert sorted(sample.name for sample in dataset.samples) == sorted(names)
        assert read_pair(dataset, 1)[1].shape == (3, 5)


@pytest.mark.parametrize("suffix", ["_mask", "-labels", ".seg", " gt", "_L", "_gtFine_labelIds"])
def test_masks_of_one_suffix_are_paired(tmp_path: Path, suffix: str) -> None:
    names = ["car1", "car12", "sub/car"]
    put(tmp_path / "train", names, [0, 1], lambda name: f"{name}{suffix}")
    dataset = load_dataset("folder", tmp_path, "train")
    assert [sample.name for sample in dataset.samples] == names
    assert all(sample.mask == tmp_path / "train" / "masks" / f"{sample.name}{suffix}.png"
               for sample in dataset.samples)  # fmt: skip
    assert kinds(dataset) == ["mask-suffix"] and f"NAME{suffix}" in dataset.problems[0].text
    (tmp_path / "train" / "masks" / f"car1{suffix}.png").unlink()
    assert kinds(list_dataset("folder", tmp_path, "train")) == ["missing-mask", "mask-suffix"]


def test_masks_of_two_suffixes_are_paired_only_when_told(tmp_path: Path) -> None:
    root = tmp_path / "set"
    put(root / "train", ["a", "b"], [0, 1], lambda name: f"{name}_mask")
    put(root / "train", ["a", "b"], [1, 1], lambda name: f"{name}_overlay")
    with pytest.raises(DataError, match=r"the mask of .* is missing"):
        load_dataset("folder", root, "train")
    for suffix, first in (("_mask", 0), ("_overlay", 1)):
        (root / "data.yaml").write_text(
            f"names: [x, y]\ntrain: train/images\nmask_suffix: {suffix}\n"
        )
        dataset = load_dataset("folder", root, "train")
        assert kinds(dataset) == [] and len(dataset) == 2
        assert read_pair(dataset, 0)[1][0, 0] == first


def test_numbers_are_no_suffix(tmp_path: Path) -> None:
    put(tmp_path / "train", ["1", "2"], [0, 1], lambda name: f"{name}_1")
    with pytest.raises(DataError, match="missing"):
        load_dataset("folder", tmp_path, "train")


STRAY = [
    ("images/.DS_Store", b"\0\0\0\1Bud1"),
    ("masks/.DS_Store", b"\0\0\0\1Bud1"),
    ("masks/Thumbs.db", b"\xd0\xcf"),
    ("masks/desktop.ini", b"[x]"),
    ("masks/notes.txt", b"see there"),
    ("masks/train/._train0.png", b"\0\5\x16\7"),
    ("images/train/.ipynb_checkpoints/train0-checkpoint.png", b""),
    ("masks/.cache/x.png", b""),
    ("._data.yaml", b"\0\5\x16\7\xff"),
    (".pre-commit-config.yaml", b"names: [a]"),
    ("mkdocs.yml", b"x: !!python/name:materialx.emoji.twemoji\n"),
    ("broken.yaml", b"a: [\n"),
    (".git/masks/x.png", b""),
]


@pytest.mark.parametrize(("name", "content"), STRAY)
def test_stray_files_change_nothing(tmp_path: Path, name: str, content: bytes) -> None:
    for split, names in (("train", ["train0", "train1"]), ("val", ["val0"])):
        put(tmp_path, names, [0, 2, 1], split=split)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(content)
    dataset = load_dataset("folder", tmp_path, "train")
    assert [sample.name for sample in dataset.samples] == ["train0", "train1"]
    assert len(dataset.classes) == 3 and kinds(dataset) == []


def test_a_broken_yaml_that_looks_like_ours_is_not_ignored(root: Path) -> None:
    for name, text in (("data.yaml", "a: ["), ("mine.yml", "names: [a\ntrain: x")):
        (root / name).write_text(text)
        with pytest.raises(DataError, match="not valid YAML"):
            load_dataset("folder", root, "train")
        (root / name).unlink()


def test_class_lists_that_are_not_used_are_told(root: Path) -> None:
    (root / "data.yaml").write_text("names: [x, y]\ntrain: train/images\n")
    (root / "classes.txt").write_text("x\ny\n")
    assert kinds(load_dataset("folder", root, "train")) == []
    (root / "classes.txt").write_text("y\nx\n")
    (root / "classes.json").write_text("{")
    dataset = load_dataset("folder", root, "train")
    assert kinds(dataset) == ["unused-list"] * 2 and dataset.classes == ("x", "y")
    assert str(root / "classes.txt") in dataset.problems[1].text
    (root / "data.yaml").unlink()
    (root / "classes.json").write_text('{"names": ["u", "v"]}')
    dataset = load_dataset("folder", root, "train")
    assert kinds(dataset) == ["unused-list"] and dataset.classes == ("u", "v")


CASES = {
    "byte_order_mark": (("road", "car"), {"train": 2, "val": 2}),
    "json_mapping": (("road", "car"), {"train": 2, "val": 2}),
    "roboflow": (("a", "b"), {"train": 2, "val": 2}),
    "two_spellings": (None, {"train": 2, "val": 2}),
    "suffixed_masks": (None, {"train": 2, "val": 2}),
    "stray_files": (None, {"train": 2, "val": 2}),
}


@pytest.mark.parametrize("name", CASES)
def test_layouts_of_other_programs(name: str) -> None:
    root = external_data(f"cases/layouts/{name}")
    classes, counts = CASES[name]
    for split, count in counts.items():
        dataset = load_dataset("folder", root, split)
        assert len(dataset) == count
        assert classes in (None, dataset.classes)
        for index in range(count):
            assert read_pair(dataset, index)[1].max() < len(dataset.classes)


def test_a_yaml_misspelt_is_still_refused(root: Path) -> None:
    for line in ("lable_mapping: {0: 1}", "valu_range: [0, 1]", "mask_sufix: _m", "voidid: 3"):
        (root / "data.yaml").write_text(f"names: [x, y]\ntrain: train/images\n{line}\n")
        with pytest.raises(SegdeformError, match="Did you mean"):
            load_dataset("folder", root, "train")
