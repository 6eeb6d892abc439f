"""A result in Python: the same files as the command writes, by the name of the file."""

from __future__ import annotations

import json
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeform.data.georeference import Georeference
from segdeform.data.image_io import read_mask
from segdeform.errors import UsageError
from segdeform.results import facts, files, outlines, probabilities, rle
from segdeform.results.maps import Maps
from segdeform.results.outputs import KINDS
from segdeform.results.result import Result

PLACE = Georeference((2.0, 0.0, 10.0, 0.0, -2.0, 50.0), 25832)


@pytest.fixture
def result() -> Result:
    rng = np.random.default_rng(4)
    probabilities = rng.dirichlet(np.ones(3), (9, 14)).transpose(2, 0, 1).astype(np.float16)
    maps = Maps(
        labels=probabilities.argmax(0).astype(np.uint8),
        confidence=(255 * probabilities.max(0)).round().astype(np.uint8),
        probabilities=probabilities,
    )
    image = rng.integers(0, 256, (9, 14, 3)).astype(np.uint8)
    palette = ((0, 0, 0), (200, 0, 0), (0, 0, 200))
    return Result(maps, image, ("sky", "road", "car"), palette, source=Path("street/a.jpg"))


def test_the_name_tells_what_is_written(result: Result, tmp_path: Path) -> None:
    assert result.save(tmp_path) == tmp_path / "a.png"
    assert result.save(str(tmp_path / "new" / "b.tif")) == tmp_path / "new" / "b.tif"
    for name in ("a.png", "new/b.tif"):
        np.testing.assert_array_equal(read_mask(tmp_path / name), result.labels)
    result.save(tmp_path / "a.JPG")
    tinted = np.asarray(Image.open(tmp_path / "a.JPG")).astype(int)
    assert abs(tinted - result.overlay()).mean() < 12  # JPEG of noise
    result.save(tmp_path / "o.png", "overlays")
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "o.png")), result.overlay())
    with np.load(result.save(tmp_path / "a.npz", probabilities_type="uint8")) as file:
        assert abs(file["rows_0"] / 255 - result.probabilities).max() < 0.003
    written = json.loads(result.save(tmp_path / "a.geojson", min_area=2).read_text())
    assert written == result.polygons(min_area=2) != result.polygons()
    rle = json.loads(result.save(tmp_path / "r.json", "rle").read_text())
    assert rle == result.rle() and rle["images"][0]["file_name"] == "a.jpg"
    facts = json.loads(result.save(tmp_path / "a.json").read_text())
    assert facts == result.facts() and facts["size"] == [9, 14]
    cut = np.asarray(Image.open(result.save(tmp_path / "c.png", "cutouts", cutout_class="road")))
    np.testing.assert_array_equal(cut[..., 3] == 255, result.labels == 1)
    grey = np.asarray(Image.open(result.save(tmp_path / "g.png", "confidence")))
    np.testing.assert_array_equal(grey, result.confidence)


def test_what_cannot_be_meant_is_refused(result: Result, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no known suffix. Did you mean '\.geojson'"):
        result.save(tmp_path / "a.geojso")
    with pytest.raises(UsageError, match="Did you mean 'cutouts'"):
        result.save(tmp_path / "a.png", "cutout")
    with pytest.raises(UsageError, match="no class 'rode'"):
        result.save(tmp_path / "a.png", "cutouts", cutout_class="rode")
    with pytest.raises(UsageError, match="cutouts need a class"):
        result.save(tmp_path / "a.png", "cutouts")
    for name, output in [("a.jpg", "masks"), ("a.json", "overlays"), ("a.mp4", "overlays")]:
        with pytest.raises(UsageError, match=rf"{output} are no file that ends in .{name[2:]}: "):
            result.save(tmp_path / name, output)
    for name in ("a" * 300 + ".png", "a\0.png", "a\0/b.png"):
        with pytest.raises(UsageError, match=r"too long|NUL"):
            result.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_result_on_the_map_is_saved_there(result: Result, tmp_path: Path) -> None:
    placed = replace(result, place=PLACE)
    (first, *_) = placed.polygons()["features"]
    assert [10.0, 50.0] in first["geometry"]["coordinates"][0]
    assert placed.facts()["georeference"] == {"transform": PLACE.transform, "epsg": 25832}
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    with rasterio.open(placed.save(tmp_path / "a.tif")) as file:
        assert tuple(file.transform)[:6] == PLACE.transform


@pytest.mark.parametrize(
    "name", ["overlays", "confidence", "probabilities", "polygons", "rle", "cutouts", "json"]
)
def test_nothing_of_the_size_of_a_giant_is_held(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not a byte a pixel, beside what it is made of."""
    monkeypatch.setattr(files, "_IN_STRIPS", 2**16)
    monkeypatch.setattr(outlines, "_STRIP", 2**15)
    monkeypatch.setattr(rle, "_STRIP", 2**15)
    monkeypatch.setattr(probabilities, "_BLOCK", 2**18)
    monkeypatch.setattr(sys.modules["segdeform.results.overlay"], "_MOST_PIXELS", 2**16)
    monkeypatch.setattr(sys.modules["segdeform.results.overlay"], "_STRIP", 2**15)
    for module in (files, facts, sys.modules["segdeform.results.cutout"]):
        monkeypatch.setattr(module, "_ROWS", 16)
    blocks = np.random.default_rng(0).integers(0, 3, (25, 30))
    labels = np.kron(blocks, np.ones((80, 70), np.uint8)).astype(np.uint8)  # 2000 x 2100
    maps = Maps(labels, labels * 80, np.stack([labels.astype(np.float16)] * 3))
    image = np.stack([labels] * 3, 2)
    giant = Result(maps, image, ("sky", "road", "car"), ((0, 9, 0), (200, 0, 0), (0, 0, 200)))
    suffix = KINDS[name].suffixes[0]
    tracemalloc.start()
    try:
        giant.save(tmp_path / f"a.{suffix}", name, cutout_class="car")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.75 * labels.size
