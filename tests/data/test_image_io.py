from __future__ import annotations

import errno
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from segdeform.data.image_io import (
    image_size,
    opened,
    orientation,
    read_image,
    read_mask,
    upright_size,
    write_image,
    write_index_png,
)
from segdeform.errors import DataError, ResourceError, SegdeformError, UnsafeInputError
from tests.conftest import external_data


def noise(*shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(width: int, height: int, depth: int, color: int, pixels: bytes) -> bytes:
    """Packs a PNG file by hand, as the specification says."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm"])
def test_lossless_pictures_come_back_exactly(tmp_path: Path, name: str) -> None:
    pixels = noise(5, 7, 3)
    Image.fromarray(pixels).save(tmp_path / name)
    np.testing.assert_array_equal(read_image(tmp_path / name), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_exif_orientation_is_that_of_pillow(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"turned.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(6, 9, 3)).save(path, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(read_image(path), expected)
    assert expected.shape[:2] == ((9, 6) if orientation > 4 else (6, 9))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_divided_by_257(tmp_path: Path, suffix: str) -> None:
    values = np.array([[0, 128, 129, 257, 300], [65535, 65407, 65406, 32896, 257 * 77]], np.uint16)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    expected = np.rint(values / 257).astype(np.uint8)
    result = read_image(tmp_path / f"deep.{suffix}")
    np.testing.assert_array_equal(result, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    flat = Image.new("RGB", (8, 4), (255, 255, 255)).convert("RGB")
    image = Image.new("LAB", (8, 4), (255, 128, 128)) if mode == "LAB" else flat.convert(mode)
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr", "LAB") else "a.png")
    image.save(path)
    result = read_image(path)
    assert result.shape == (4, 8, 3)
    assert result.min() >= 250


def test_grey_png_masks_below_8_bits_keep_their_indices(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(png(4, 2, 4, 0, b"\x00\x01\x2f\x00\x9a\xbc"))  # filter byte, 4 bits a pixel
    np.testing.assert_array_equal(read_mask(path), [[0, 1, 2, 15], [9, 10, 11, 12]])
    path.write_bytes(png(4, 1, 2, 0, b"\x00\x1b"))  # 2 bits a pixel: 0 1 2 3
    np.testing.assert_array_equal(read_mask(path), [[0, 1, 2, 3]])


def test_masks_of_16_bits_and_palette_masks_keep_their_values(tmp_path: Path) -> None:
    values = np.array([[0, 300], [65535, 7]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "deep.png"), values)
    few = Image.fromarray(np.array([[0, 1], [3, 2]], np.uint8))
    few.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    few.save(tmp_path / "few.png")  # Pillow packs this into 2 bits a pixel
    np.testing.assert_array_equal(read_mask(tmp_path / "few.png"), [[0, 1], [3, 2]])


def test_what_is_no_index_mask_is_refused(tmp_path: Path) -> None:
    grey = Image.fromarray(noise(4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    grey.convert("RGB").save(tmp_path / "rgb.png")
    grey.save(tmp_path / "grey.jpg")
    grey.convert("1").save(tmp_path / "bits.png")
    grey.convert("F").save(tmp_path / "float.tif")
    grey.save(tmp_path / "turned.png", exif=exif)
    grey.save(tmp_path / "turned.tif", exif=exif)
    for name in ("rgb.png", "grey.jpg", "bits.png", "float.tif", "turned.png", "turned.tif"):
        with pytest.raises(DataError, match=name):
            read_mask(tmp_path / name)


def test_what_is_no_readable_file_is_a_data_error(tmp_path: Path) -> None:
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no picture")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    os.mkfifo(tmp_path / "fifo.jpg")
    for name in ("cut", "empty", "text", "folder", "loop", "fifo", "missing"):
        with pytest.raises(DataError, match=rf"{name}\.jpg") as caught:
            read_image(tmp_path / f"{name}.jpg")
        assert "\n" not in str(caught.value)


def test_the_limit_is_500_megapixels_and_is_seen_in_the_header(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(25_000, 20_001, 8, 0, b""))
    limit = Image.MAX_IMAGE_PIXELS
    for read in (read_image, read_mask):
        with pytest.raises(UnsafeInputError, match="megapixels"):
            read(bomb)
    assert limit == Image.MAX_IMAGE_PIXELS


@settings(max_examples=150, deadline=None)
@given(
    place=st.integers(0, 10_000),
    value=st.integers(0, 255),
    name=st.sampled_from(["a.jpg", "a.png", "a.webp", "a.tif", "a.gif", "a.bmp", "a.ppm"]),
    length=st.integers(1, 10_000),
)
def test_a_changed_byte_gives_a_picture_or_a_clean_error(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, name: str, length: int
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    Image.fromarray(noise(9, 8, 3)).save(path)
    data = bytearray(path.read_bytes())[:length]
    data[place % len(data)] = value
    path.write_bytes(data)
    for read in (read_image, read_mask):
        try:
            read(path)
        except SegdeformError as error:
            assert str(path) in str(error)


def test_awkward_files_give_a_picture_or_a_clean_error() -> None:
    folder = external_data("data/awkward_images")
    readable = set()
    for path in sorted(folder.iterdir()):
        for read in (read_image, read_mask):
            try:
                result = read(path)
            except SegdeformError as error:
                assert str(path) in str(error)
                continue
            if read is read_image:
                readable.add(path.name)
                assert isinstance(result, np.ndarray)
                assert (result.ndim, result.shape[2], result.dtype) == (3, 3, np.uint8)
    assert {"pil_sample_cmyk.jpg", "16bit.r.tif", "frozenpond.mpo", "hopper.gif"} <= readable
    assert {"invalid-exif.jpg", "iss634.webp", "total-pages-zero.tif", "i_trns.png"} <= readable
    assert not {"truncated_jpeg.jpg", "broken_data_stream.png", "zero_width.gif"} & readable


@settings(max_examples=25, deadline=None)
@given(classes=st.integers(1, 255), seed=st.integers(0, 1000))
def test_index_png_round_trip(
    tmp_path_factory: pytest.TempPathFactory, classes: int, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "labels.png"
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, (3, 5)).astype(np.uint8)
    labels[0, 0] = 255
    palette = [tuple(int(v) for v in colour) for colour in rng.integers(0, 256, (classes, 3))]
    write_index_png(path, labels, [(r, g, b) for r, g, b in palette])
    np.testing.assert_array_equal(read_mask(path), labels)
    with Image.open(path) as image:
        assert image.mode == "P"
        shown = np.asarray(image.convert("RGB"))
    expected = np.array([*palette, *[(224, 224, 224)] * (256 - classes)], np.uint8)
    np.testing.assert_array_equal(shown, expected[labels])


def test_labels_of_16_bits_become_a_grey_png_of_16_bits(tmp_path: Path) -> None:
    path = tmp_path / "labels.png"
    labels = np.array([[0, 1, 254], [255, 256, 65535]], np.uint16)
    write_index_png(path, labels, [(1, 2, 3)] * 300)
    assert path.read_bytes()[24:26] == bytes([16, 0]), "IHDR: 16 bits, grey"
    values = read_mask(path)
    assert values.dtype == np.uint16
    np.testing.assert_array_equal(values, labels)
    assert cv2.imread(str(path), cv2.IMREAD_UNCHANGED).tolist() == labels.tolist()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "picture.png"
    write_image(path, noise(4, 4, 3))
    before = path.read_bytes()

    def fill_the_disk(self: Image.Image, file: Path, *_: object, **__: object) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    with pytest.raises(ResourceError, match=r"picture\.png"):
        write_image(path, noise(4, 4, 3, seed=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def with_chunks(path: Path, *behind: tuple[bytes, bytes]) -> None:
    """Writes a PNG with further chunks behind its pixels."""
    content = path.read_bytes()
    end = content.rindex(b"IEND") - 4
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in behind
    )
    path.write_bytes(content[:end] + chunks + content[end:])


@pytest.mark.parametrize("deep", [False, True])
def test_the_turn_of_a_png_is_known_before_it_is_decoded(tmp_path: Path, deep: bool) -> None:
    path = tmp_path / "a.png"
    pixels = np.random.default_rng(0).integers(0, 65_536, (5, 7), np.uint16)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = exif.tobytes().removeprefix(b"Exif\0\0")
    hexed = b"Raw profile type exif\0\nexif\n%8d\n%s\n" % (len(stored), stored.hex().encode())
    for behind, turned in (
        ((b"tEXt", b"date:create\x002026-11-30"), False),
        ((b"eXIf", stored), True),
        ((b"tEXt", hexed), True),
    ):
        picture = Image.fromarray(pixels if deep else pixels.astype(np.uint8))
        picture.save(path)
        with_chunks(path, behind)
        with opened(path) as image:
            assert (orientation(image) == 6) == turned
            assert upright_size(image) == ((7, 5) if turned else (5, 7))
            assert image.tile, "it was decoded"
        shown = np.rint(pixels / 257) if deep else pixels.astype(np.uint8)
        expected = np.rot90(shown, -1) if turned else shown
        np.testing.assert_array_equal(read_image(path)[..., 0], expected)
        assert image_size(path) == expected.shape
