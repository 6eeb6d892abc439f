"""What a check says of files that can be used, and perhaps should not; and what it offers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from segdeform.cli import main
from segdeform.data import load_dataset, read_pair
from tests.checking.conftest import Check, Checked
from tests.conftest import external_data
from tests.data.tiff_files import GREY, write_tiff

SIZE = (24, 32)


def noise(seed: int, *size: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, size or (*SIZE, 3), np.uint8)


def labels(*values: int) -> npt.NDArray[np.uint8]:
    """A mask of these values in turn."""
    return np.resize(np.array(values, np.uint8), SIZE)


def put(root: Path, name: str, picture: npt.NDArray[Any], mask: npt.NDArray[Any]) -> None:
    """Writes the pair SPLIT/NAME."""
    split, stem = name.split("/")
    for folder, content in (("images", picture), ("masks", mask)):
        path = root / split / folder / f"{stem}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound set of 2 + 1 pairs and two classes."""
    root = tmp_path / "set"
    for seed, name in enumerate(("train/a", "train/b", "val/c")):
        put(root, name, noise(seed), labels(0, 1))
    (root / "data.yaml").write_text("names: [x, y]\ntrain: train/images\nval: val/images\n")
    return root


def found(checked: Checked) -> dict[str, list[str]]:
    """The names of the files of each kind of finding."""
    kinds: dict[str, list[str]] = {}
    for finding in checked.report["findings"]:
        kinds.setdefault(finding["kind"], []).append(Path(finding["file"]).name)
    return kinds


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_damaged_in_the_scan_is_warned_of(
    root: Path, check: Check, mode: str, progressive: bool
) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        (root / split / "images" / f"{name}.png").unlink()
        picture = Image.fromarray(noise(ord(name))).convert(mode)
        picture.save(root / split / "images" / f"{name}.jpg", quality=95, progressive=progressive)
    assert found(check(root)) == {}
    path = root / "train" / "images" / "b.jpg"
    content = bytearray(path.read_bytes())
    middle = len(content) * 3 // 4
    content[middle : middle + 40] = bytes(range(40, 80))
    path.write_bytes(content)
    checked = check(root)
    assert checked.code == 0
    assert found(checked) == {"damaged-jpeg": ["b.jpg"]}
    assert "libjpeg says: " in checked.report["findings"][0]["text"]
    assert found(check(root)) == {"damaged-jpeg": ["b.jpg"]}  # remembered as it was


def test_jpegs_of_another_program(tmp_path: Path, check: Check) -> None:
    folder = external_data("cases/jpeg")
    for name in ("whole", "damaged_in_the_scan"):
        shutil.copy(folder / f"{name}.jpg", tmp_path / f"{name}.jpg")
        with Image.open(tmp_path / f"{name}.jpg") as picture:
            size = (picture.height, picture.width)
        mask = Image.fromarray(np.resize(np.array([0, 1], np.uint8), size))
        for kind in ("images", "masks"):
            (tmp_path / "train" / kind).mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.jpg").rename(tmp_path / "train" / "images" / f"{name}.jpg")
        mask.save(tmp_path / "train" / "masks" / f"{name}.png")
    checked = check(tmp_path)
    assert checked.code == 0 and found(checked) == {"damaged-jpeg": ["damaged_in_the_scan.jpg"]}


@pytest.mark.parametrize(("top", "bits"), [(300, 9), (1023, 10), (4000, 12), (32767, 15)])
def test_pictures_of_few_bits_are_warned_of_until_their_range_is_written(
    root: Path, check: Check, top: int, bits: int
) -> None:
    for seed, name in enumerate(("train/a", "train/b", "val/c")):
        values = np.random.default_rng(seed).integers(3, top - 9, SIZE).astype(np.uint16)
        values[2, 3:5] = top if name == "val/c" else top - 9, 3
        put(root, name, values, labels(0, 1))
    checked = check(root)
    assert checked.code == 0 and found(checked) == {"value-range": ["c.png"]}
    (finding,) = checked.report["findings"]
    assert f"hold values from 3 to {top} of 65535" in finding["text"]
    line = f"value_range: [0, {(1 << bits) - 1}]"
    assert line in finding["fix"]
    yaml = root / "data.yaml"
    yaml.write_text(f"{yaml.read_text()}{line}\n")
    assert found(check(root)) == {}
    picture, _ = read_pair(load_dataset("folder", root, "val"), 0)
    assert picture[2, 3, 0] == round(top * 255 / ((1 << bits) - 1))
    yaml.write_text(yaml.read_text().replace(line, f"value_range: [0, {top - 5}]"))
    checked = check(root)
    assert checked.code == 0 and found(checked) == {"clipped": ["c.png"]}
    assert "(1 of 3 pictures" in checked.report["findings"][0]["text"]


def test_pictures_of_all_their_bits_are_not(root: Path, check: Check) -> None:
    values = np.full(SIZE, 40_000, np.uint16)
    values[0, 0] = 1
    put(root, "val/c", values, labels(0, 1))
    put(root, "train/a", values // 20, labels(0, 1))  # a dark one among them
    assert found(check(root)) == {}


def test_ranges_of_another_camera(tmp_path: Path, check: Check) -> None:
    root = tmp_path / "set"
    shutil.copytree(external_data("cases/range"), root)
    checked = check(root)
    assert checked.code == 0 and set(found(checked)) == {"value-range"}
    assert "value_range: [0, 4095]" in checked.report["findings"][0]["fix"]
    (root / "data.yaml").write_text(
        "names: [x, y]\ntrain: train/images\nval: val/images\nvalue_range: [0, 4095]\n"
    )
    assert found(check(root)) == {}
    assert read_pair(load_dataset("folder", root, "train"), 0)[0].max() > 100


def test_numbers_that_need_a_range_are_refused_without_one(root: Path, check: Check) -> None:
    for seed, name in enumerate(("train/a", "val/c")):
        split, stem = name.split("/")
        (root / split / "images" / f"{stem}.png").unlink()
        values = np.random.default_rng(seed).random((*SIZE, 1)).astype(np.float32)
        write_tiff(root / split / "images" / f"{stem}.tif", values, photometric=GREY)
    checked = check(root)
    assert checked.code == 4 and found(checked) == {"no-range": ["a.tif", "c.tif"]}
    yaml = root / "data.yaml"
    yaml.write_text(f"{yaml.read_text()}value_range: [0, 1]\n")
    assert found(check(root)) == {}


def test_several_frames_are_warned_of(root: Path, check: Check) -> None:
    pages = [Image.fromarray(noise(9 + index)) for index in range(3)]
    path = root / "train" / "images" / "a.png"
    pages[0].save(path.with_suffix(".tif"), save_all=True, append_images=pages[1:])
    path.unlink()
    checked = check(root)
    assert checked.code == 0 and found(checked) == {"frames": ["a.tif"]}
    assert "holds 3 frames or pages" in checked.report["findings"][0]["text"]


def test_black_and_white_masks_among_others_are_named(root: Path, check: Check) -> None:
    put(root, "train/w", noise(7), labels(0, 255))
    put(root, "val/v", noise(8), labels(255, 0))
    checked = check(root)
    assert checked.code == 0 and found(checked) == {"white-mask": ["w.png", "v.png"]}
    first = checked.report["findings"][0]
    assert (first["value"], first["row"], first["column"]) == (255, 0, 1)
    assert first["count"] == SIZE[0] * SIZE[1] // 2


def test_void_beside_classes_makes_255_void(root: Path, check: Check) -> None:
    text = (root / "data.yaml").read_text().replace("[x, y]", "[x, y, z]")
    (root / "data.yaml").write_text(text)
    put(root, "val/c", noise(2), labels(0, 1, 2))
    put(root, "train/w", noise(7), labels(0, 255))
    put(root, "train/b", noise(1), labels(0, 1, 2))
    assert found(check(root)) == {"white-mask": ["w.png"]}
    put(root, "train/a", noise(0), labels(0, 2, 255))  # void as it is meant
    assert found(check(root)) == {}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("classes.txt", "unused-list"),
        ("extra", "unused-key"),
        ("block", "unused-block"),
    ],
)
def test_what_the_listing_passes_over_is_told_once(
    root: Path, check: Check, name: str, kind: str
) -> None:
    text = {"extra": "frame_rate: 3\n", "block": "service: {id: 3}\n"}.get(name, "")
    with (root / "data.yaml").open("a") as file:
        file.write(text)
    if not text:
        (root / name).write_text("y\nx\n")
    assert list(found(check(root))) == [kind]
    assert len(check(root).report["findings"]) == 1


def test_suffixes_are_told(root: Path, check: Check) -> None:
    for path in (*root.glob("*/masks/*.png"),):
        path.rename(path.with_name(f"{path.stem}_mask.png"))
    checked = check(root)
    assert checked.code == 0 and set(found(checked)) == {"mask-suffix"}


def test_a_copy_is_offered_where_there_would_be_one(root: Path, check: Check) -> None:
    whole = {path: path.read_bytes() for path in root.glob("*/*/*.png")}

    def refused() -> str:
        checked = check(root)
        assert checked.code == 4
        return checked.err

    for path in whole:
        if path.parent.name == "masks":
            path.write_bytes(path.read_bytes()[:40])
    assert "--fix" not in refused() and "--html" in refused()
    fixed = check(root, "--fix", root.parent / "copy")
    assert fixed.code == 4 and not (root.parent / "copy").exists()

    (root / "val/masks/c.png").write_bytes(whole[root / "val/masks/c.png"])
    assert "--fix FOLDER writes a copy of the 1 pairs without an error" in refused()
    assert check(root, "--fix", root.parent / "copy").report["fix"]["written"] == 1

    Image.fromarray(labels(0, 1) * 255).convert("1").save(root / "train/masks/a.png")
    assert "--fix FOLDER writes a repaired copy" in refused()
    assert check(root, "--fix", root.parent / "copy2").report["fix"]["written"] == 2


def test_advice_names_the_copy_only_where_it_helps(root: Path, check: Check) -> None:
    whole, half = labels(0, 1).astype(np.float32), np.full(SIZE, 0.5, np.float32)
    for values, helps in ((whole, True), (half, False)):
        (root / "train" / "masks" / "a.png").unlink(missing_ok=True)
        Image.fromarray(values).save(root / "train" / "masks" / "a.tif")
        (finding,) = [f for f in check(root).report["findings"] if f["kind"] == "mask-kind"]
        assert ("--fix" in finding["fix"]) == helps
        fixed = check(root, "--fix", root.parent / f"copy{helps}")
        assert (fixed.code == 0) == helps


def test_a_mask_that_is_left_out_is_named_whatever_it_is_called(root: Path, check: Check) -> None:
    put(root, "train/9: x", noise(5), np.repeat(labels(0, 9)[..., None], 3, axis=2))
    fixed = check(root, "--fix", root.parent / "copy")
    assert fixed.code == 8
    (left,) = fixed.report["fix"]["left_out"]
    path = root / "train" / "masks" / "9: x.png"
    assert left == {"file": str(path), "reason": f"{path}: no class is known for 9"}


def write_test_split(root: Path, mask: npt.NDArray[Any], size: tuple[int, int]) -> None:
    """Writes a test split of two frames whose masks are the given label ids."""
    for number in range(2):
        stem = f"berlin_{number:06d}_000019"
        for folder, ending, content in (
            ("leftImg8bit", "leftImg8bit", noise(number, *size, 3)),
            ("gtFine", "gtFine_labelIds", mask),
        ):
            path = root / folder / "test" / "berlin" / f"{stem}_{ending}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(content).save(path)


def test_placeholders_of_a_test_split_are_noted(
    tmp_path: Path, check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    write_test_split(tmp_path, np.resize(np.array([0, 3, 4], np.uint8), SIZE), SIZE)
    checked = check(tmp_path)
    assert checked.code == 0
    assert list(found(checked)) == ["placeholders"]
    write_test_split(tmp_path, np.resize(np.array([0, 7], np.uint8), SIZE), SIZE)
    assert "placeholders" not in found(check(tmp_path))
    shutil.copytree(tmp_path / "leftImg8bit" / "test", tmp_path / "leftImg8bit" / "val")
    shutil.copytree(tmp_path / "gtFine" / "test", tmp_path / "gtFine" / "val")
    for path in tmp_path.glob("gtFine/val/*/*.png"):
        Image.fromarray(np.zeros(SIZE, np.uint8)).save(path)
    capsys.readouterr()
    assert main(["check", str(tmp_path), "--split", "val"]) == 4  # of no other split
    assert "No labelled pixel at all" in capsys.readouterr().out


def test_placeholders_of_a_benchmark(check: Check) -> None:
    checked = check(external_data("cases/cityscapes_test_dummy"), "--dataset", "cityscapes")
    assert checked.code == 0 and "placeholders" in found(checked)
