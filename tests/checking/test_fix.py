"""A repaired copy holds the right labels, is sound, and leaves the source as it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from segdeform.cli import main
from segdeform.data import load_dataset, read_pair
from segdeform.data.image_io import read_image
from tests.checking.conftest import Check
from tests.checking.mask_cases import BAD, COLOURS, NAMES, TRUTH, VOID, Case, write_case

_BITS = (TRUTH > 1).astype(np.uint8)
_TRAIN_IDS = np.array([0, 1, 2, 13, 18], np.uint8)[TRUTH]  # of label ids 7, 8, 11, 26, 33

REPAIRED = {
    "1-bit png": _BITS,
    "1-bit tiff": _BITS,
    "1-bit bmp": _BITS,
    "grey and alpha": TRUTH,
    "rgba png": TRUTH,
    "grey rgb png": TRUTH,
    "rgb bmp": TRUTH,
    "rgb tiff": TRUTH,
    "32-bit tiff": TRUTH,
    "float tiff": TRUTH,
    "0 and 255": _BITS,
    "0 and 255 in a palette": _BITS,
    "0 and 1 as 0 and 128": _BITS,
    "1 to K": TRUTH,
    "1 to K with void": VOID,
    "label ids": _TRAIN_IDS,
    "another palette's numbers": np.array([3, 0, 4, 1, 2], np.uint8)[TRUTH],
    "adaptive palette": TRUTH,
    "mask of the turned picture's stored pixels": np.rot90(TRUTH, -1),
}


def sums(root: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    "case", [case for case in BAD if case.name in REPAIRED], ids=lambda case: case.name
)
def test_what_can_be_repaired_is(tmp_path: Path, check: Check, case: Case) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    write_case(source, case)
    before = sums(source)
    fixed = check(source, "--fix", copy)
    assert (fixed.code, fixed.err) == (0, "")
    assert fixed.report["fix"]["left_out"] == []
    assert sums(source) == before

    again = check(copy)
    assert again.code == 0 and again.report["sound"]
    dataset = load_dataset("folder", copy, "train")
    index = next(i for i, sample in enumerate(dataset.samples) if sample.name == "b")
    image, labels = read_pair(dataset, index)
    np.testing.assert_array_equal(labels, REPAIRED[case.name])
    np.testing.assert_array_equal(image, read_image(source / "train" / "images" / "b.jpg"))
    assert dataset.classes == load_dataset("folder", copy / "data.yaml", "train").classes


@pytest.mark.parametrize(
    "case",
    [case for case in BAD if case.name not in REPAIRED and not case.alone],
    ids=lambda case: case.name,
)
def test_what_needs_a_guess_is_left_out_and_listed(
    tmp_path: Path, check: Check, case: Case
) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    write_case(source, case)
    fixed = check(source, "--fix", copy)
    assert fixed.code == 8 and str(copy / "left-out.json") in fixed.err
    (left,) = json.loads((copy / "left-out.json").read_text())
    assert "masks/b." in left["file"] and left["reason"]
    dataset = load_dataset("folder", copy, "train")
    assert [sample.name for sample in dataset.samples] == ["a"]
    np.testing.assert_array_equal(read_pair(dataset, 0)[1], TRUTH)


def test_given_colours_become_classes_and_unknown_ones_are_left_out(
    tmp_path: Path, check: Check
) -> None:
    case = next(case for case in BAD if case.name == "rgb png")
    source = tmp_path / "source"
    write_case(source, Case(case.name, case.write, classes={"names": NAMES, "palette": COLOURS}))
    assert check(source, "--fix", tmp_path / "copy").code == 0
    dataset = load_dataset("folder", tmp_path / "copy", "train")
    np.testing.assert_array_equal(read_pair(dataset, 1)[1], TRUTH)

    pixels = np.array(COLOURS, np.uint8)[TRUTH]
    pixels[4, 4] = (1, 2, 3)
    Image.fromarray(pixels).save(source / "train" / "masks" / "b.png")
    assert check(source, "--fix", tmp_path / "other").code == 8


@pytest.mark.parametrize("turn", range(2, 9))
def test_picture_and_mask_with_the_same_orientation_are_turned_together(
    tmp_path: Path, check: Check, turn: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn

    def write(folder: Path) -> None:
        Image.fromarray(TRUTH).save(folder / "b.png", exif=exif)
        Image.fromarray(TRUTH).save(folder.parent / "images" / "b.jpg", exif=exif)

    write_case(tmp_path / "source", Case("turned", write, alone=True))
    assert check(tmp_path / "source", "--fix", tmp_path / "copy").code == 0
    with Image.open(tmp_path / "source" / "train" / "masks" / "b.png") as mask:
        expected = np.asarray(ImageOps.exif_transpose(mask))
    _, labels = read_pair(load_dataset("folder", tmp_path / "copy", "train"), 0)
    np.testing.assert_array_equal(labels, expected)


def test_nothing_is_written_where_nothing_can_be_repaired(tmp_path: Path, check: Check) -> None:
    case = next(case for case in BAD if case.name == "jpeg named png")
    write_case(tmp_path / "source", Case(case.name, case.write, alone=True))
    fixed = check(tmp_path / "source", "--fix", tmp_path / "copy")
    assert fixed.code == 4 and "masks/b.png" in fixed.err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_folders_in_use_and_folders_in_the_source_are_refused(tmp_path: Path, check: Check) -> None:
    source = tmp_path / "source"
    write_case(source, BAD[0])
    before = sums(tmp_path)
    assert check(source, "--fix", source / "copy").code == 2
    assert check(source, "--fix", source).code == 2
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    assert check(source, "--fix", tmp_path / "used").code == 2
    (tmp_path / "link").symlink_to(source)
    assert check(source, "--fix", tmp_path / "link" / "copy").code == 2
    (tmp_path / "used" / "file").unlink()
    assert sums(tmp_path) == before
    source.rename(tmp_path / ".copy.partial")  # where a copy would be made
    before = sums(tmp_path)
    assert check(tmp_path / ".copy.partial", "--fix", tmp_path / "copy").code == 2
    assert sums(tmp_path) == before


def test_a_copy_can_be_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = next(case for case in BAD if case.name == "1 to K")
    source, copy = tmp_path / "source", tmp_path / "copy"
    write_case(source, case)
    (source / "val").symlink_to(source / "train")
    with (source / "data.yaml").open("a") as file:
        file.write("val: val/images\n")
    keys = ("steps=1", "warmup_steps=0")
    settings = [f"train.{key}" for key in keys] + ["model.weights=none", "data.crop=[64,64]"]
    words = [word for setting in settings for word in ("--set", setting)]
    words += ["--set", "model.backbone=mobilenet_v2", "--set", "train.batch_size=2"]
    words += ["--set", "model.head_channels=8", "--workers", "0", "--device", "cpu"]
    train = ["train", "folder", "--output", str(tmp_path / "run"), *words]
    assert main([*train, "--data", str(source)]) == 4
    assert "label_mapping: {1: 0, 2: 1" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert main(["check", str(source), "--fix", str(copy)]) == 0
    assert main([*train, "--data", str(copy)]) == 0
    assert "data: 2 pairs checked in" in capsys.readouterr().err
    assert main(["eval", str(tmp_path / "run"), "--data", str(source)]) == 4
    assert "the classes are counted from 1" in capsys.readouterr().err


def test_a_copy_that_would_be_wrong_does_not_appear(tmp_path: Path, check: Check) -> None:
    """Of two classes, the second stands in the one pair that is left out."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    white = np.where(TRUTH > 1, 255, 0).astype(np.uint8)
    write_case(
        source,
        Case("void", lambda folder: Image.fromarray(white).save(folder / "b.png"),
             classes={"names": NAMES[:2]}),
    )  # fmt: skip
    Image.fromarray(_BITS).save(source / "train" / "masks" / "a.png")
    (source / "train" / "images" / "a.jpg").write_bytes(b"")
    fixed = check(source, "--fix", copy)
    assert fixed.code == 4 and fixed.report == {}
    assert fixed.err.startswith(f"segdeform: {copy}: not written, ") and fixed.err.count("\n") == 1
    assert f"{copy}/masks/train/b.png: 255 at row 0, column 2" in fixed.err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_the_copy_can_fill_the_current_folder(
    tmp_path: Path, check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = next(case for case in BAD if case.name == "1 to K")
    write_case(tmp_path / "source", case)
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    fixed = check("../source", "--fix", ".")
    assert (fixed.code, fixed.err) == (0, "")
    assert fixed.report["fix"]["folder"] == str(tmp_path / "copy")
    _, labels = read_pair(load_dataset("folder", tmp_path / "copy", "train"), 0)
    np.testing.assert_array_equal(labels, TRUTH)
