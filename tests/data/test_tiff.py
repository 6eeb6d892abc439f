"""TIFFs of bands and of 16 bits, as geographic and microscope programs write them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from segdeform.data.bands import frame_count
from segdeform.data.image_io import MaskKindError, image_size, opened, read_image, read_mask
from segdeform.errors import DataError, SegdeformError, UnsafeInputError
from tests.conftest import external_data
from tests.data.tiff_files import DEFLATE, GREY, NONE, PACKBITS, RGB, write_tiff

# What the extra bands say of themselves must not change the first three.
EXTRAS = [None, (0,), (1,), (2,)]


def bands(count: int, dtype: Any = np.uint8, size: tuple[int, int] = (7, 10)) -> npt.NDArray[Any]:
    """Bands of small values beside a bright one: premultiplied colours would be divided by it."""
    top = np.iinfo(dtype).max
    values = np.random.default_rng(count).integers(0, top // 2, (*size, count), dtype)
    values[..., 3:] //= 3
    return values


def scaled(values: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The first three bands as 8 bits."""
    first = values[..., :3]
    return first if first.dtype == np.uint8 else np.rint(first / 257).astype(np.uint8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("count", [3, 4, 5, 8])
@pytest.mark.parametrize("photometric", [GREY, RGB])
def test_the_first_three_bands_are_the_colours(
    tmp_path: Path, count: int, photometric: int, dtype: Any
) -> None:
    values = bands(count, dtype)
    further = count - (1 if photometric == GREY else 3)
    for extra in EXTRAS:
        path = tmp_path / "bands.tif"
        tag = extra and extra + (0,) * (further - 1)
        write_tiff(path, values, photometric=photometric, extra=tag if further else None)
        np.testing.assert_array_equal(read_image(path), scaled(values))
        assert image_size(path) == (7, 10)


@pytest.mark.parametrize("planes", [False, True], ids=["by pixel", "by band"])
@pytest.mark.parametrize("big_endian", [False, True], ids=["II", "MM"])
@pytest.mark.parametrize(
    ("compression", "predictor"),
    [(NONE, False), (DEFLATE, False), (DEFLATE, True), (PACKBITS, False)],
)
@pytest.mark.parametrize("tile", [0, 16])
def test_any_layout_of_the_bytes_is_the_same_picture(
    tmp_path: Path, planes: bool, big_endian: bool, compression: int, predictor: bool, tile: int
) -> None:
    for kind, count in ((RGB, 3), (RGB, 5), (GREY, 1), (GREY, 2), (GREY, 3), (GREY, 4)):
        for dtype in (np.uint8, np.uint16):
            values = bands(count, dtype, (21, 19))
            write_tiff(
                tmp_path / "a.tif",
                values,
                photometric=kind,
                extra=(0,) * (count - (3 if kind == RGB else 1)) or None,
                planes=planes,
                big_endian=big_endian,
                compression=compression,
                predictor=predictor,
                rows=16 if tile else 5,
                tile=tile,
            )
            shown = scaled(values)
            expected = shown if count > 2 else np.repeat(shown[..., :1], 3, axis=2)
            np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)
            if count == 1:
                np.testing.assert_array_equal(read_mask(tmp_path / "a.tif"), values[..., 0])


def test_lzw_and_zstandard_bands_are_read(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = bands(6, np.uint16, (40, 33))
    for compression in ("lzw", "zstd"):
        tifffile.imwrite(
            tmp_path / "a.tif", values, photometric="minisblack", compression=compression,
            predictor=True, rowsperstrip=7, planarconfig="contig",
        )  # fmt: skip
        np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), scaled(values))


def test_grey_with_alpha_is_grey(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.uint16):
        for extra in EXTRAS:
            values = bands(2, dtype)
            write_tiff(tmp_path / "a.tif", values, photometric=GREY, extra=extra)
            expected = np.repeat(scaled(values[..., :1]), 3, axis=2)
            np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)


@pytest.mark.parametrize("turn", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535])
@pytest.mark.parametrize("count", [1, 3, 5])
def test_orientations_turn_bands_like_anything_else(tmp_path: Path, turn: int, count: int) -> None:
    values = bands(count)
    write_tiff(tmp_path / "a.tif", values, photometric=GREY if count == 1 else RGB, turn=turn)
    flat = Image.fromarray(np.repeat(values, 3, axis=2) if count == 1 else values[..., :3])
    exif = Image.Exif()
    exif[0x0112] = turn if turn < 10 else 1
    flat.info["exif"] = exif.tobytes()
    expected = np.asarray(ImageOps.exif_transpose(flat))
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif"), expected)
    assert image_size(tmp_path / "a.tif") == expected.shape[:2]


@pytest.mark.parametrize("turn", [3, 5, 6, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_turned_grey_of_one_strip_is_upright(tmp_path: Path, turn: int, dtype: Any) -> None:
    values = bands(1, dtype)
    write_tiff(tmp_path / "strips.tif", values, photometric=GREY, turn=turn, rows=2)
    write_tiff(tmp_path / "one.tif", values, photometric=GREY, turn=turn, rows=7)
    one = read_image(tmp_path / "one.tif")
    np.testing.assert_array_equal(one, read_image(tmp_path / "strips.tif"))
    assert one.shape[:2] == image_size(tmp_path / "one.tif")


@pytest.mark.parametrize("compression", [NONE, DEFLATE, PACKBITS])
@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.uint16])
def test_numbers_of_either_byte_order_are_the_same(
    tmp_path: Path, compression: int, dtype: Any
) -> None:
    values = np.random.default_rng(0).integers(0, 5000, (7, 10, 1)).astype(dtype)
    shown = np.rint(values * (255 / 5000)).astype(np.uint8)
    for big_endian in (False, True):
        write_tiff(
            tmp_path / "a.tif", values, photometric=GREY, big_endian=big_endian,
            compression=compression,
        )  # fmt: skip
        read = read_image(tmp_path / "a.tif", (0, 5000))
        np.testing.assert_array_equal(read, np.repeat(shown, 3, axis=2))


def test_bands_are_no_mask(tmp_path: Path) -> None:
    for count, kind in ((5, "colour-mask"), (3, "colour-mask"), (2, "mask-kind")):
        write_tiff(tmp_path / "a.tif", bands(count), photometric=GREY)
        with pytest.raises(MaskKindError, match="one class index a pixel") as caught:
            read_mask(tmp_path / "a.tif")
        assert caught.value.kind == kind


def test_a_range_can_be_given_to_any_kind_of_number(tmp_path: Path) -> None:
    numbers = np.array([[-2, 0, 1], [3, 6, 8]])
    expected = [[0, 0, 32], [96, 191, 255]]
    for dtype in (np.int16, np.float32, np.float64, np.int32):
        for count in (1, 3):
            values = np.repeat(numbers[..., None], count, axis=2).astype(dtype)
            write_tiff(tmp_path / "a.tif", values, photometric=GREY)
            result = read_image(tmp_path / "a.tif", (0, 8))
            np.testing.assert_array_equal(result, np.repeat(np.array(expected)[..., None], 3, 2))
            with pytest.raises(DataError, match="no known range; write value_range"):
                read_image(tmp_path / "a.tif")


def test_what_cannot_be_read_is_refused_for_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, bands(5), photometric=GREY, compression=34712)  # JPEG 2000
    with pytest.raises(DataError, match=r"a\.tif: a TIFF of 5 bands of uint8.*is not read here"):
        read_image(path)
    write_tiff(path, bands(4), photometric=32803)  # a raw sensor's
    with pytest.raises(DataError, match=r"CFA.*is not read here; save it as RGB"):
        read_image(path)
    for compression in (NONE, DEFLATE, PACKBITS):
        write_tiff(path, bands(5), photometric=GREY, compression=compression)
        whole = path.read_bytes()
        for cut in (20, len(whole) // 2, len(whole) - 30):  # the directory stands at the end
            path.write_bytes(whole[:cut])
            with pytest.raises(DataError, match=r"damaged|cannot be read"):
                read_image(path)


def test_the_limit_of_pixels_holds_for_bands_too(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, bands(5), photometric=GREY, more={256: 30_000, 257: 20_000})
    with pytest.raises(UnsafeInputError, match="megapixels"):
        read_image(path)
    write_tiff(
        path, bands(5), photometric=GREY, tile=16, rows=16, more={322: 1 << 16, 323: 1 << 16}
    )
    with pytest.raises(UnsafeInputError, match="unpacks to"):
        read_image(path)


@settings(max_examples=150, deadline=None)
@given(
    place=st.integers(0, 1000),
    value=st.integers(0, 255),
    length=st.integers(1, 3000),
    compression=st.sampled_from([NONE, DEFLATE, PACKBITS]),
    planes=st.booleans(),
)
def test_a_changed_byte_gives_a_picture_or_a_clean_error(
    tmp_path_factory: pytest.TempPathFactory,
    place: int,
    value: int,
    length: int,
    compression: int,
    planes: bool,
) -> None:
    path = tmp_path_factory.getbasetemp() / "bands.tif"
    write_tiff(path, bands(5), photometric=GREY, compression=compression, planes=planes)
    data = bytearray(path.read_bytes())[:length]
    data[place % len(data)] = value
    path.write_bytes(data)
    for read in (read_image, read_mask, image_size):
        try:
            read(path)
        except SegdeformError as error:
            assert str(path) in str(error)


def test_pages_are_counted_and_overviews_are_not(tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    pages = [Image.fromarray(bands(3)) for _ in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    assert counted(path) == 3
    tifffile = pytest.importorskip("tifffile")
    for count in (3, 5):
        with tifffile.TiffWriter(path) as writer:
            kind = "rgb" if count == 3 else "minisblack"
            writer.write(bands(count), photometric=kind, planarconfig="contig")
            writer.write(bands(count)[::2, ::2], photometric=kind, planarconfig="contig",
                         subfiletype=1)  # fmt: skip
        assert counted(path) == 1
    write_tiff(path, bands(1), photometric=GREY)
    assert counted(path) == 1
    Image.fromarray(bands(1)[..., 0]).save(path, description="ImageJ=1.53k\nimages=12\nslices=12\n")
    assert counted(path) == 12


def counted(path: Path) -> int:
    with opened(path) as image:
        return frame_count(image)


def test_the_tiffs_of_other_programs() -> None:
    folder = external_data("cases/tiff")
    expected = np.asarray(Image.open(folder / "expected.png"))
    paths = sorted(folder.glob("*.tif"))
    assert len(paths) >= 7
    for path in paths:
        np.testing.assert_array_equal(read_image(path), expected, str(path))
