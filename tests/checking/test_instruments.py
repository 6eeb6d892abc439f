"""What a check says of pictures as instruments make them: bands, stacks, places, other formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from segdeform.checking.check import check, list_splits
from segdeform.checking.finding import Finding
from segdeform.cli import main
from segdeform.data import list_dataset, load_dataset
from segdeform.data.unread import unread_kind
from segdeform.errors import DataError
from tests.data.band_sets import band_set, random
from tests.data.tiff_files import GREY, RGB, write_tiff


def findings(root: Path) -> dict[str, list[Finding]]:
    datasets, listing = list_splits("folder", root)
    return check(datasets, listing=listing).by_kind()


def say(root: Path, line: str) -> None:
    text = f"names: [x, y]\ntrain: train/images\nval: val/images\n{line}\n"
    (root / "data.yaml").write_text(text)


def test_bands_that_are_not_used_are_told_once_with_what_to_write(tmp_path: Path) -> None:
    root = band_set(tmp_path / "a", "", count=5)
    (found,) = findings(root)["extra-bands"]
    path = root / "train" / "images" / "0.tif"
    assert found.text == (
        f"{path}: has 5 bands, of which the first three are read, as RGB (6 of 6 pictures do)"
    )
    assert "write bands: [0, 1, 2, 3, 4] into" in found.advice and found.severity == "warning"
    say(root, "bands: [0, 1, 2, 3, 4]")
    assert "extra-bands" not in findings(root)
    say(root, "bands: [0, 2]")
    assert "extra-bands" not in findings(root)


@pytest.mark.parametrize(
    ("count", "photometric", "extra", "told"),
    [
        (3, RGB, None, ""),
        (4, RGB, (1,), ""),  # alpha, premultiplied
        (4, RGB, (2,), ""),
        (4, RGB, (0,), "has 4 bands, of which the first three are read, as RGB"),
        (4, RGB, None, "has 4 bands, of which the first three are read, as RGB"),
        (5, RGB, (2, 0), "has 5 bands, of which the first three are read, as RGB"),
        (2, GREY, (2,), ""),
        (2, GREY, None, "has 2 bands, of which the first is read, as grey"),
        (1, GREY, None, ""),
    ],
)
def test_a_declared_alpha_is_no_band_that_is_missed(
    tmp_path: Path, count: int, photometric: int, extra: tuple[int, ...] | None, told: str
) -> None:
    root = band_set(tmp_path / "a", "", count=3, pairs=1)
    path = root / "train" / "images" / "0.tif"
    write_tiff(path, random(30, 41, count), photometric=photometric, extra=extra)
    found = [finding.text for finding in findings(root).get("extra-bands", [])]
    assert found == ([f"{path}: {told} (1 of 2 pictures do)"] if told else [])


def test_pages_that_are_channels_are_bands_and_others_a_stack(tmp_path: Path) -> None:
    root = band_set(tmp_path / "a", "", count=3, pairs=2)
    first, second = (root / "train" / "images" / f"{number}.tif" for number in (0, 1))
    tifffile.imwrite(first, random(4, 30, 41), imagej=True, metadata={"axes": "CYX"})
    tifffile.imwrite(second, random(6, 31, 41), imagej=True, metadata={"axes": "ZYX"})
    found = findings(root)
    (bands,), (stack,) = found["extra-bands"], found["frames"]
    assert bands.text.startswith(f"{first}: has 4 bands, of which the first is read, as grey (1 of")
    assert stack.text == f"{second}: holds 6 frames or pages"
    assert "the first frame is used: save each" in stack.advice


def test_pictures_without_the_bands_are_errors_by_name(tmp_path: Path) -> None:
    root = band_set(tmp_path / "a", "bands: [0, 4]", count=5, pairs=3)
    path = root / "val" / "images" / "1.tif"
    write_tiff(path, random(31, 41, 4), photometric=GREY)
    (found,) = findings(root)["bands"]
    assert (found.severity, found.file) == ("error", path)
    assert found.text.startswith(f"{path}: has 4 bands, and bands: [0, 4] asks for band 4, counted")
    jpeg = root / "train" / "images" / "0.jpg"
    Image.fromarray(random(30, 41, 3)).save(jpeg)
    jpeg.with_suffix(".tif").unlink()
    assert [finding.file for finding in findings(root)["bands"]] == [jpeg, path]
    say(root, "bands: [2, 0]")
    assert "bands" not in findings(root)


def test_facts_are_remembered_for_the_bands_that_were_looked_at(tmp_path: Path) -> None:
    root = band_set(tmp_path / "a", "bands: [0, 4]", count=5, dtype=np.uint16, pairs=1)
    for split in ("train", "val"):
        values = random(30, 41, 5, dtype=np.uint16) % np.array([1000, 60000, 2000, 9, 500], "u2")
        write_tiff(root / split / "images" / "0.tif", values, photometric=GREY)
    (found,) = findings(root)["value-range"]
    assert "to 999 of 65535" in found.text and "write bits: 10, or value_range: [0, 1023]," in (
        found.advice
    )
    say(root, "bands: [1]")
    assert "value-range" not in findings(root)
    say(root, "bands: [2, 4]\nvalue_range: [[0, 2047], [0, 300]]")
    (clipped,) = findings(root)["clipped"]
    assert "values up to 499, above value_range [0, 300] of channel 1 (2 of 2" in clipped.text


def test_georeference_is_noted_once(tmp_path: Path) -> None:
    root = band_set(tmp_path / "a", "", count=3, pairs=2)
    tags: list[Any] = [(33550, "d", 3, (0.5, 0.5, 0.0), True)]
    for number in (0, 1):  # one that Pillow reads, one that tifffile does
        pixels = random(30 + number, 41, 3, dtype=(np.uint8, np.uint16)[number])
        path = root / "train" / "images" / f"{number}.tif"
        tifffile.imwrite(path, pixels, photometric="rgb", extratags=tags)
    (found,) = findings(root)["georeferenced"]
    assert found.text.endswith("0.tif: says where on earth it lies (2 of 4 pictures do)")
    assert found.severity == "note" and "without it: copy it over" in found.advice


def test_files_that_are_not_read_are_named_with_a_count(tmp_path: Path) -> None:
    root = band_set(tmp_path / "a", "", count=3, pairs=1)
    images = root / "train" / "images"
    names = "a.heic b.HEIF deep/c.hif x.dng y.CR2 s.svs m.czi j.jp2 v.nii.gz .hidden.heic readme.md"
    for name in names.split():
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).write_bytes(b"x")
    (root / "train" / "masks" / "b.npy").write_bytes(b"x")
    found = {text.split(" ", 1)[1]: text for text in map(str, texts(findings(root)))}
    told = [
        "3 files of a kind that is not read here, HEIC, as a.heic: save them as PNG or JPEG",
        "2 files of a kind that is not read here, camera raw, as x.dng: develop them into TIFFs",
        "1 file of a kind that is not read here, whole slide, as s.svs: cut tiles of one level",
        "1 file of a kind that is not read here, microscope, as m.czi: export each picture as a",
        "1 file of a kind that is not read here, JPEG 2000, as j.jp2: save them as TIFF or PNG",
        "1 file of a kind that is not read here, volume, as v.nii.gz: save each slice as a PNG",
        "1 file of a kind that is not read here, array, as b.npy: save each as a TIFF",
    ]
    assert len(found) == len(told)
    for line in told:
        assert any(text.startswith(line) for text in found), line
    assert load_dataset("folder", root, "train").samples  # they stop nothing


def texts(found: dict[str, list[Finding]]) -> list[str]:
    return [finding.text for finding in found["unread-files"]]


def test_a_folder_of_nothing_else_says_what_it_holds(tmp_path: Path) -> None:
    root = band_set(tmp_path / "a", "", count=3, pairs=1)
    for path in (*root.glob("train/*/*"),):
        path.unlink()
    for number in range(3):
        (root / "train" / "images" / f"{number}.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"holds no picture; .*: 3 files of .* HEIC, as 0\.heic"):
        list_dataset("folder", root, "train")


def test_suffixes_that_are_read_are_none_of_these() -> None:
    from segdeform.data.image_io import MASK_SUFFIXES, PICTURE_SUFFIXES

    for suffix in PICTURE_SUFFIXES | MASK_SUFFIXES | {".txt", ".json", ".xml", ".yaml", ".csv"}:
        assert unread_kind(Path(f"a{suffix}")) is None
    for suffix in [
        "heic",
        "heif",
        "avif",
        "dng",
        "cr2",
        "nef",
        "czi",
        "svs",
        "ndpi",
        "lif",
        "nd2",
        "jp2",
        "exr",
        "dcm",
        "nii",
        "npy",
    ]:
        assert unread_kind(Path(f"A.{suffix.upper()}")) is not None


def test_the_command_shows_all_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = band_set(tmp_path / "a", "", count=5, pairs=1)
    (root / "train" / "images" / "x.heic").write_bytes(b"x")
    assert main(["check", str(root), "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert counts["extra-bands"] == counts["unread-files"] == 1
    page = tmp_path / "check.html"
    assert main(["check", str(root), "--html", str(page)]) == 0
    assert "Bands that are not used" in page.read_text()
    say(root, "bands: [4, 0]")  # the page shows pictures of two channels, too
    write_tiff(root / "val" / "images" / "0.tif", random(30, 41, 5), photometric=GREY, turn=3)
    assert main(["check", str(root), "--html", str(page)]) == 0


def test_a_repaired_copy_keeps_bands_and_ranges(tmp_path: Path) -> None:
    root = band_set(tmp_path / "a", "bands: [4, 0]\nvalue_range: [[0, 900], [10, 50]]", count=5)
    shutil.copy(root / "train" / "masks" / "0.png", root / "train" / "masks" / "1.png")  # a size
    turned = root / "train" / "images" / "2.tif"
    write_tiff(turned, random(32, 41, 5), photometric=GREY, turn=3)
    assert main(["check", str(root), "--fix", str(tmp_path / "copy")]) == 8
    copy = load_dataset("folder", tmp_path / "copy", "train")
    assert (copy.bands, copy.value_range) == ((4, 0), ((0, 900), (10, 50)))
    assert [sample.name for sample in copy.samples] == ["0", "2"]
    assert copy.samples[1].image.read_bytes() == turned.read_bytes()
