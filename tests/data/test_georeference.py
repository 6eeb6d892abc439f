"""Georeferences against rasterio (GDAL): what it writes is read, and what is written it reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from segdeform.data.channels import turned
from segdeform.data.georeference import Georeference, georeference
from segdeform.data.image_io import opened, orientation, upright_size

rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
Affine = rasterio.Affine

NORTH_UP = Affine(0.25, 0, 432100.5, 0, -0.5, 5812345.25)
TURNED = Affine(0.3, 0.4, 1000.0, -0.4, 0.3, 2000.0)
PLACES = [(0.0, 0.0), (3.5, 0.5), (9.0, 7.0)]


def of(path: Path) -> Georeference | None:
    with opened(path) as image:
        return georeference(image, path, orientation(image), upright_size(image))


def write(path: Path, bands: int = 3, **more: Any) -> None:
    profile = {"driver": "GTiff", "width": 9, "height": 7, "count": bands, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, **more) as file:
        file.write(np.random.default_rng(bands).integers(0, 255, (bands, 7, 9), np.uint8))


@pytest.mark.parametrize("bands", [1, 3, 5])  # by Pillow, and by tifffile
@pytest.mark.parametrize("point", [False, True], ids=["area", "point"])
@pytest.mark.parametrize("transform", [NORTH_UP, TURNED], ids=["north up", "turned"])
@pytest.mark.parametrize("crs", ["EPSG:25832", "EPSG:4326", "EPSG:2193"])
def test_geotiffs_lead_to_the_map_as_gdal_says(
    tmp_path: Path, bands: int, point: bool, transform: Any, crs: str
) -> None:
    path, copy = tmp_path / "a.tif", tmp_path / "copy.tif"
    write(path, bands, crs=crs, transform=transform)
    if point:
        with rasterio.open(path, "r+") as file:
            file.update_tags(AREA_OR_POINT="Point")
            file.transform = transform
    found = of(path)
    assert found is not None and found.epsg == int(crs[5:])
    with rasterio.open(path) as file:
        for x, y in PLACES:
            np.testing.assert_allclose(found.to_map(x, y), file.transform @ (x, y), rtol=1e-12)
    tifffile.imwrite(copy, np.zeros((7, 9), np.uint8), extratags=found.tags(), metadata=None)
    with rasterio.open(path) as file, rasterio.open(copy) as again:
        assert again.crs == file.crs
        assert again.transform.almost_equals(file.transform, 1e-9)
        assert again.tags()["AREA_OR_POINT"] == ("Point" if point else "Area")
    kept = of(copy)
    assert kept is not None and kept.keys == found.keys
    np.testing.assert_allclose(kept.transform, found.transform, rtol=1e-12)


def test_a_system_without_a_number_is_kept_by_its_keys(tmp_path: Path) -> None:
    text = "+proj=laea +lat_0=47 +lon_0=11 +x_0=3 +y_0=7 +ellps=GRS80 +units=m"
    write(tmp_path / "a.tif", crs=rasterio.crs.CRS.from_string(text), transform=NORTH_UP)
    found = of(tmp_path / "a.tif")
    assert found is not None and found.epsg is None
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((7, 9), np.uint8), extratags=found.tags())
    with rasterio.open(tmp_path / "a.tif") as file, rasterio.open(tmp_path / "b.tif") as again:
        assert again.crs == file.crs is not None
        assert again.crs.to_epsg() is None


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("transform", [NORTH_UP, TURNED], ids=["north up", "turned"])
def test_a_turned_picture_lies_where_its_stored_pixels_lie(
    tmp_path: Path, turn: int, transform: Any
) -> None:
    values = np.arange(7 * 9, dtype=np.uint8).reshape(7, 9, 1)
    stored = Georeference(tuple(transform)[:6])
    tags = (*stored.tags(), (274, 3, 1, turn, True))
    tifffile.imwrite(tmp_path / "a.tif", values[..., 0], extratags=tags, metadata=None)
    found = of(tmp_path / "a.tif")
    assert found is not None
    upright = turned(values, turn)[..., 0]
    for row, column in ((0, 0), (2, 1), (6, 5)):
        y, x = np.argwhere(upright == values[row, column, 0])[0]
        expected = transform @ (column + 0.5, row + 0.5)
        np.testing.assert_allclose(found.to_map(x + 0.5, y + 0.5), expected, rtol=1e-12)


def test_a_part_lies_where_it_lies_in_the_whole() -> None:
    whole = Georeference(tuple(TURNED)[:6])
    part = whole.of_part(top=3, left=5)
    x, y = np.array([0.0, 1.5, 4.0]), np.array([2.0, 0.0, 1.25])
    np.testing.assert_allclose(part.to_map(x, y), whole.to_map(x + 5, y + 3), rtol=1e-12)


@pytest.mark.parametrize(
    ("picture", "world"),
    [("a.jpg", "a.jgw"), ("a.png", "a.pgw"), ("a.png", "a.PGW"), ("a.tif", "a.tfw"),
     ("a.jpeg", "a.jgw"), ("a.png", "a.wld"), ("a.jpg", "a.jpgw")],
)  # fmt: skip
def test_world_files_are_read_as_gdal_does(tmp_path: Path, picture: str, world: str) -> None:
    path = tmp_path / picture
    Image.new("RGB", (9, 7)).save(path)
    assert of(path) is None
    a, b, c, d, e, f = tuple(TURNED)[:6]
    (tmp_path / world).write_text(f"{a}\n{d}\n{b}\n{e}\n{c}\n{f}\n")
    found = of(path)
    assert found is not None and found.epsg is None and not found.keys
    (tmp_path / world).rename(tmp_path / "a.wld")  # a name that GDAL takes for all of them
    with rasterio.open(path) as file:
        for x, y in PLACES:
            np.testing.assert_allclose(found.to_map(x, y), file.transform @ (x, y), rtol=1e-12)


def test_rows_go_down_whatever_sign_the_scale_has(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tags = (
        (33550, 12, 3, (0.5, -0.25, 0.0), True),
        (33922, 12, 6, (2.0, 3.0, 0.0, 100.0, 200.0, 0.0), True),
    )
    tifffile.imwrite(path, np.zeros((7, 9), np.uint8), extratags=tags, metadata=None)
    found = of(path)
    assert found is not None
    with rasterio.open(path) as file:
        assert found.transform == tuple(file.transform)[:6]


def test_what_is_no_map_is_no_georeference(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    picture = np.zeros((7, 9), np.uint8)
    tie = (33922, 12, 6, (0.0, 0, 0, 1, 2, 0), True)
    for tags in (
        (tie,),  # without a scale
        ((33550, 12, 3, (0.0, 1, 0), True), tie),
        ((33550, 12, 3, (float("nan"), 1, 0), True), tie),
        ((34264, 12, 16, (1.0, 2, 0, 0, 2, 4) + (0.0,) * 10, True),),  # a line
        ((33550, 2, 4, "abc", True), tie),
    ):
        tifffile.imwrite(path, picture, extratags=tags, metadata=None)
        assert of(path) is None
    for text in ("", "1 2 3", "a b c d e f", "1 0 0 0 5 5", "1\n" * 5000):
        (tmp_path / "a.tfw").write_text(text)
        assert of(path) is None


def test_damaged_keys_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    place = Georeference(tuple(NORTH_UP)[:6]).tags()
    for keys in ((1, 1, 0), (1, 1, 0, 9, 1024, 0, 1), (1,)):
        tags = (*place, (34735, 3, len(keys), keys, True))
        tifffile.imwrite(path, np.zeros((7, 9), np.uint8), extratags=tags, metadata=None)
        found = of(path)
        assert found is not None and found.keys == () and found.epsg is None
