"""`segdeform prepare folder` from raw folders to trained and compared folds, as a user types it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeform.data.voc import CLASSES
from tests.cli.conftest import Command
from tests.cli.test_prepare import TINY
from tests.conftest import external_data
from tests.preparing.folder.raw_folders import put_mask, raw_folders

_COLD = ("--set", "train.warmup_steps=0")
NAMES = [f"p{letter}" for letter in "abcdefghij"]


def voc_sample(tmp_path: Path, count: int, without: int) -> tuple[Path, Path]:
    """Copies VOC pictures into image/ and masks into masks/NAME_mask.png, some without a mask."""
    home = external_data("data/VOCdevkit/VOC2012")
    images, masks = tmp_path / "image", tmp_path / "masks"
    images.mkdir()
    masks.mkdir()
    names = sorted(path.stem for path in (home / "JPEGImages").iterdir())[:count]
    for number, name in enumerate(names):
        (images / f"{name}.jpg").symlink_to(home / "JPEGImages" / f"{name}.jpg")
        if number >= without:
            (masks / f"{name}_mask.png").symlink_to(home / "SegmentationClass" / f"{name}.png")
    return images, masks


def test_pictures_with_some_masks_missing(command: Command, tmp_path: Path) -> None:
    images, masks = voc_sample(tmp_path, 60, 15)
    ended = command(
        *("prepare", "folder", "--images", images, "--masks", masks),
        *("--output", tmp_path / "voc", "--classes", ",".join(CLASSES)),
    )
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0] == "paired: 45 of 60 pictures, by NAME_mask"
    assert lines[1].startswith("left out: 15 pictures without a mask (") and "..." in lines[1]
    assert "│ 15 person" in ended.out and "train 36, val 9 pairs, 21 classes" in ended.out
    assert lines[-1] == f"Next: segdeform train folder --data {tmp_path / 'voc'} --output RUN"
    record = json.loads((tmp_path / "voc" / "prepare.json").read_bytes())
    assert len(record["left_out"]["pictures without a mask"]) == 15
    assert command("check", tmp_path / "voc").code == 0


def test_black_and_white_masks_of_a_thin_class(command: Command, tmp_path: Path) -> None:
    """CamVid's poles: 0.9% of the pixels, in folders without a split."""
    root = external_data("data/camvid/val")
    for image in sorted((root / "images").iterdir())[:20]:
        mask = np.asarray(Image.open(root / "masks" / f"{image.stem}.png"))
        for folder in ("i", "m"):
            (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / "i" / image.name).symlink_to(image)
        Image.fromarray(np.where(mask == 2, 255, 0).astype(np.uint8)).save(
            tmp_path / "m" / f"{image.stem}.png"
        )
    ended = command(
        *("prepare", "folder", "--images", tmp_path / "i", "--masks", tmp_path / "m"),
        *("--output", tmp_path / "out", "--classes", "rest,pole", "--json"),
    )
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["classes"] == ["rest", "pole"] and 0.002 < found["shares"][1] < 0.02
    assert any("look like video" in line for line in found["split_by"])
    assert "label_mapping: {0: 0, 255: 1}" in (tmp_path / "out" / "data.yaml").read_text()


def test_folds_are_trained_scored_and_compared_by_name(command: Command, tmp_path: Path) -> None:
    images, masks = raw_folders(tmp_path, NAMES, values=(0, 255, 255, 255))
    out = tmp_path / "out"
    words = ("prepare", "folder", "--images", images, "--masks", masks, "--output", out)
    ended = command(*words, "--folds", 2)
    assert ended.code == 0, ended.err
    (line,) = (line for line in ended.out.splitlines() if line.startswith("A fold: segdeform "))
    sets = shlex.split(line)[shlex.split(line).index("RUN") + 1 :]
    assert sets == [
        *("--set", "data.train_split=except-fold1", "--set", "data.val_split=fold1"),
    ]
    for fold in (1, 2):
        run = tmp_path / f"run{fold}"
        own = [word.replace("fold1", f"fold{fold}") for word in sets]
        trained = command("train", "folder", "--data", out, "--output", run, *TINY, *own, *_COLD)
        assert trained.code == 0, trained.err
        for side in ("a", "b"):
            scored = command(
                *("eval", run, "--data", out, "--split", f"fold{fold}"),
                *("--output", tmp_path / side / f"fold{fold}"),
            )
            assert scored.code == 0, scored.err
    compared = command("compare", tmp_path / "a", tmp_path / "b", "--json")
    assert compared.code == 0, compared.err
    found = json.loads(compared.out)
    assert found["pictures"] == len(NAMES) and found["miou"]["change"] == 0
    refused = command("eval", tmp_path / "run1", "--data", out, "--split", "fold3")
    assert refused.code == 4 and "fold" in refused.err
    assert command("check", out, "--split", "fold1", "--split", "fold2").code == 0


def test_what_cannot_be_used_is_code_8_and_the_rest_is_there(
    command: Command, tmp_path: Path
) -> None:
    images, masks = raw_folders(tmp_path, NAMES)
    put_mask(masks / "pa.png", [0, 255], (2, 3))
    words = ("prepare", "folder", "--images", images, "--masks", masks)
    ended = command(*words, "--output", tmp_path / "out")
    assert ended.code == 8 and ended.err.count("\n") == 1
    assert "1 pairs cannot be used" in ended.err and "2x3" in ended.err
    assert "Next: " in ended.out and (tmp_path / "out" / "data.yaml").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("voc", "--images", "x"), "--images goes with prepare folder"),
        (("folder", "--split", "0.3"), "--split goes with"),
        (("folder", "--copy"), "--copy goes with"),
        (("folder", "--images", "."), "--masks DIR"),
        (("folder", "--images", ".", "--masks", ".", "--copy", "--link"), "exclude each other"),
        (("folder", "--images", ".", "--masks", ".", "--download"), "not for this"),
        (("folder", "--images", "none", "--masks", "."), "none: no such file or folder"),
    ],
)
def test_options_that_do_not_fit(
    command: Command, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    ended = command("prepare", *words, "--output", tmp_path / "out")
    assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
