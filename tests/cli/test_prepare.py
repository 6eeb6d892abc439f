"""`segdeform prepare`: exit codes, and a data set prepared, trained on, scored and predicted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.helpers.labels import id2label
from numpy.typing import NDArray
from PIL import Image

from segdeform.preparing.shapes import write_shapes
from tests.cli.conftest import Command
from tests.conftest import external_data
from tests.data.cityscapes_frames import write_frames

# A shipped config with a network that trains anywhere.
_KEYS = ("model.backbone=mobilenet_v2", "model.weights=none", "model.head_channels=16")
_STEPS = ("train.steps=2", "train.batch_size=2", "data.crop=[48,64]", "train.precision=fp32")
TINY = ("--workers", 0, *(word for key in (*_KEYS, *_STEPS) for word in ("--set", key)))


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "frames", size=(64, 128))


def test_cityscapes_from_zips_to_masks(
    command: Command, frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archives: list[object] = []
    for part in ("leftImg8bit", "gtFine"):
        archives += ["--archive", tmp_path / f"{part}.zip"]
        with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
            for path in sorted((frames / part).rglob("*.*")):
                archive.write(path, path.relative_to(frames))
    root = tmp_path / "root"
    monkeypatch.setenv("CITYSCAPES_DATASET", str(root))
    prepared = command("prepare", "cityscapes", *archives, "--cache")
    assert prepared.code == 0, prepared.err
    assert "train 4, val 2 pairs" in prepared.out and "cache of train" in prepared.out
    run = tmp_path / "run"
    trained = command("train", "cityscapes", "--output", run, *TINY)
    assert trained.code == 0, trained.err
    assert "pictures from" in trained.err
    scored = json.loads(command("eval", run, "--json").out)
    assert scored["miou"] == json.loads((run / "metrics.json").read_bytes())["miou"]
    masks = tmp_path / "masks"
    predicted = command("predict", run, root / "leftImg8bit/val", "--output", masks)
    assert predicted.code == 0 and "2 pictures predicted" in predicted.out
    assert scored["confusion_matrix"] == _confusion(frames, masks).tolist()


def _confusion(frames: Path, masks: Path) -> NDArray[np.int64]:  # [19, 19]
    """Counts pixels by the label ids of the truth and the official table of train ids."""
    matrix = np.zeros((19, 19), np.int64)
    for path in sorted((frames / "gtFine" / "val").rglob("*_labelIds.png")):
        truth = np.array([[id2label[i].trainId for i in row] for row in _pixels(path)])
        stem = path.name.removesuffix("_gtFine_labelIds.png")
        (mask,) = (masks / "masks").rglob(f"{stem}*.png")
        scored = (truth >= 0) & (truth < 255)
        np.add.at(matrix, (truth[scored], _pixels(mask)[scored]), 1)
    assert (matrix.sum(axis=1) > 0).all(), "a class is missing"
    return matrix


def _pixels(path: Path) -> NDArray[np.uint8]:  # [H, W]
    return np.asarray(Image.open(path))


def test_real_voc_pictures_are_trained_on_scored_and_predicted(
    command: Command, tmp_path: Path
) -> None:
    home = external_data("data/VOCdevkit/VOC2012")
    root = tmp_path / "VOC2012"
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    for part in ("JPEGImages", "SegmentationClass"):
        (root / part).symlink_to(home / part)
    for split, count in (("train", 5), ("val", 2)):
        names = (home / "ImageSets" / "Segmentation" / f"{split}.txt").read_text().split()[:count]
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names))
    prepared = command("prepare", "voc", "--output", root)
    assert prepared.code == 0 and "train 5, val 2 pairs" in prepared.out
    run = tmp_path / "run"
    trained = command("train", "voc", "--data", root, "--output", run, *TINY)
    assert trained.code == 0, trained.err
    assert command("eval", run, "--data", root, "--json").code == 0
    picture = home / "JPEGImages" / f"{names[0]}.jpg"
    assert command("predict", run, picture, "--output", tmp_path / "masks").code == 0


def test_each_failure_has_its_code_and_one_line(command: Command, tmp_path: Path) -> None:
    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as archive:
        archive.addfile(tarfile.TarInfo("../escaped"))
    official = tmp_path / "benchmark.tgz"
    official.write_bytes(b"something else")
    for name, archives, code in (
        ("voc", [evil], 6),
        ("voc", [official], 12),
        ("voc", [tmp_path / "none.tar"], 4),
        ("cityscapes", [evil], 6),
        ("cityscapes", [], 4),
        ("camvid", [evil], 2),
    ):
        options = [word for path in archives for word in ("--archive", path)]
        ended = command("prepare", name, "--output", tmp_path / "root", *options)
        assert (ended.code, ended.out) == (code, ""), ended.err
        assert ended.err.startswith("segdeform: ") and ended.err.count("\n") == 1
    assert not (tmp_path / "escaped").exists()


def test_a_disk_that_fills_while_unpacking_is_code_7_and_continued(
    command: Command, frames: Path, tmp_path: Path
) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(frames.rglob("*.*")):
            archive.write(file, file.relative_to(frames))
        archive.writestr("gtFine/train/aachen/large.bin", os.urandom(1 << 20))
    root = tmp_path / "root"
    script = (
        "import resource, sys\nfrom segdeform.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))\n"
        f"sys.exit(main(['prepare', 'cityscapes', '--output', {str(root)!r}, "
        f"'--archive', {str(path)!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 7, ended.stderr
    assert "large.bin" in ended.stderr and ended.stderr.count("\n") == 1
    assert [path.name for path in root.iterdir()] == [".segdeform-unpacking"]
    assert command("prepare", "cityscapes", "--output", root, "--archive", path).code == 0


def test_ctrl_c_is_130_and_the_next_run_goes_on(
    command: Command, frames: Path, tmp_path: Path
) -> None:
    path = tmp_path / "all.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(frames.rglob("*.*")):
            archive.write(file, file.relative_to(frames))
    root = tmp_path / "root"
    # The process stops itself where a user would: after the third file.
    script = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        "from segdeform.cli import main\nfrom segdeform.preparing import archives\n"
        "write, count = archives._write, []\n"
        "def slow(*arguments):\n"
        "    write(*arguments)\n"
        "    count.append(1)\n"
        f"    if len(count) == 3: os.kill(os.getpid(), {int(signal.SIGINT)})\n"
        "archives._write = slow\n"
        f"sys.exit(main(['prepare', 'cityscapes', '--output', {str(root)!r}, "
        f"'--archive', {str(path)!r}]))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ended.returncode == 130, ended.stderr
    assert ended.stderr.startswith("segdeform: interrupted") and ended.stderr.count("\n") == 1
    assert [path.name for path in root.iterdir()] == [".segdeform-unpacking"]
    assert command("prepare", "cityscapes", "--output", root, "--archive", path).code == 0
    assert sorted(path.name for path in root.iterdir()) == ["gtFine", "leftImg8bit"]


def test_a_harder_style_of_shapes_is_drawn_and_belongs_to_shapes_alone(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, object] = {}

    def draw(root: Path, **options: object) -> bool:
        drawn.update(options)
        return write_shapes(root, train=2, val=1, size=64)

    monkeypatch.setattr("segdeform.preparing.prepare.write_shapes", draw)
    words = ("--outline-only", "--deformation", 1.5)
    assert command("prepare", "shapes", "--output", tmp_path / "s", *words).code == 0
    del drawn["progress"]
    assert drawn == {"outline_only": True, "deformation": 1.5}
    refused = command("prepare", "camvid", "--output", tmp_path / "s", "--deformation", 1.5)
    assert refused.code == 2
    assert "--deformation" in refused.err and "camvid" in refused.err
