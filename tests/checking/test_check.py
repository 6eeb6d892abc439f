from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeform.checking import check_sound
from segdeform.data import Dataset, Sample, load_dataset
from segdeform.data.image_io import write_index_png
from segdeform.errors import DataError
from tests.conftest import external_data

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
            "01.jpg: cannot be read: image file is truncated",
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
    with pytest.raises(DataError) as caught:
        check_sound([make(tmp_path, 13, value=5)])
    lines = str(caught.value).split(" | ")
    assert len(lines) == 11
    assert "all masks hold only 0 and 5" in lines[0]  # the reason comes before the 13 files
    assert lines[-1] == f"and 4 more: segdeform check {tmp_path} shows them"


def test_black_and_white_masks_are_not_taken_for_ignored_pixels(tmp_path: Path) -> None:
    dataset = make(tmp_path, 3, value=255)
    with pytest.raises(DataError, match=r"only 0 and 255.*\{0: 0, 255: 1\}"):
        check_sound([dataset])
    write_index_png(tmp_path / "01.png", np.eye(8, 9, dtype=np.uint8), BLACK)
    check_sound([dataset])


def test_camvid_is_sound() -> None:
    root = external_data("data/camvid")
    for split in ("train", "val"):
        check_sound([load_dataset("camvid", root, split)])
