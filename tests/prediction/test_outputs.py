"""Overlays, the sheet and its legend, pixel by pixel where the right pixels are known."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segdeform.prediction import overview as outputs
from segdeform.prediction.overview import legend, overview, thumbnail, write_overview
from segdeform.prediction.records import Done
from segdeform.results.overlay import overlay

PALETTE = ((0, 0, 0), (200, 0, 100), (0, 250, 0))


def test_areas_are_tinted_borders_stronger_and_black_left_alone() -> None:
    image = np.full((5, 9, 3), 100, np.uint8)
    labels = np.zeros((5, 9), np.uint8)
    labels[:, 4:] = 1
    before = image.copy()
    result = overlay(image, labels, PALETTE)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(result[:, :4], 100)
    inside = [100 * 128 // 256 + c * 128 // 256 for c in PALETTE[1]]
    np.testing.assert_allclose(result[:, 5:], np.broadcast_to(inside, (5, 4, 3)), atol=1)
    line = [(100 * 16 + c * 240) / 256 for c in PALETTE[1]]
    np.testing.assert_allclose(result[:, 4], np.broadcast_to(line, (5, 3)), atol=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_pixel_is_mixed_as_is_said(dtype: Any) -> None:
    """A half of the class's colour, 15/16 beside another class, none where its colour is black."""
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (31, 17, 3), np.uint8)
    labels = np.kron(rng.integers(0, 5, (8, 6)), np.ones((4, 3))).astype(dtype)[:31, :17]
    palette = [(250, 3, 7), (0, 0, 0), *rng.integers(0, 256, (3, 3)).tolist()]
    expected = image.astype(int)
    for y, x in np.ndindex(labels.shape):
        near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        inside = [(r, c) for r, c in near if 0 <= r < 31 and 0 <= c < 17]
        border = any(labels[place] != labels[y, x] for place in inside)
        opacity = 240 if border else 128
        if labels[y, x] != 1:
            mixed = image[y, x] * (256.0 - opacity) + np.array(palette[labels[y, x]]) * opacity
            expected[y, x] = mixed // 256
    np.testing.assert_array_equal(overlay(image, labels, palette), expected)


def test_extremes_do_not_overflow() -> None:
    image = np.full((3, 3, 3), 255, np.uint8)
    labels = np.arange(9, dtype=np.uint8).reshape(3, 3) % 2
    result = overlay(image, labels, ((255, 255, 255), (255, 255, 255)))
    np.testing.assert_array_equal(result, 255)


@pytest.mark.parametrize("rows", [1, 2, 3, 1000])
def test_strips_and_in_place_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1200, 11, 3), np.uint8)[:, :, :]
    labels = np.kron(rng.integers(0, 3, (120, 1)), np.ones((10, 11))).astype(np.uint8)
    whole = overlay(image, labels, PALETTE)
    monkeypatch.setattr(sys.modules["segdeform.results.overlay"], "_ROWS", rows)
    assert overlay(image, labels, PALETTE, out=image) is image
    np.testing.assert_array_equal(image, whole)


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (700, 1)])
def test_thin_pictures(shape: tuple[int, int]) -> None:
    image, labels = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.uint8)
    assert overlay(image, labels, PALETTE).shape == (*shape, 3)
    assert min(thumbnail(image).shape) >= 1


@pytest.mark.parametrize("shape", [(100, 50), (240, 320), (960, 640), (6000, 9000)])
def test_thumbnails_fit_and_keep_their_proportions(shape: tuple[int, int]) -> None:
    small = thumbnail(np.full((*shape, 3), 77, np.uint8))
    height, width = small.shape[:2]
    assert height <= 240
    assert width <= 320
    assert abs(height / width - shape[0] / shape[1]) < 0.02
    np.testing.assert_array_equal(small, 77)


def test_every_picture_is_on_the_sheet_with_its_name_below() -> None:
    images = [np.full((20, 130, 3), 100 + 10 * k, np.uint8) for k in range(6)]
    names = ["a", "b/c", "", "street/with/a/very/long/name/indeed-0007", "e", "f"]
    sheet = overview(images, names, columns=4)
    assert sheet.shape == (2 * 46 + 8, 4 * 138 + 8, 3)
    inked = []
    for k, image in enumerate(images):
        top, left = 8 + (k // 4) * 46, 8 + (k % 4) * 138
        np.testing.assert_array_equal(sheet[top : top + 20, left : left + 130], image)
        below = (sheet[top + 20 : top + 38, left : left + 130] < 100).any((0, 2))
        inked.append(int(below.sum()))
    assert inked[2] == 0 and 0 < inked[0] < inked[1] < inked[3]
    np.testing.assert_array_equal(sheet[54:, 2 * 138 + 8 :], 255)
    # The end of a long name is what tells it from its neighbours.
    one, other = (overview(images[:1], [f"{'long/' * 9}indeed-000{k}"])[28:46] for k in (7, 8))
    assert (one != other).any()


def test_pictures_of_other_sizes_stand_in_the_middle_of_their_cells() -> None:
    images = [np.full((20, 100, 3), 10, np.uint8), np.full((8, 11, 3), 20, np.uint8)]
    sheet = overview(images, ["", ""])
    assert sheet.shape == (46 + 8, 2 * 108 + 8, 3)
    np.testing.assert_array_equal(sheet[8:28, 8:108], 10)
    top, left = 8 + (20 - 8) // 2, 116 + (100 - 11) // 2
    np.testing.assert_array_equal(sheet[top : top + 8, left : left + 11], 20)
    assert (sheet == 20).sum() == 8 * 11 * 3


def test_borders_are_wider_on_larger_pictures() -> None:
    for side, half in ((400, 1), (1600, 3)):
        labels = np.zeros((side, side), np.uint8)
        labels[:, side // 2 :] = 1
        tinted = overlay(np.zeros((side, side, 3), np.uint8), labels, ((0, 0, 9), (200, 0, 100)))
        strong = tinted[0, :, 0] > 150
        assert strong.sum() == half and strong[side // 2]


def test_the_legend_wraps_and_shows_every_colour() -> None:
    entries = [(f"class number {k}", (k, 255 - k, 7)) for k in range(30)]
    picture = legend(entries, 400)
    assert picture.shape[1] == 400
    for _, color in entries:
        assert (picture == color).all(2).sum() > 100
    assert legend(entries, 4000).shape[0] < picture.shape[0]
    assert legend([("a very long name " * 20, (1, 2, 3))], 50).shape[1] == 50


def test_overlays_too_large_to_be_decoded_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "overlays").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "overlays" / "a.jpg")
    done = [Done(Path("a.png"), "a", (20, 30), {"x": 1.0})]
    write_overview(tmp_path, done, ("x",), ((9, 9, 9),))
    assert (tmp_path / "overview.png").exists()
    monkeypatch.setattr(outputs, "_MOST_DECODED", 599)
    write_overview(tmp_path, done, ("x",), ((9, 9, 9),))
    assert not (tmp_path / "overview.png").exists()
