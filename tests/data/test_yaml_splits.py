"""Every form of a data YAML that names pictures and masks: folders, lists, folds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from segdeform.config.strict_yaml import parse_yaml
from segdeform.data import data_yaml, list_dataset, load_dataset, read_pair
from segdeform.data.data_yaml import check_keys
from segdeform.data.dataset import MissingSplitError
from segdeform.errors import DataError, SegdeformError
from tests.preparing.folder.raw_folders import put_mask, put_picture


def pair(root: Path, image: str, mask: str, label: int = 1) -> None:
    put_picture(root / image, len(image) + label)
    put_mask(root / mask, [label, 0])


def names(root: Path, split: str) -> dict[str, int]:
    """Returns the names of a split's pictures and the class that most of each mask is."""
    dataset = load_dataset("folder", root, split)
    assert all(sample.image.is_file() for sample in dataset.samples)
    return {
        sample.name: int(read_pair(dataset, index)[1][-1, -1])
        for index, sample in enumerate(dataset.samples)
    }


FOLDERS = [
    # keys; pictures and masks (with their class); split -> names and classes
    ("train: photos/train\nmasks: drawn", "photos/train/a.jpg drawn/train/a.png 1", {"a": 1}),
    ("train: photos\nmasks: drawn", "photos/b/a.jpg drawn/b/a.png 1", {"b/a": 1}),
    ("train: photos/x\nmasks: drawn", "photos/x/a.jpg drawn/a.png 2", {"a": 2}),
    ("train: JPEGImages\nmasks: SegmentationClass", "JPEGImages/a.jpg SegmentationClass/a.png 2",
     {"a": 2}),
    ("train: x/images\nmasks_dir: labels", "x/images/a.jpg x/labels/a.png 1", {"a": 1}),
    ("train: x/images\nmasks: y/drawn", "x/images/a.jpg y/drawn/a.png 1", {"a": 1}),
    ("train: p/t\nmasks: {train: q/u, val: q/v}", "p/t/a.jpg q/u/a.png 1", {"a": 1}),
    ("train: [p/t, p/images]\nmasks: {train: [q/u, q/w]}",
     "p/t/a.jpg q/u/a.png 1, p/images/a.jpg q/w/a.png 2", {"p/t/a": 1, "p/images/a": 2}),
    ("train: [a/images, b/images]", "a/images/1.jpg a/masks/1.png 1, b/images/1.jpg "
     "b/masks/1.png 2", {"a/images/1": 1, "b/images/1": 2}),
    ("train: train\nmask_suffix: _mask", "train/a.jpg train/a_mask.png 1, train/b.jpg "
     "train/b_mask.png 2", {"a": 1, "b": 2}),
    ("train: train\nmask_suffix: _mask", "train/a.png train/a_mask.png 1", {"a": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "files", "expected"), FOLDERS)
def test_folders_of_masks_wherever_they_are(
    tmp_path: Path, keys: str, files: str, expected: dict[str, int]
) -> None:
    for entry in files.split(", "):
        image, mask, label = entry.split()
        pair(tmp_path, image, mask, int(label))
    (tmp_path / "data.yaml").write_text(f"names: [x, y, z]\n{keys}\n")
    assert names(tmp_path, "train") == expected


@pytest.fixture
def street(tmp_path: Path) -> Path:
    """Pictures in two folders below `set`, masks apart from them, and a YAML beside."""
    root = tmp_path / "here" / "set"
    for name, label in (("images/b/1", 1), ("images/c/1", 2)):
        pair(root, f"{name}.jpg", f"{name.replace('images', 'masks')}.png", label)
    pair(root, "photos/d.jpg", "drawn/d_m.png", 2)
    return root


@pytest.mark.parametrize(
    "place", ["set/train.txt", "train.txt", "lists/train.txt"]  # in `path`, beside, elsewhere
)  # fmt: skip
@pytest.mark.parametrize("path", ["set", "absolute"])
def test_lists_of_files(street: Path, place: str, path: str) -> None:
    here = street.parent
    listing = here / place
    listing.parent.mkdir(exist_ok=True)
    lines = ["images/b/1.jpg", f"{street}/images/c/1.jpg", "", "photos/d.jpg\tdrawn/d_m.png"]
    listing.write_text("\r\n".join(lines) + "\n")
    text = place.removeprefix("set/")
    base = str(street) if path == "absolute" else path
    (here / "data.yaml").write_text(f"path: {base}\nnames: [x, y, z]\ntrain: {text}\n")
    assert names(here, "train") == {"images/b/1": 1, "images/c/1": 2, "photos/d": 2}
    assert not list_dataset("folder", here, "train").problems


def test_a_dot_begins_at_the_file_that_says_it(street: Path) -> None:
    """Where both could be meant, ./x is beside and x is in `path`."""
    here = street.parent
    pair(here, "lists/x.jpg", "lists/x_mask.png", 1)
    pair(street, "x.jpg", "x_mask.png", 2)
    (here / "lists" / "val.txt").write_text("./x.jpg\n")
    (here / "val.txt").write_text("x.jpg\n")
    (street / "val.txt").write_text("./x.jpg\n")
    head = "path: set\nnames: [x, y, z]\nmask_suffix: _mask\n"
    for text, label in (("lists/val.txt", 1), ("./val.txt", 2), ("val.txt", 2)):
        (here / "data.yaml").write_text(f"{head}val: {text}\n")
        assert list(names(here, "val").values()) == [label]
    (here / "val.txt").write_text("photos/d.jpg\tdrawn/d_m.png\n")
    (here / "data.yaml").write_text(f"{head}val: ./val.txt\n")
    assert names(here, "val") == {"photos/d": 2}


def test_the_second_column_begins_at_masks(street: Path) -> None:
    here = street.parent
    put_mask(street / "other" / "d_m.png", [1])
    put_mask(street / "d_m.png", [0])  # in `path`, which comes after
    (here / "train.txt").write_text("photos/d.jpg\td_m.png\n")
    for masks, label in (("drawn", 2), ("other", 1), (street / "other", 1)):
        (here / "data.yaml").write_text(
            f"path: set\nnames: [x, y, z]\ntrain: ./train.txt\nmasks: {masks}\n"
        )
        assert names(here, "train") == {"photos/d": label}


def test_lists_that_lead_out_of_the_data_set_name_nothing_outside_of_outputs(street: Path) -> None:
    pair(street.parent, "away/e.jpg", "away/e.png", 1)
    (street / "train.txt").write_text(
        f"../away/e.jpg\t../away/e.png\n{street.parent}/set/photos/d.jpg\tdrawn/d_m.png\n"
    )
    (street / "data.yaml").write_text("names: [x, y, z]\ntrain: train.txt\n")
    found = names(street, "train")
    assert list(found.values()) == [1, 2]
    for name in found:
        assert ".." not in Path(name).parts and not Path(name).is_absolute()
    first, second = found
    assert first.endswith("away/e") and second == "photos/d"


def test_what_lists_lack_is_a_problem_of_its_line(street: Path) -> None:
    (street / "train.txt").write_text(
        "images/b/1.jpg\nimages/b/none.jpg\nphotos/d.jpg\tdrawn/none.png\nimages/b/1.jpg\n"
        "images/c/1.jpg\tmasks/c/1.png\n"
    )
    (street / "data.yaml").write_text("names: [x, y, z]\ntrain: train.txt\n")
    dataset = list_dataset("folder", street, "train")
    assert [sample.name for sample in dataset.samples] == ["images/b/1", "images/c/1"]
    found = {problem.kind: problem.text for problem in dataset.problems}
    assert sorted(found) == ["double", "missing-mask", "missing-picture"]
    assert "images/b/none.jpg" in found["missing-picture"]
    assert "drawn/none.png" in found["missing-mask"]
    assert "listed twice" in found["double"]
    with pytest.raises(DataError, match="missing, but listed"):
        load_dataset("folder", street, "train")


def test_two_pictures_of_one_name_are_told(street: Path) -> None:
    pair(street, "images/b/1.png", "masks/b/1.png", 1)
    (street / "train.txt").write_text("images/b/1.jpg\nimages/b/1.png\n")
    (street / "data.yaml").write_text("names: [x, y, z]\ntrain: train.txt\n")
    (problem,) = list_dataset("folder", street, "train").problems
    assert problem.kind == "double" and "same name" in problem.text


def test_lists_from_another_machine_are_found_again(street: Path) -> None:
    (street / "train.txt").write_text("/content/set/images/b/1.jpg\n/content/set/images/c/1.jpg\n")
    (street / "data.yaml").write_text("names: [x, y, z]\ntrain: train.txt\n")
    assert names(street, "train") == {"images/b/1": 1, "images/c/1": 2}
    assert [p.kind for p in list_dataset("folder", street, "train").problems] == ["moved-folder"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "lists no picture"),
        ("a\tb\tc\n", "line 1 is a picture and, after a tab, its mask"),
        ("a.jpg\t\n", "line 1 is a picture"),
        ("ok.jpg\na\x1b[31m.jpg\n", "line 2.*control characters"),
    ],
)
def test_lists_that_are_none(street: Path, content: str, message: str) -> None:
    (street / "train.txt").write_text(content)
    (street / "data.yaml").write_text("names: [x, y, z]\ntrain: train.txt\n")
    with pytest.raises(DataError, match=message):
        list_dataset("folder", street, "train")


def test_folds_are_splits(tmp_path: Path) -> None:
    for number in range(1, 8):
        pair(tmp_path, f"images/{number}.jpg", f"masks/{number}.png", number % 3)
        with (tmp_path / f"f{number % 3}.txt").open("a") as file:
            file.write(f"images/{number}.jpg\n")
    (tmp_path / "data.yaml").write_text("names: [x, y, z]\nfolds: [f0.txt, f1.txt, f2.txt]\n")
    folds = [[f"images/{k}" for k in part] for part in ((3, 6), (1, 4, 7), (2, 5))]
    for number, fold in enumerate(folds, start=1):
        assert list(names(tmp_path, f"fold{number}")) == fold
        rest = [name for other in folds for name in other if other is not fold]
        assert list(names(tmp_path, f"except-fold{number}")) == rest
    content = (tmp_path / "data.yaml").read_text()
    (tmp_path / "data.yaml").write_text(
        "\n".join(line for line in content.splitlines() if not line.startswith("folds"))
    )
    with pytest.raises(MissingSplitError, match="has no folds; segdeform prepare folder --folds"):
        list_dataset("folder", tmp_path, "fold2")
    (tmp_path / "data.yaml").write_text(content)
    for split in ("fold4", "except-fold0", "train"):
        with pytest.raises(
            MissingSplitError, match="fold3" if "fold" in split else "no split .train."
        ):
            list_dataset("folder", tmp_path, split)
    (tmp_path / "data.yaml").write_text("names: [x, y, z]\nfolds: f0.txt\n")
    with pytest.raises(DataError, match="two or more"):
        list_dataset("folder", tmp_path, "fold1")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("train: 3", "train is a folder, a list of files"),
        ("train: [x, '']", "several of them in brackets"),
        ("train: {a: b}", "train is a folder"),
        ("train: photos\nmasks: {val: x}", "masks names no folder for train"),
        ("train: photos\nmasks: [a, b]", "2 folders for the 1 of train"),
        ("train: photos\nmasks: 7", "masks is a folder"),
        ("train: photos", "no part 'images'.*masks: {train: FOLDER}"),
        ("train: photos\nmasks: nowhere", "no part 'images'"),
        ("train: none.txt", "none.txt: the list of pictures cannot be read: No such file"),
        ("train: images\nfold: [a, b]", "Did you mean 'folds'"),
    ],
)
def test_yamls_that_cannot_be_understood(tmp_path: Path, keys: str, message: str) -> None:
    pair(tmp_path, "photos/a.jpg", "drawn/a.png")
    (tmp_path / "data.yaml").write_text(f"names: [x, y]\n{keys}\n")
    with pytest.raises(SegdeformError, match=message) as caught:
        load_dataset("folder", tmp_path, "train")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_polygons_in_the_place_of_masks_are_told(tmp_path: Path) -> None:
    """As ultralytics' YAMLs mean them where they name no `masks_dir`."""
    put_picture(tmp_path / "images" / "train" / "a.jpg", 0)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.1 0.1 0.9 0.1 0.5 0.9\n")
    (tmp_path / "data.yaml").write_text("names: [x, y]\ntrain: images/train\n")
    with pytest.raises(DataError, match=r"labels/train holds polygons.*--masks .*labels/train"):
        load_dataset("folder", tmp_path, "train")


def test_paths_are_shown_without_detours_except_through_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    pair(tmp_path, "photos/a.jpg", "drawn/a.png")
    root.mkdir()
    (root / "train.txt").write_text("a.jpg\ta.png\n")
    (root / "data.yaml").write_text(
        "path: ../photos\nmasks: ../drawn\nnames: [x, y]\ntrain: ./train.txt\n"
    )
    (sample,) = load_dataset("folder", root, "train").samples
    assert (sample.image, sample.mask) == (tmp_path / "photos/a.jpg", tmp_path / "drawn/a.png")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "link").symlink_to(root)
    (sample,) = load_dataset("folder", tmp_path / "far" / "link", "train").samples
    assert sample.image.samefile(tmp_path / "photos" / "a.jpg")


def test_an_empty_key_is_a_split_that_is_not_there(tmp_path: Path) -> None:
    """As ultralytics' YAMLs have it: `test:  # optional`."""
    pair(tmp_path, "images/train/a.jpg", "masks/train/a.png")
    (tmp_path / "data.yaml").write_text("names:\n  0: x\n  1: y\ntrain: images/train\ntest:\n")
    assert names(tmp_path, "train") == {"a": 1}
    with pytest.raises(MissingSplitError, match="no split 'test'"):
        list_dataset("folder", tmp_path, "test")


def test_the_examples_of_the_module_are_yamls_of_known_keys() -> None:
    blocks = re.findall(r"(?:^    .+\n)+", data_yaml.__doc__ or "", re.MULTILINE)
    assert len(blocks) == 6
    for block in blocks:
        content = parse_yaml(block, "an example")
        assert content.keys() <= data_yaml.KEYS
        check_keys(content, Path("data.yaml"))
        assert len(block.splitlines()) <= 6
