"""TIFFs in windows against the same pictures read whole, by Pillow or otherwise."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from segdeform.data import opening, tiff_pages
from segdeform.data.channels import BandsError
from segdeform.data.image_io import image_size, read_image
from segdeform.data.opening import open_picture
from segdeform.data.rasters import FileRaster
from segdeform.data.tiff_windows import TiffRaster
from segdeform.errors import DataError, SegdeformError, UnsafeInputError
from tests.data.tiff_files import DEFLATE, GREY, NONE, PACKBITS, RGB, write_tiff

SIZE = (21, 29)
WINDOWS = [
    (0, 21, 0, 29),
    (3, 9, 5, 21),
    (20, 21, 0, 1),
    (0, 16, 16, 29),
    (15, 18, 0, 29),
    (4, 4, 2, 9),
]


@pytest.fixture(autouse=True)
def _everything_is_a_giant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_WHOLE", 0)
    monkeypatch.setattr(opening, "_IN_MEMORY", 0)
    monkeypatch.setattr(opening, "_STRIP", 100)


def values(bands: int, dtype: Any = np.uint8, seed: int = 0) -> npt.NDArray[Any]:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return (rng.random((*SIZE, bands)) * 70_000 - 1000).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(max(info.min, -70_000), min(info.max, 70_000), (*SIZE, bands), dtype)


def agree(
    path: Path,
    kind: type = TiffRaster,
    windows: list[tuple[int, int, int, int]] = WINDOWS,
    **how: Any,
) -> None:
    whole = read_image(path, **how)
    pixels = open_picture(path, **how).pixels
    assert isinstance(pixels, kind), type(pixels)
    assert pixels.shape == whole.shape
    np.testing.assert_array_equal(pixels[:, :], whole)
    for top, bottom, left, right in windows:
        part = pixels[top:bottom, left:right]
        assert part.dtype == np.uint8 and part.flags.c_contiguous  # as torch wants it
        np.testing.assert_array_equal(part, whole[top:bottom, left:right])


KINDS: dict[str, tuple[int, int, Any]] = {  # photometric, bands, type
    "grey": (GREY, 1, np.uint8),
    "white is zero": (0, 1, np.uint8),
    "deep grey": (GREY, 1, np.uint16),
    "rgb": (RGB, 3, np.uint8),
    "deep rgb": (RGB, 3, np.uint16),
    "rgba": (RGB, 4, np.uint8),
    "grey and alpha": (GREY, 2, np.uint8),
    "bands": (GREY, 6, np.uint8),
    "deep bands": (GREY, 5, np.uint16),
    "signed": (GREY, 1, np.int16),
    "signed, 32 bits": (GREY, 1, np.int32),
    "floats": (GREY, 1, np.float32),
    "bands of floats": (GREY, 4, np.float32),
}


@settings(max_examples=250, deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    compression=st.sampled_from([NONE, DEFLATE, PACKBITS]),
    predictor=st.booleans(),
    planes=st.booleans(),
    big_endian=st.booleans(),
    rows=st.sampled_from([1, 2, 5, 16, 21, 40]),
    tiled=st.booleans(),
    turn=st.integers(0, 9),
    ranged=st.sampled_from([None, (-500.0, 30_000.0), (0, 4095)]),
    chosen=st.none() | st.lists(st.integers(0, 5), min_size=1, max_size=4),
    window=st.tuples(*[st.integers(0, 30)] * 4),
    cache=st.sampled_from([0, 2000, 1 << 28]),
)
def test_any_window_of_any_layout_is_that_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory,
    kind: str,
    compression: int,
    predictor: bool,
    planes: bool,
    big_endian: bool,
    rows: int,
    tiled: bool,
    turn: int,
    ranged: Any,
    chosen: list[int] | None,
    window: tuple[int, int, int, int],
    cache: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "windows.tif"
    photometric, bands, dtype = KINDS[kind]
    whole_numbers = np.dtype(dtype).kind == "u"
    write_tiff(
        path,
        values(bands, dtype),
        photometric=photometric,
        extra=(0,) * (bands - (3 if photometric == RGB else 1)) or None,
        planes=planes,
        big_endian=big_endian,
        compression=compression,
        predictor=predictor and whole_numbers and compression == DEFLATE,
        rows=16 if tiled else rows,
        tile=16 if tiled else 0,
        turn=turn or None,
    )
    how: dict[str, Any] = {"value_range": ranged, "bands": tuple(chosen) if chosen else None}
    top, bottom, left, right = window
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiff_pages, "_CACHE", cache)
        patch.setattr(tiff_pages, "_ROWS_AT_ONCE", 0)  # whether it is worth it is not asked here
        try:
            whole = read_image(path, **how)
        except DataError as error:
            with pytest.raises(type(error)) as caught:
                _ = open_picture(path, **how).pixels[:, :]
            assert str(caught.value) == str(error)
            return
        pixels = open_picture(path, **how).pixels
        if photometric != 0 and (whole_numbers or ranged):
            assert isinstance(pixels, TiffRaster)
        assert pixels[:, :].flags.c_contiguous  # as torch wants it
        np.testing.assert_array_equal(pixels[:, :], whole)
        np.testing.assert_array_equal(pixels[top:bottom, left:right], whole[top:bottom, left:right])


def test_one_range_a_channel(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, values(5, np.uint16), photometric=GREY)
    agree(path, value_range=((0, 9000), (5, 60_000), (100, 200)))
    agree(path, value_range=((0, 9000), (5, 60_000)), bands=(4, 1))
    with pytest.raises(DataError, match="not one range for each of its 3 channels"):
        _ = open_picture(path, value_range=((0, 9000), (5, 60_000))).pixels[:2, :2]


@pytest.mark.parametrize("compression", ["lzw", "zstd", "lzma"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_other_compressions(tmp_path: Path, compression: str, dtype: Any) -> None:
    for bands, kind in ((1, "minisblack"), (3, "rgb"), (5, "minisblack")):
        tifffile.imwrite(
            tmp_path / "a.tif", values(bands, dtype).squeeze(), photometric=kind, predictor=True,
            compression=compression, tile=(16, 16), planarconfig="contig" if bands > 1 else None,
        )  # fmt: skip
        whole = values(bands, dtype)
        pixels = open_picture(tmp_path / "a.tif").pixels
        assert isinstance(pixels, TiffRaster)
        first = whole[..., :3] if bands > 1 else np.repeat(whole, 3, axis=2)
        np.testing.assert_array_equal(
            pixels[2:19, 3:28], (first if dtype == np.uint8 else np.rint(first / 257))[2:19, 3:28]
        )
        if compression == "lzw":
            agree(tmp_path / "a.tif")


def test_palettes_are_shown_in_their_colours(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    colours = np.random.default_rng(1).integers(0, 65_536, (3, 256)).astype(np.uint16)
    indices = values(1)[..., 0]
    for tile in (None, (16, 16)):
        tifffile.imwrite(
            path, indices, photometric="palette", colormap=colours, tile=tile, compression="zlib"
        )
        agree(path)
        agree(path, bands=(2, 0, 2))
        with pytest.raises(BandsError, match="has 3 bands"):
            open_picture(path, bands=(3,))
    Image.fromarray(indices).convert("P").save(path)
    agree(path)


@pytest.mark.parametrize("photometric", ["YCBCR", "RGB", "MINISBLACK"])
def test_jpeg_inside_a_tiff_is_what_pillow_decodes(tmp_path: Path, photometric: str) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    count = 1 if photometric == "MINISBLACK" else 3
    smooth = Image.fromarray(values(3)).resize((203, 150), Image.Resampling.BICUBIC)
    pixels = np.asarray(smooth).transpose(2, 0, 1)[:count]
    for layout in ({"tiled": True, "blockxsize": 64, "blockysize": 48}, {"blockysize": 32}):
        with rasterio.open(
            tmp_path / "a.tif", "w", driver="GTiff", width=203, height=150, count=count,
            dtype="uint8", compress="JPEG", photometric=photometric, **layout,
        ) as file:  # fmt: skip
            file.write(pixels)
        agree(tmp_path / "a.tif", windows=[(0, 150, 0, 203), (47, 101, 60, 203), (149, 150, 0, 7)])


def test_a_strip_that_is_another_picture_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    Image.new("RGB", (64, 48)).save(path, compression="jpeg")
    content = path.read_bytes()
    at = content.index(b"\xff\xc0") + 5  # height and width in the JPEG's own header
    path.write_bytes(content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :])
    with pytest.raises(DataError, match="65535x65535 pixels is too large"):
        _ = open_picture(path).pixels[:1, :1]


def test_what_pillow_reads_by_rules_of_its_own_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    rgb = Image.fromarray(values(3))
    for mode in ("1", "CMYK", "LAB", "I"):
        picture = rgb.convert("L").convert(mode) if mode == "I" else rgb.convert(mode)
        picture.save(path, compression="tiff_lzw")
        agree(path, FileRaster)
    rgb.save(path, compression="jpeg", quality=50)
    agree(path)


@pytest.mark.parametrize("turn", [None, 6, 7])
@pytest.mark.parametrize("bands", [1, 3, 5])
@pytest.mark.parametrize("compression", [DEFLATE, NONE])
def test_one_strip_of_all_is_decoded_once(
    tmp_path: Path, turn: int | None, bands: int, compression: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    write_tiff(
        path, values(bands), photometric=GREY if bands == 1 else RGB, rows=SIZE[0], turn=turn,
        compression=compression,
    )  # fmt: skip
    monkeypatch.setattr(tiff_pages, "_LARGEST_SEGMENT", 500)
    kind = FileRaster if compression == DEFLATE else TiffRaster  # what is not packed needs no copy
    agree(path, kind, [(0, 20, 0, 20), (5, 6, 7, 21)])
    write_tiff(
        path, values(bands), photometric=GREY if bands == 1 else RGB, rows=2, turn=turn,
        compression=compression,
    )  # fmt: skip
    agree(path, TiffRaster, [(0, 20, 0, 20), (5, 6, 7, 21)])
    monkeypatch.setattr(tiff_pages, "_CACHE", 2048 * 29 * bands - 1)  # a row of windows
    agree(path, kind, [(0, 20, 0, 20), (5, 6, 7, 21)])


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes the strips and tiles that are decoded from now on."""
    seen: list[int] = []
    decode = tiff_pages.StoredPage._decode

    def count(page: Any, packed: bytes, index: int) -> Any:
        seen.append(index)
        return decode(page, packed, index)

    monkeypatch.setattr(tiff_pages.StoredPage, "_decode", count)
    return seen


def test_a_window_decodes_what_it_meets_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "a.tif", decoded(monkeypatch)
    write_tiff(path, values(3), photometric=RGB, compression=DEFLATE, tile=8, rows=8)  # 3 x 4 tiles
    pixels = open_picture(path).pixels
    assert not seen
    _ = pixels[8:16, 8:16]
    assert seen == [5]
    _ = pixels[7:9, 10:20]
    assert seen == [5, 1, 2, 6]
    _ = pixels[0:24, 0:29]
    assert sorted(seen) == list(range(12))
    write_tiff(path, values(4), photometric=GREY, compression=DEFLATE, planes=True, rows=5)
    seen.clear()
    _ = open_picture(path, bands=(2, 0, 2)).pixels[6:10, 3:4]
    assert sorted(seen) == [1, 11]  # of 5 strips a band


def test_the_cache_holds_what_was_read_last_within_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = tmp_path / "a.tif", decoded(monkeypatch)
    write_tiff(path, values(3), photometric=RGB, compression=DEFLATE, tile=8, rows=8)
    pixels = open_picture(path).pixels
    monkeypatch.setattr(tiff_pages, "_CACHE", 2 * 8 * 8 * 3)
    for left in (0, 8, 0, 16, 0, 8):  # 8 goes when 16 comes, 0 having been read since
        _ = pixels[0:8, left : left + 8]
    assert seen == [0, 1, 2, 1]


def test_threads_share_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, values(3), photometric=RGB, compression=DEFLATE, tile=8, rows=8)
    whole, pixels = read_image(path), open_picture(path).pixels
    monkeypatch.setattr(tiff_pages, "_CACHE", 600)

    def read(seed: int) -> None:
        for top, left in np.random.default_rng(seed).integers(0, 15, (100, 2)):
            part = pixels[top : top + 6, left : left + 9]
            np.testing.assert_array_equal(part, whole[top : top + 6, left : left + 9])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(read, range(4)))


def sparse(
    path: Path,
    size: tuple[int, int],
    tile: int,
    filled: dict[int, int],
    bands: int = 3,
    compression: str | None = "zlib",
) -> None:
    """Writes a BigTIFF of holes but for some tiles, index -> value; one of them is the first."""
    count = -(-size[0] // tile) * -(-size[1] // tile)

    def tiles() -> Iterator[npt.NDArray[np.uint8] | None]:
        for index in range(count):
            value = filled.get(index)
            yield None if value is None else np.full((tile, tile, bands), value, np.uint8)

    with tifffile.TiffWriter(path, bigtiff=True) as file:
        file.write(
            tiles(), shape=(*size, bands), dtype=np.uint8, tile=(tile, tile),
            photometric="rgb" if bands == 3 else "minisblack", planarconfig="contig",
            compression=compression, metadata=None,
        )  # fmt: skip


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("bands", [3, 5])
def test_holes_are_zeros(tmp_path: Path, compression: str | None, bands: int) -> None:
    path = tmp_path / "a.tif"
    sparse(path, (30, 50), 16, {0: 90, 6: 200}, bands, compression)
    expected = np.zeros((30, 50, 3), np.uint8)
    expected[:16, :16], expected[16:, 32:48] = 90, 200
    np.testing.assert_array_equal(read_image(path), expected)
    agree(path, windows=[(0, 30, 0, 50), (10, 20, 20, 40)])


@pytest.mark.parametrize("compression", [NONE, DEFLATE])
@pytest.mark.parametrize("bands", [1, 5])
def test_strips_that_are_holes_are_zeros(tmp_path: Path, compression: int, bands: int) -> None:
    path = tmp_path / "a.tif"
    pixels = values(bands)
    write_tiff(path, pixels, photometric=GREY, compression=compression, rows=5)
    with tifffile.TiffFile(path, mode="r+") as file:
        for tag in (273, 279):
            numbers = list(file.pages[0].tags[tag].value)
            file.pages[0].tags[tag].overwrite(
                [0 if index == 2 else n for index, n in enumerate(numbers)]
            )
    pixels[10:15] = 0
    expected = pixels[..., :3] if bands > 1 else np.repeat(pixels, 3, axis=2)
    np.testing.assert_array_equal(read_image(path), expected)
    agree(path)


def test_differences_mean_nothing_where_bytes_are_not_packed_so(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for compression in (NONE, PACKBITS):
        write_tiff(path, values(1), photometric=GREY, compression=compression)
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags[317].overwrite(2)
        np.testing.assert_array_equal(read_image(path)[..., :1], values(1))
        agree(path, FileRaster)


def test_a_hundred_thousand_squared_is_opened_and_read_in_parts(tmp_path: Path) -> None:
    path, side, tile = tmp_path / "a.tif", 100_000, 1024
    across = -(-side // tile)
    sparse(path, (side, side), tile, {0: 1, 50 * across + 51: 7})
    assert image_size(path) == (side, side)
    tracemalloc.start()
    try:
        pixels = open_picture(path).pixels
        assert pixels.shape == (side, side, 3)
        row, column = 50 * tile, 51 * tile
        part = pixels[row - 3 : row + 5, column - 4 : column + 2]
        last = pixels[side - 2 : side, side - 3 : side]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(part[3:, 4:], 7)
    assert part.sum() == 5 * 2 * 3 * 7 and last.shape == (2, 3, 3)
    assert peak < 32 << 20
    with pytest.raises(UnsafeInputError, match="over the limit of 500 megapixels"):
        read_image(path)


def test_there_is_a_limit_in_windows_too(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for more in ({256: 1 << 21, 257: 1 << 20}, {322: 1 << 16, 323: 1 << 16}):
        write_tiff(
            path, values(5), photometric=GREY, compression=DEFLATE, tile=16, rows=16, more=more
        )
        with pytest.raises(UnsafeInputError, match=r"over the limit of|unpacks to"):
            open_picture(path)


@settings(max_examples=150, deadline=None)
@given(
    place=st.integers(0, 1200),
    value=st.integers(0, 255),
    length=st.integers(1, 3000),
    compression=st.sampled_from([NONE, DEFLATE, PACKBITS]),
    bands=st.sampled_from([1, 3, 5]),
    tile=st.sampled_from([0, 16]),
)
def test_a_changed_byte_gives_pixels_or_a_clean_error(
    tmp_path_factory: pytest.TempPathFactory,
    place: int,
    value: int,
    length: int,
    compression: int,
    bands: int,
    tile: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.tif"
    write_tiff(
        path, values(bands), photometric=GREY if bands == 1 else RGB, compression=compression,
        tile=tile, rows=16 if tile else 3,
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    data[place % len(data)] = value
    path.write_bytes(data[: max(length, len(data) - length)])
    try:
        height, width = image_size(path)
        if height * width < 1 << 22:
            pixels = open_picture(path).pixels
            _ = pixels[: min(height, 50), : min(width, 50)]
    except SegdeformError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("compression", [NONE, DEFLATE])
def test_a_file_that_is_cut_says_so(tmp_path: Path, compression: int) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, values(5), photometric=GREY, compression=compression, more={279: 1 << 20})
    with pytest.raises(DataError, match="damaged or cut short"):
        open_picture(path)
    write_tiff(path, values(5), photometric=GREY, compression=compression, rows=5)
    pixels = open_picture(path).pixels
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"a\.tif: damaged or cut short.*cut off while it was read"):
        _ = pixels[:, :]
