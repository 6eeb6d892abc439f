from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from segdeform.checking import check_sound
from segdeform.cli import main
from segdeform.data import Dataset, Sample, load_dataset
from segdeform.data.data_yaml import KEYS
from segdeform.data.image_io import write_index_png
from segdeform.errors import DataError

BLACK = ((0, 0, 0),) * 2


def make(root: Path, count: int, value: int = 1) -> Dataset:
    samples = []
    for index in range(count):
        image, mask = root / f"{index:02d}.jpg", root / f"{index:02d}.png"
        picture = np.random.default_rng(index).integers(0, 256, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(picture).save(image)
        labels = np.zeros((8, 9), np.uint8)
        labels[2, 3:] = value
        write_index_png(mask, labels, BLACK)
        samples.append(Sample(image.stem, image, mask))
    return Dataset("folder", "train", root, ("a", "b"), BLACK, tuple(samples))


def test_good_data_pass_and_progress_counts(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    check_sound(
        [make(tmp_path, 5)], workers=3, progress=lambda done, total: heard.append((done, total))
    )
    assert heard == [(done, 5) for done in range(1, 6)]


def test_every_problem_is_listed_by_name(tmp_path: Path) -> None:
    dataset = make(tmp_path, 9)
    whole = (tmp_path / "01.jpg").read_bytes()
    (tmp_path / "01.jpg").write_bytes(whole[:-40])
    write_index_png(tmp_path / "02.png", np.zeros((9, 8), np.uint8), BLACK)
    write_index_png(tmp_path / "03.png", np.full((8, 9), 7, np.uint8), BLACK)
    (tmp_path / "04.png").unlink()
    (tmp_path / "05.jpg").unlink()
    os.mkfifo(tmp_path / "05.jpg")
    (tmp_path / "06.jpg").unlink()
    (tmp_path / "06.jpg").mkdir()
    Image.new("RGB", (9, 8)).save(tmp_path / "07.png")
    with pytest.raises(DataError) as caught:
        check_sound([dataset], workers=2)
    lines = sorted(str(caught.value).split(" | "))
    assert len(lines) == 7 and "\n" not in str(caught.value)
    for line, expected in zip(
        lines,
        [
            "01.jpg: damaged or cut short: restore the file, or save it anew (decoder: image fi",
            "02.png: is 9x8",
            "03.png: label 7 at row 0, column 0",
            "04.png: cannot be read: No such file",
            "05.jpg: not a regular file",
            "06.jpg: not a regular file",
            "07.png: is stored as RGB",
        ],
        strict=True,
    ):
        assert expected in line


def test_a_long_list_of_problems_is_cut_after_ten(tmp_path: Path) -> None:
    dataset = make(tmp_path, 13, value=5)
    labels = np.zeros((8, 9), np.uint8)
    labels[2, 3:], labels[1, 1] = 5, 6  # so that no one cause explains all masks
    write_index_png(tmp_path / "00.png", labels, BLACK)
    with pytest.raises(DataError) as caught:
        check_sound([dataset])
    lines = str(caught.value).split(" | ")
    assert len(lines) == 11
    assert lines[-1] == f"and 4 more: segdeform check {tmp_path} shows them"


def test_a_reason_for_all_masks_is_told_once_and_not_again_for_each(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        check_sound([make(tmp_path, 13, value=5)])
    assert "all masks hold only 0 and 5" in str(caught.value) and " | " not in str(caught.value)


def sets_of(root: Path, *splits: str) -> Path:
    """Writes a sound pair of two classes for each split."""
    for split in splits:
        for kind, shape in (("images", (8, 9, 3)), ("masks", (8, 9))):
            (root / split / kind).mkdir(parents=True)
            pixels = np.random.default_rng(len(split)).integers(0, 2, shape, dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / kind / "a.png")
    return root


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (("train",), "holds no split 'val'; there are: train"),
        (("val",), "holds no split 'train'; there are: val"),
        (("train", "validation_2"), "there are: train, validation_2; is 'validation_2' meant?"),
        (("test",), "holds no split 'train'; there are: test"),
    ],
)
def test_a_check_is_an_error_where_training_would_lack_a_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], there: tuple[str, ...], said: str
) -> None:
    root = sets_of(tmp_path, *there)
    assert main(["check", str(root)]) == 4
    out, err = capsys.readouterr()
    assert said in " ".join(out.split()) and "not fit for training" in err and "--fix" not in err
    for split in there:  # what is asked for is there
        assert main(["check", str(root), "--split", split]) == 0
    assert main(["check", str(root), "--split", there[0], "--fix", str(tmp_path / "x")]) == 2


def test_a_mistyped_split_names_the_nearest_and_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sets_of(tmp_path, "train", "val")
    assert main(["check", str(root), "--split", "vall"]) == 4
    assert "no split 'vall'; there are: train, val; is 'val' meant?" in capsys.readouterr().err
    (root / "data.yaml").write_text(
        "names: [a, b]\ntrain: train/images\nvalidation_2: val/images\n"
    )
    assert main(["check", str(root)]) == 4
    out = " ".join(capsys.readouterr().out.split())
    assert "no split 'val'; there are: train (and the unknown key validation_2); write val:" in out


def test_a_config_in_the_data_set_is_no_data_yaml(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sets_of(tmp_path, "train", "val")
    (root / "mine.yaml").write_text("data: {crop: [64, 64]}\ntrain: {steps: 9}\n")
    (root / "other.yaml").write_text("model: {weights: none}\ntrain: {lr: 1}\n")
    assert main(["check", str(root)]) == 0
    (root / "more.yaml").write_text("train: train/images\n")  # what lacks its names is told
    assert main(["check", str(root)]) == 4
    assert "more.yaml: a data YAML needs names" in capsys.readouterr().err


def test_folders_of_raw_pictures_are_shown_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "masks").mkdir()
    assert main(["check", str(tmp_path)]) == 4
    err = capsys.readouterr().err
    assert "no split 'train', but image, masks" in err
    assert "segdeform prepare folder --images DIR --masks DIR" in err


def test_what_concerns_all_splits_is_found_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sets_of(tmp_path, "train", "val")
    for split in ("train", "val"):
        Image.fromarray(np.eye(8, 9, dtype=np.uint8) * 255).save(root / split / "masks" / "a.png")
    assert main(["check", str(root), "--json"]) == 4
    report = json.loads(capsys.readouterr().out)
    assert report["counts"] == {"binary": 1} and report["class_weights"] == []
    (root / "classes.json").write_text('{"names": 3}')
    assert main(["check", str(root), "--json"]) == 4
    assert capsys.readouterr().err.count("names is a list of class names") == 1


def test_the_weight_of_a_class_of_few_pixels_is_bounded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the root of median share / share alone it would be 17.3."""
    root = sets_of(tmp_path, "train", "val")
    labels = np.zeros((80, 90), np.uint8)
    labels[0, :12] = 1
    Image.new("RGB", (90, 80)).save(root / "train" / "images" / "a.png")
    Image.fromarray(labels).save(root / "train" / "masks" / "a.png")
    assert main(["check", str(root)]) == 0
    out = capsys.readouterr().out
    assert "the root of median share / share, at most 10" in " ".join(out.split())
    assert "train: {class_weights: [0.708, 10]}" in out


def test_data_of_another_kind_are_recognised(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (tmp_path / "VOCdevkit" / "VOC2012" / part).mkdir(parents=True)
    (tmp_path / "CS" / "leftImg8bit" / "train").mkdir(parents=True)
    for root, kind in ((tmp_path, "voc"), (tmp_path / "CS", "cityscapes")):
        words = ["train", "folder", "--data", str(root), "--output", str(tmp_path / "run")]
        for given in (["check", str(root), "--dataset", "folder"], words):
            assert main(given) == 4
            assert f"this looks like {kind}, not like folders" in capsys.readouterr().err


def test_a_picture_is_no_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (4, 5)).save(tmp_path / "x.JPG")
    assert main(["check", str(tmp_path / "x.JPG")]) == 4
    assert "x.JPG: is a picture; a data set is a folder" in capsys.readouterr().err


WRONG = ([], ["x"], [["x"]], {"x": 1}, {"train": {"a": 1}}, 3, True, 1.5, "", [1], [None])


@pytest.mark.parametrize("key", sorted(KEYS))
def test_a_value_of_a_wrong_kind_is_told_with_its_key(tmp_path: Path, key: str) -> None:
    """Whatever a YAML can hold where a name, a number or a list belongs."""
    root = sets_of(tmp_path, "train", "val")
    good = {"names": ["a", "b"], "train": "train/images", "val": "val/images"}
    for value in WRONG:
        (root / "data.yaml").write_text(yaml.safe_dump(good | {key: value}))
        try:
            load_dataset("folder", root, "train")
        except DataError as error:
            told = str(error).partition("data.yaml")[2]
            found = "no such folder" in str(error) or "the mask of" in str(error)  # as it says
            assert found or key in told, value
            if key in ("path", "mask_suffix", "nc", "bits", "void_id", "palette", "value_range"):
                assert found or f"not {value!r}" in told or f"is {value!r}" in told
