"""Pictures of more than 8 bits, PGMs of odd maxima, and orientations that mean nothing."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from segdeform.data import load_dataset, read_pair
from segdeform.data.cache import cache_folder
from segdeform.data.image_io import image_size, read_image, read_mask
from segdeform.errors import DataError
from tests.conftest import external_data

COLOURS = {0: 1, 2: 3, 4: 2, 6: 4}  # colour type of a PNG -> channels: grey, RGB, with alpha


def write_png(path: Path, values: npt.NDArray[Any], colour: int) -> None:
    """Packs 16-bit samples, [H, W, channels], as the specification of PNG says."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + crc

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def deep(channels: int, top: int = 65535) -> npt.NDArray[np.uint16]:
    return np.random.default_rng(channels).integers(0, top + 1, (5, 8, channels), np.uint16)


def coloured(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """What RGB is of these channels: alpha is dropped, grey is all three."""
    return values[..., :3] if values.shape[2] > 2 else np.repeat(values[..., :1], 3, axis=2)


@pytest.mark.parametrize("colour", COLOURS)
def test_16_bit_pngs_are_divided_by_257_or_by_their_range(tmp_path: Path, colour: int) -> None:
    values = deep(COLOURS[colour])
    write_png(tmp_path / "a.png", values, colour)
    expected = np.rint(coloured(values) / 257)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), expected)
    few = deep(COLOURS[colour], 4095)
    write_png(tmp_path / "a.png", few, colour)
    expected = np.clip(np.rint((coloured(few).astype(float) - 50) / (4000 - 50) * 255), 0, 255)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", (50, 4000)), expected)
    assert expected.max() > 250 and expected.min() < 5
    damaged = (tmp_path / "a.png").read_bytes()[:-30]
    (tmp_path / "a.png").write_bytes(damaged)
    with pytest.raises(DataError, match=r"a\.png"):
        read_image(tmp_path / "a.png")


def test_a_range_leaves_pictures_of_8_bits_alone(tmp_path: Path) -> None:
    pixels = deep(3, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", (0, 4095)), pixels)


@pytest.mark.parametrize("plain", [False, True], ids=["P5", "P2"])
@pytest.mark.parametrize("highest", [1, 20, 100, 254, 255, 256, 1000, 4095, 65534, 65535])
def test_pgm_masks_are_as_stored_and_pictures_full_scale(
    tmp_path: Path, highest: int, plain: bool
) -> None:
    path = tmp_path / "a.pgm"
    values = np.random.default_rng(highest).integers(0, highest + 1, (4, 7))
    values[0, :2] = 0, highest
    if plain:
        content = " ".join(str(value) for value in values.ravel()).encode()
    else:
        content = values.astype(np.uint8 if highest < 256 else ">u2").tobytes()
    path.write_bytes(b"P%d\n# made by hand\n7 4\n%d\n" % (2 if plain else 5, highest) + content)
    np.testing.assert_array_equal(read_mask(path), values)
    shown = read_image(path)
    np.testing.assert_allclose(shown[..., 0], values * 255 / highest, atol=0.51)
    if highest > 255:
        np.testing.assert_array_equal(read_image(path, (0, 255))[..., 1], np.minimum(values, 255))


@pytest.mark.parametrize("plain", [False, True], ids=["P6", "P3"])
@pytest.mark.parametrize("highest", [100, 255, 1000, 65535])
def test_ppms_are_full_scale_or_in_their_range(tmp_path: Path, highest: int, plain: bool) -> None:
    path = tmp_path / "a.ppm"
    values = np.random.default_rng(highest).integers(0, highest + 1, (4, 7, 3))
    if plain:
        content = b"# red, green, blue\n" + " ".join(str(v) for v in values.ravel()).encode()
    else:
        content = values.astype(np.uint8 if highest < 256 else ">u2").tobytes()
    path.write_bytes(b"P%d\n7 4\n%d\n" % (3 if plain else 6, highest) + content)
    np.testing.assert_allclose(read_image(path), values * 255 / highest, atol=0.51)
    if highest > 255:
        np.testing.assert_array_equal(read_image(path, (0, 255)), np.minimum(values, 255))
        path.write_bytes(path.read_bytes()[:40])
        with pytest.raises(DataError, match=r"a\.ppm: damaged"):
            read_image(path)


def test_a_pgm_that_breaks_its_own_maximum_is_damaged(tmp_path: Path) -> None:
    for content in (b"P5\n2 1\n20\n\x05\x15", b"P2\n2 1\n20\n5 21", b"P5 1 1 300 \x01\x90"):
        (tmp_path / "a.pgm").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.pgm"):
            read_mask(tmp_path / "a.pgm")


def test_a_pgm_of_another_program() -> None:
    folder = external_data("cases/masks")
    expected = np.asarray(Image.open(folder / "expected.png"))
    np.testing.assert_array_equal(read_mask(folder / "maxval_20.pgm"), expected)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("turn", [0, 9, 11, 200, 65535])
def test_orientations_that_do_not_exist_turn_nothing(
    tmp_path: Path, suffix: str, turn: int
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = turn
    plain, turned = tmp_path / f"plain.{suffix}", tmp_path / f"turned.{suffix}"
    Image.fromarray(pixels).save(plain)
    Image.fromarray(pixels).save(turned, exif=exif)
    np.testing.assert_array_equal(read_image(turned), read_image(plain))
    assert image_size(turned) == (6, 10)
    if suffix == "png":
        Image.fromarray(pixels[..., 0]).save(turned, exif=exif)
        np.testing.assert_array_equal(read_mask(turned), pixels[..., 0])


@pytest.mark.parametrize("turn", [1, 3, 5, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_the_size_in_the_header_is_that_of_the_picture(
    tmp_path: Path, suffix: str, turn: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.new("RGB", (10, 6)).save(tmp_path / f"a.{suffix}", exif=exif)
    assert image_size(tmp_path / f"a.{suffix}") == read_image(tmp_path / f"a.{suffix}").shape[:2]


def test_a_data_set_is_read_and_cached_in_its_range(tmp_path: Path) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder / "train").mkdir(parents=True)
    values = deep(1, 1023)
    write_png(tmp_path / "images" / "train" / "a.png", values, 0)
    mask = Image.fromarray(np.zeros((5, 8), np.uint8))
    mask.save(tmp_path / "masks" / "train" / "a.png")
    folders = set()
    for given, scale in ((None, 257), ("[0, 1023]", 1023 / 255), ("511", 511 / 255)):
        line = f"value_range: {given}\n" if given else ""
        (tmp_path / "data.yaml").write_text(f"names: [x]\ntrain: images/train\n{line}")
        dataset = load_dataset("folder", tmp_path, "train")
        expected = np.minimum(np.rint(coloured(values) / scale), 255)
        np.testing.assert_array_equal(read_pair(dataset, 0)[0], expected)
        folders.add(cache_folder(dataset))
    assert len(folders) == 3
    assert dataset.as_read_by((0, 9), None).value_range == (0, 511)
    (tmp_path / "data.yaml").write_text("names: [x]\ntrain: images/train\n")
    assert load_dataset("folder", tmp_path, "train").as_read_by((0, 9), None).value_range == (0, 9)


@pytest.mark.parametrize("given", ["[1]", "[3, 3]", "[5, 2]", "[0, x]", "x", "[0, .nan]", "-1"])
def test_a_range_that_is_none_is_refused(tmp_path: Path, given: str) -> None:
    (tmp_path / "images" / "train").mkdir(parents=True)
    (tmp_path / "masks" / "train").mkdir(parents=True)
    write_png(tmp_path / "images" / "train" / "a.png", deep(1), 0)
    write_png(tmp_path / "masks" / "train" / "a.png", deep(1), 0)
    text = f"names: [x]\ntrain: images/train\nvalue_range: {given}\n"
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=r"data\.yaml: value_range is \[lowest, highest\]"):
        load_dataset("folder", tmp_path, "train")
