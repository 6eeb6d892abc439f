"""What only the whole of a data set shows, and how the command tells it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeform.checking import KINDS, check_sound
from segdeform.checking.facts import Facts
from segdeform.cli import main
from segdeform.config.loading import load_config
from segdeform.data import Sample, list_dataset
from segdeform.errors import DataError, ResourceError
from tests.checking.conftest import Check

NAMES = ["sky", "road", "car"]


def put(root: Path, split: str, name: str, labels: object, seed: int | None = None) -> None:
    """Writes a pair; the same seed, the same picture."""
    values = np.asarray(labels, np.uint8)
    seed = zlib.crc32(f"{split} {name}".encode()) if seed is None else seed
    pixels = np.random.default_rng(seed).integers(0, 256, (*values.shape, 3), np.uint8)
    for kind, content in (("images", pixels), ("masks", values)):
        path = root / split / kind / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A sound data set: 2 + 1 pairs, 3 classes in both splits."""
    root = tmp_path / "set"
    put(root, "train", "a", [[0, 1, 2, 255], [0, 0, 0, 0]])
    put(root, "train", "b", [[0, 1, 2, 255], [1, 1, 1, 1]])
    put(root, "val", "c", [[0, 1, 2, 2], [2, 2, 2, 2]])
    (root / "classes.json").write_text(json.dumps({"names": NAMES}))
    return root


def kinds(report: dict[str, object]) -> dict[str, int]:
    counts = report["counts"]
    assert isinstance(counts, dict)
    return counts


def test_shares_and_weights_are_those_counted_by_hand(root: Path, check: Check) -> None:
    checked = check(root)
    assert checked.code == 0 and kinds(checked.report) == {}
    train, val = checked.report["splits"]
    assert (train["pixels"], train["ignored_pixels"]) == ([6, 6, 2], 2)
    assert (val["pixels"], val["ignored_pixels"]) == ([1, 1, 6], 0)
    assert checked.report["class_weights"] == [1, 1, pytest.approx(3**0.5, abs=1e-3)]


def test_the_weights_can_be_pasted_into_a_config(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(root)]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("train: {class_weights"))
    (tmp_path / "my.yaml").write_text(line)
    weights = load_config(tmp_path / "my.yaml").train.class_weights
    assert weights is not None and len(weights) == 3
    assert "folder in" in out and "2 road" not in out and "1 road" in out and "nothing found" in out


def test_the_same_picture_in_two_splits_or_twice(root: Path, check: Check) -> None:
    put(root, "val", "d", [[0, 1, 2, 2], [2, 2, 2, 2]], seed=zlib.crc32(b"train a"))
    put(root, "train", "e", [[0, 0, 0, 0], [2, 2, 2, 2]], seed=zlib.crc32(b"train a"))
    # Another file of the same pixels is the same picture.
    with Image.open(root / "val" / "images" / "d.png") as picture:
        picture.save(root / "val" / "images" / "d.png", compress_level=0)
    checked = check(root)
    assert checked.code == 0
    assert kinds(checked.report) == {"leak": 1, "repeated": 1}
    leak, repeated = checked.report["findings"]
    assert leak["file"].endswith("val/images/d.png") and "train/images/a.png" in leak["text"]
    assert repeated["file"].endswith("train/images/e.png")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_pictures_that_differ_in_a_pixel_are_two(root: Path, check: Check, suffix: str) -> None:
    pixels = np.full((64, 64, 3), 128, np.uint8)
    pixels[::2, ::2] = 131  # an eighth of the size is one even grey
    for split, name in (("train", "x"), ("val", "y"), ("val", "z")):
        put(root, split, name, np.zeros((64, 64)))
        (root / split / "images" / f"{name}.png").unlink()
        content = pixels.copy()
        content[9, 9] = 131 if name == "y" else 128
        Image.fromarray(content).save(root / split / "images" / f"{name}{suffix}", quality=100)
    (leak,) = check(root).report["findings"]
    assert leak["kind"] == "leak" and Path(leak["file"]).stem == "z"
    assert f"train/images/x{suffix}" in leak["text"]


def test_absent_classes(root: Path, check: Check) -> None:
    put(root, "val", "c", [[0, 2, 2, 2], [2, 2, 2, 2]])
    put(root, "train", "a", [[0, 1, 1, 255]])
    put(root, "train", "b", [[0, 1, 1, 255]])
    (root / "classes.json").write_text(json.dumps({"names": [*NAMES, "tree"]}))
    found = {
        finding["kind"]: (finding["split"], finding["text"])
        for finding in check(root).report["findings"]
    }
    assert found == {
        "never": ("", "class 3 (tree) occurs in no mask"),
        "absent-train": ("train", "class 2 (car) does not occur in train"),
        "absent": ("val", "class 1 (road) does not occur in val"),
    }


def test_masks_without_a_single_label_are_refused(root: Path, check: Check) -> None:
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        put(root, split, name, [[255, 255]])
    checked = check(root)
    assert checked.code == 4
    assert {"no-labels", "void-mask"} <= set(kinds(checked.report))


def test_everything_that_is_missing_double_or_over_is_listed(root: Path, check: Check) -> None:
    for name in ("m1", "m2"):
        put(root, "train", name, [[0]])
        (root / "train" / "masks" / f"{name}.png").unlink()
    put(root, "train", "over", [[0]])
    (root / "train" / "images" / "over.png").unlink()
    put(root, "val", "two", [[0]])
    (root / "val" / "images" / "two.jpg").write_bytes(b"")
    checked = check(root)
    assert checked.code == 4
    assert kinds(checked.report) == {"missing-mask": 2, "double": 1, "orphan-mask": 1}
    assert [split["pairs"] for split in checked.report["splits"]] == [2, 1]


def test_a_test_split_may_lack_masks_and_training_may_not(root: Path) -> None:
    pictures = tuple(Sample(name, root / "train" / "images" / f"{name}.png", None) for name in "ab")
    train = list_dataset("folder", root, "train")
    report = check_sound([replace(train, split="test", samples=pictures)])
    assert [finding.kind for finding in report.findings] == ["unlabelled"] * 2
    with pytest.raises(DataError, match=r"a\.png: has no mask"):
        check_sound([replace(train, samples=pictures)])


def test_values_that_count_no_classes_without_a_class_list(root: Path, check: Check) -> None:
    (root / "classes.json").unlink()
    put(root, "train", "b", [[0, 1, 2, 200]])
    checked = check(root)
    assert checked.code == 4
    outside = next(f for f in checked.report["findings"] if f["kind"] == "label-outside")
    assert (outside["value"], outside["row"], outside["column"], outside["count"]) == (200, 0, 3, 1)
    assert outside["file"].endswith("train/masks/b.png")
    for split, name in (("train", "a"), ("train", "b"), ("val", "c")):
        put(root, split, name, [[0, 255]])
    assert "binary" in (found := set(kinds(check(root).report))) and "class-values" not in found


def test_a_split_alone_and_a_split_that_is_not_there(root: Path, check: Check) -> None:
    (root / "val" / "masks" / "c.png").write_bytes(b"")
    assert check(root, "--split", "train").code == 0
    assert check(root, "--split", "val").code == 4
    assert check(root).code == 4
    missing = check(root, "--split", "test")
    assert (missing.code, missing.report) == (4, {}) and "'test'" in missing.err


def test_voc_is_known_by_its_layout_and_its_missing_files_are_named(
    tmp_path: Path, check: Check
) -> None:
    home = tmp_path / "VOCdevkit" / "VOC2012"
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (home / folder).mkdir(parents=True)
    (home / "ImageSets" / "Segmentation" / "train.txt").write_text("p1\np2\np3\n")
    for name in ("p1", "p2"):
        Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(home / "JPEGImages" / f"{name}.jpg")
    mask = Image.fromarray(np.full((4, 5), 20, np.uint8))
    for name in ("p1", "p3"):
        mask.save(home / "SegmentationClass" / f"{name}.png")
    checked = check(tmp_path)
    assert checked.code == 4 and checked.report["dataset"] == "voc"
    counts = kinds(checked.report)
    assert (counts["missing-mask"], counts["missing-picture"]) == (1, 1)


def test_hostile_names_stay_on_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "x\n[red]\x1b[2J\r<b>"
    put(root, "train", "x", [[9]])
    for kind in ("images", "masks"):
        (root / "train" / kind / "x.png").rename(root / "train" / kind / f"{name}.png")
    assert main(["check", str(root)]) == 4
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "\r" not in out + err
    assert "x\\n[red]\\x1b[2J\\r<b>.png: label 9 at row 0, column 0" in out
    assert err.count("\n") == 1
    with pytest.raises(DataError) as refused:
        check_sound([list_dataset("folder", root, "train")])
    assert "\n" not in str(refused.value)


def test_long_lists_are_cut_in_the_table_and_whole_in_the_json(
    root: Path, check: Check, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(20):
        put(root, "train", f"bad{index:02d}", [[0, 7]])
    assert main(["check", str(root)]) == 4
    out = capsys.readouterr().out
    assert out.count("masks/bad") == 3 and "and 17 more" in out
    assert len(check(root).report["findings"]) == 20


def test_training_is_told_of_warnings_once_a_kind(root: Path) -> None:
    for index in range(3):
        put(root, "train", f"void{index}", [[255, 255]])
    said: list[str] = []
    check_sound(
        [list_dataset("folder", root, split) for split in ("train", "val")], say=said.append
    )
    assert len(said) == 2
    assert said[0].startswith("data: 6 pairs checked in ")
    assert said[1].startswith("warning: ") and "void0.png" in said[1] and "(and 2 more)" in said[1]


def test_a_split_given_twice_is_no_leak(root: Path) -> None:
    val = list_dataset("folder", root, "val")
    report = check_sound([val, list_dataset("folder", root, "val")])
    assert report.pairs == 1 and not report.findings


def test_a_drive_that_does_not_answer_is_not_waited_for(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segdeform.checking.scan._PATIENCE", 0.05)
    monkeypatch.setattr("segdeform.checking.scan.picture_facts", lambda path: time.sleep(1))
    with pytest.raises(DataError, match="does the drive answer"):
        check_sound([list_dataset("folder", root, "train")])


def test_files_still_being_read_are_waited_for_together(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for index in range(16):
        put(root, "train", f"slow{index}", [[0]])
    release = threading.Event()

    def read(path: Path) -> Facts:
        if path.stem == "a":
            raise ResourceError("no memory")
        release.wait(60)
        return Facts()

    monkeypatch.setattr("segdeform.checking.scan._LAST_FILE", 0.5)
    monkeypatch.setattr("segdeform.checking.scan.picture_facts", read)
    started = time.monotonic()
    with pytest.raises(ResourceError):
        check_sound([list_dataset("folder", root, "train")], workers=16)
    waited = time.monotonic() - started
    release.set()
    assert waited < 5  # one after another: 7.5


def test_ctrl_c_ends_at_once_with_130(root: Path) -> None:
    script = (
        "import os, sys, time, segdeform.checking.scan as scan\n"
        "from segdeform.cli import main\n"
        "def slow(path):\n"
        "    os.write(2, b'reading\\n')\n"
        "    time.sleep(60)\n"
        "scan.picture_facts = slow\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "check", str(root), "--workers", "1"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    assert process.stderr.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)  # the threads sleep for longer
    assert process.returncode == 130
    assert err.splitlines()[-1] == "segdeform: interrupted"


def test_every_kind_says_what_to_do() -> None:
    for kind in KINDS.values():
        assert kind.fix and kind.title[0].isupper()
    severities = [kind.severity for kind in KINDS.values()]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_checking_asks_for_no_network_and_no_torch(root: Path) -> None:
    script = (
        "import sys; from segdeform.cli import main; code = main(['check', sys.argv[1]]);"
        "print({'torch', 'cv2', 'albumentations'} & set(sys.modules), code)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(root)], capture_output=True, text=True, env=os.environ
    )
    assert result.stdout.splitlines()[-1] == "set() 0", result.stderr


def _write_pairs(root: Path, value: int, suffix: str = ".png") -> None:
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        rng = np.random.default_rng(len(split))
        picture = rng.integers(0, 256, (8, 9, 3)).astype(np.uint8)
        Image.fromarray(picture).save(root / split / "images" / "a.png")
        mask = Image.fromarray(np.full((8, 9), value, np.uint8))
        mask.save(root / split / "masks" / f"a{suffix}")
    (root / "classes.txt").write_text("road\ncar\nperson\n")


def test_no_weight_is_suggested_for_what_never_occurs(tmp_path: Path, check: Check) -> None:
    _write_pairs(tmp_path / "one", 1)
    assert check(tmp_path / "one").report["class_weights"] == []
    _write_pairs(tmp_path / "void", 255)
    assert check(tmp_path / "void").report["class_weights"] == []


def test_masks_with_the_suffix_of_a_photograph_are_named(tmp_path: Path, check: Check) -> None:
    _write_pairs(tmp_path, 1, ".jpg")
    checked = check(tmp_path)
    assert checked.code == 4 and checked.kinds("masks/a.jpg") == {"jpeg-mask"}


def test_a_page_replaces_no_file_of_another_kind(tmp_path: Path, check: Check) -> None:
    _write_pairs(tmp_path, 1)
    checked = check(tmp_path, "--html", tmp_path / "classes.txt")
    assert checked.code == 2 and "expected the name of an .html file" in checked.err
    assert (tmp_path / "classes.txt").read_text() == "road\ncar\nperson\n"
