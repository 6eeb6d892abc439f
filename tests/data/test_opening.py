"""Giants that are decoded once into a file, against the same pictures read whole; parts."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from segdeform.data import image_io, opening, rasters
from segdeform.data.image_io import read_image, write_image
from segdeform.data.opening import open_picture
from segdeform.data.rasters import FileRaster, PartOfRaster
from segdeform.data.tiff_windows import TiffRaster
from segdeform.errors import DataError, ResourceError, UnsafeInputError, UsageError
from tests.data.test_deep_pictures import write_png

SIZE = (23, 31)
PARTS = [(0, 23, 0, 31), (5, 9, 3, 20), (22, 23, 30, 31), (7, 7, 3, 9), (0, 23, 4, 5)]


@pytest.fixture(autouse=True)
def _everything_is_a_giant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "_WHOLE", 0)
    monkeypatch.setattr(opening, "_IN_MEMORY", 0)
    monkeypatch.setattr(opening, "_STRIP", 100)


def noise(channels: int = 3, dtype: Any = np.uint8) -> npt.NDArray[Any]:
    return np.random.default_rng(channels).integers(
        0, np.iinfo(dtype).max, (*SIZE, channels), dtype
    )


def agree(path: Path, scratch: Path | None = None, **how: Any) -> None:
    whole = read_image(path, **how)
    pixels = open_picture(path, **how, scratch=scratch).pixels
    assert isinstance(pixels, FileRaster)
    assert pixels.shape == whole.shape
    for top, bottom, left, right in PARTS:
        part = pixels[top:bottom, left:right]
        assert part.dtype == np.uint8
        np.testing.assert_array_equal(part, whole[top:bottom, left:right])


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_giants_are_turned_while_they_are_copied(tmp_path: Path, suffix: str, turn: int) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(noise()).save(path, exif=exif)
    agree(path)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(open_picture(path).pixels[:, :], expected)
    agree(path, bands=(2, 0))


def modes() -> dict[str, Callable[[Path], object]]:
    rgb = Image.fromarray(noise())
    see_through = rgb.quantize(50)
    see_through.info["transparency"] = bytes(range(50))
    return {
        "grey.png": rgb.convert("L").save,
        "one_bit.png": rgb.convert("1").save,
        "alpha.png": Image.fromarray(noise(4)).save,
        "palette.png": rgb.quantize(50).save,
        "see_through.png": see_through.save,
        "grey.jpg": rgb.convert("L").save,
        "cmyk.jpg": rgb.convert("CMYK").save,
        "a.gif": rgb.save,
        "a.bmp": rgb.save,
        "a.ppm": rgb.save,
        "cmyk.tif": rgb.convert("CMYK").save,
    }


@pytest.mark.parametrize("name", sorted(modes()))
def test_every_kind_is_shown_as_it_is_when_small(tmp_path: Path, name: str) -> None:
    modes()[name](tmp_path / name)
    agree(tmp_path / name)
    agree(tmp_path / name, bands=(0, 0))


def test_deep_giants_are_scaled_in_strips(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for channels, colour in ((1, 0), (3, 2), (4, 6), (2, 4)):
        write_png(path, noise(channels, np.uint16), colour)
        agree(path)
        agree(path, value_range=(100, 4095))
        agree(path, bands=(channels - 1, 0), value_range=((0, 900), (5, 60_000)))
    Image.fromarray(np.full(SIZE, -5, np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="no known range"):
        open_picture(tmp_path / "a.tif")


def test_damage_is_told_before_anything_is_predicted(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(noise()).save(path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"a\.jpg: damaged or cut short"):
        open_picture(path)


def test_only_tiffs_may_be_larger_than_what_is_decoded_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_io, "MAX_PIXELS", 23 * 31 - 1)
    for name in ("a.jpg", "a.png", "cmyk.tif"):
        picture = Image.fromarray(noise())
        (picture.convert("CMYK") if name == "cmyk.tif" else picture).save(tmp_path / name)
        with pytest.raises(UnsafeInputError, match="pixels are over the limit"):
            open_picture(tmp_path / name)
    Image.fromarray(noise()).save(tmp_path / "a.tif")
    pixels = open_picture(tmp_path / "a.tif").pixels
    assert isinstance(pixels, TiffRaster)
    np.testing.assert_array_equal(pixels[:, :], noise())
    with pytest.raises(UnsafeInputError, match="pixels are over the limit"):
        read_image(tmp_path / "a.tif")


def test_pillow_has_no_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    rgb = Image.fromarray(noise())
    for name, picture in (("rgb.tif", rgb), ("cmyk.tif", rgb.convert("CMYK")), ("a.png", rgb)):
        picture.save(tmp_path / name)
        assert read_image(tmp_path / name).shape == (*SIZE, 3)
    rgb.convert("CMYK").save(tmp_path / "packed.tif", compression="tiff_lzw")
    assert read_image(tmp_path / "packed.tif").shape == (*SIZE, 3)


def test_the_file_lies_in_the_given_folder_and_has_no_name(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    write_image(tmp_path / "a.png", noise())
    pixels = open_picture(tmp_path / "a.png", scratch=scratch).pixels
    assert isinstance(pixels, FileRaster)
    opened = Path(f"/proc/self/fd/{pixels._file.fileno()}").readlink()
    assert str(opened).startswith(str(scratch)) and not list(scratch.iterdir())
    descriptor = pixels._file.fileno()
    del pixels
    with pytest.raises(OSError):
        os.fstat(descriptor)
    with pytest.raises(UsageError, match="cannot be written"):
        open_picture(tmp_path / "a.png", scratch=tmp_path / "nowhere")


def test_a_full_disk_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rasters.os, "posix_fallocate", full)
    write_image(tmp_path / "a.png", noise())
    with pytest.raises(ResourceError, match="No space left on device"):
        open_picture(tmp_path / "a.png", scratch=tmp_path)


def test_small_pictures_are_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "a.png", noise())
    Image.fromarray(noise()).save(tmp_path / "a.tif")
    monkeypatch.setattr(opening, "_WHOLE", SIZE[0] * SIZE[1])
    for name in ("a.png", "a.tif"):
        assert isinstance(open_picture(tmp_path / name).pixels, np.ndarray)
    monkeypatch.setattr(opening, "_WHOLE", SIZE[0] * SIZE[1] - 1)
    monkeypatch.setattr(opening, "_IN_MEMORY", SIZE[0] * SIZE[1])
    assert isinstance(open_picture(tmp_path / "a.png").pixels, np.ndarray)
    assert isinstance(open_picture(tmp_path / "a.tif").pixels, TiffRaster)


def test_a_part_is_a_picture_of_its_own() -> None:
    whole = noise()
    part = PartOfRaster(whole, top=4, left=7, height=11, width=24)
    assert part.shape == (11, 24, 3)
    np.testing.assert_array_equal(part[:, :], whole[4:15, 7:31])
    np.testing.assert_array_equal(part[2:5, 20:99], whole[6:9, 27:31])
    np.testing.assert_array_equal(PartOfRaster(part, 1, 2, 3, 4)[1:, :-1], whole[6:8, 9:12])
    for where in ((-1, 0, 3, 3), (0, 0, 0, 3), (20, 0, 4, 3), (0, 30, 1, 2)):
        with pytest.raises(DataError, match=r"part of"):
            PartOfRaster(whole, *where)
    with pytest.raises(IndexError, match="without a step"):
        _ = part[::2, :]


def test_the_system_may_read_and_write_less_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.preadv, os.pwrite
    monkeypatch.setattr(rasters.os, "preadv", lambda f, b, at: read(f, [b[0][:7]], at))
    monkeypatch.setattr(rasters.os, "pwrite", lambda f, b, at: write(f, b[:5], at))
    raster = FileRaster((*SIZE, 3))
    raster.put(0, 0, noise())
    raster.put(3, 2, noise()[:4, :5])
    expected = noise()
    expected[3:7, 2:7] = noise()[:4, :5]
    np.testing.assert_array_equal(raster[:, :], expected)
    np.testing.assert_array_equal(raster[2:9, 1:8], expected[2:9, 1:8])
    os.truncate(raster._file.fileno(), 100)
    with pytest.raises(ResourceError, match="cut short"):
        _ = raster[:, :]
