"""Label maps written in strips and tiles, as Pillow, OpenCV and rasterio (GDAL) read them."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image

from segdeform.data import image_io, label_files
from segdeform.data.georeference import Georeference, Tag
from segdeform.data.image_io import read_mask, write_index_png
from segdeform.data.label_files import write_index_png_rows, write_index_tiff
from segdeform.errors import ResourceError

NORTH_UP = (0.25, 0.0, 432100.5, 0.0, -0.5, 5812345.25)
TURNED = (0.3, 0.4, 1000.0, -0.4, 0.3, 2000.0)
PALETTE = [(0, 0, 0), (200, 0, 100), (7, 250, 3)]


def labels(height: int, width: int, dtype: Any = np.uint8) -> npt.NDArray[Any]:
    """Few values in patches, and single ones up to the highest of all."""
    rng = np.random.default_rng(height)
    values = rng.integers(0, 3, (height, width)).astype(dtype)
    values[rng.random(values.shape) < 0.1] = np.iinfo(dtype).max
    values[0, 0] = np.iinfo(dtype).max - 3
    return values


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (37, 1), (70, 53)])
@pytest.mark.parametrize("strip", [1, 130, 1 << 20])
def test_a_png_in_strips_is_the_png(
    tmp_path: Path, dtype: Any, size: tuple[int, int], strip: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = labels(*size, dtype)
    before = values.copy()
    monkeypatch.setattr(label_files, "_STRIP", strip)
    path = tmp_path / "sub" / "a.png"
    write_index_png_rows(path, values, PALETTE)
    np.testing.assert_array_equal(values, before)
    np.testing.assert_array_equal(read_mask(path), values)
    write_index_png(tmp_path / "b.png", values, PALETTE)
    with Image.open(path) as image, Image.open(tmp_path / "b.png") as other:
        assert (image.mode, image.size) == (other.mode, other.size)
        assert image.getpalette() == other.getpalette()
        np.testing.assert_array_equal(np.asarray(image), np.asarray(other))
    # Another decoder, which checks what Pillow may not.
    colours = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(colours, cv2.imread(str(tmp_path / "b.png"), -1))


def test_a_giant_png_is_written_in_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_io, "_IN_STRIPS", 5000)
    monkeypatch.setattr(image_io, "_save", lambda *_: pytest.fail("a copy of the whole"))
    values = labels(101, 50)
    columns = np.asfortranarray(values)  # whatever its layout
    write_index_png(tmp_path / "a.png", columns, PALETTE)
    np.testing.assert_array_equal(read_mask(tmp_path / "a.png"), values)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("big", [False, True], ids=["classic", "BigTIFF"])
@pytest.mark.parametrize("transform", [None, NORTH_UP, TURNED], ids=["none", "north up", "turned"])
def test_gdal_reads_labels_colours_and_place(
    tmp_path: Path, dtype: Any, big: bool, transform: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    path = tmp_path / "a.tif"
    values = labels(83, 50, dtype)
    monkeypatch.setattr(label_files, "_TILE", 32)
    monkeypatch.setattr(label_files, "_CLASSIC", 0 if big else 1 << 31)
    epsg_25832 = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 25832)
    keys = (Tag(34735, 3, len(epsg_25832), epsg_25832),)
    place = None if transform is None else Georeference(transform, 25832, keys)
    write_index_tiff(path, values, PALETTE, place)
    np.testing.assert_array_equal(read_mask(path), values)
    with rasterio.open(path) as file:
        assert file.count == 1 and file.dtypes == (np.dtype(dtype).name,)
        np.testing.assert_array_equal(file.read(1), values)
        assert (
            file.block_shapes == [(32, 32)]
            and file.compression.value == "DEFLATE"
            and file.nodata is None
        )
        if dtype == np.uint8:
            shown = file.colormap(1)
            assert [shown[index][:3] for index in range(3)] == PALETTE
            assert all(shown[index] == (224, 224, 224, 255) for index in range(3, 256))
        if transform is not None:
            assert file.crs.to_epsg() == 25832
            np.testing.assert_allclose(tuple(file.transform)[:6], transform, rtol=1e-12)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff == big
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), values)


@pytest.mark.parametrize("write", [write_index_png_rows, write_index_tiff])
def test_a_full_disk_leaves_what_was_there(tmp_path: Path, write: Any) -> None:
    path = tmp_path / ("a.png" if write is write_index_png_rows else "a.tif")
    write(path, labels(20, 30), PALETTE)
    before = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 255, (700, 900), np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    heard = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(ResourceError, match=r"cannot be written.*Free some space"):
            write(path, noise, PALETTE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, heard)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
