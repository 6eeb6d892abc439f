"""Pictures that lie on a map: their masks do, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from segdeform.cli import main
from segdeform.data import opening
from segdeform.data.georeference import Georeference, Tag
from segdeform.data.image_io import read_mask
from segdeform.evaluation.folders import score_folders
from segdeform.prediction import place as place_module
from segdeform.prediction import predict as predicting
from segdeform.prediction import reading
from segdeform.prediction.place import earlier_sources
from segdeform.prediction.predict import predict
from segdeform.prediction.records import read_done
from segdeform.windows import Window
from tests.prediction.test_predict import PALETTE, save_picture, segmenter, tree

__all__ = ["segmenter"]  # the fixture

KEYS = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 25832)
PLACE = Georeference(
    (0.5, 0.0, 4000.0, 0.0, -0.25, 9000.0), 25832, (Tag(34735, 3, len(KEYS), KEYS),)
)


def save_geotiff(path: Path, seed: int = 0, place: Georeference = PLACE) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 25, 3), np.uint8)
    tifffile.imwrite(path, pixels, photometric="rgb", extratags=place.tags(), metadata=None)
    return pixels


def expected(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., [1, 0, 2]].argmax(2).astype(np.uint8)


def test_a_mask_keeps_the_place_and_has_the_colours(segmenter: Any, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    pixels = save_geotiff(tmp_path / "in" / "sub" / "a.tif")
    plain = save_picture(tmp_path / "in" / "b.png", 1)
    summary = predict(segmenter, [tmp_path / "in"], tmp_path / "out")
    assert {done.name: done.mask for done in summary.done} == {"b": "png", "sub/a": "tif"}
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / "masks" / "b.png"), expected(plain))
    with rasterio.open(tmp_path / "out" / "masks" / "sub" / "a.tif") as file:
        np.testing.assert_array_equal(file.read(1), expected(pixels))
        assert file.crs.to_epsg() == 25832
        assert tuple(file.transform)[:6] == PLACE.transform
        assert tuple(file.colormap(1)[index][:3] for index in range(3)) == PALETTE


def test_masks_of_both_kinds_are_done_and_scored(segmenter: Any, tmp_path: Path) -> None:
    truth, out = tmp_path / "truth", tmp_path / "out"
    for name, pixels in (
        ("a", save_geotiff(tmp_path / "in" / "a.tif")),
        ("b", save_picture(tmp_path / "in" / "b.png", 1)),
    ):
        truth.mkdir(exist_ok=True)
        Image.fromarray(expected(pixels)).save(truth / f"{name}.png")
    predict(segmenter, [tmp_path / "in"], out)
    before = tree(out)
    assert predict(segmenter, [tmp_path / "in"], out).kept == 2
    assert tree(out) == before
    assert earlier_sources(out) == {
        "a": str((tmp_path / "in" / "a.tif").resolve()),
        "b": str((tmp_path / "in" / "b.png").resolve()),
    }
    evaluation, _ = score_folders(truth, out)
    assert evaluation.counts.matrix.sum() == 20 * 25 + 20 * 24
    assert np.trace(evaluation.counts.matrix) == 20 * 25 + 20 * 24
    (out / "masks" / "a.tif").unlink()
    assert predict(segmenter, [tmp_path / "in"], out).kept == 1
    assert tree(out) == before


def test_a_picture_that_leaves_the_map_has_one_mask(segmenter: Any, tmp_path: Path) -> None:
    picture, masks = tmp_path / "in" / "a.tif", tmp_path / "out" / "masks"
    save_geotiff(picture)
    predict(segmenter, [picture], tmp_path / "out")
    assert [path.name for path in masks.iterdir()] == ["a.tif"]
    save_picture(picture, 3)
    predict(segmenter, [picture], tmp_path / "out")
    assert [path.name for path in masks.iterdir()] == ["a.png"]
    assert read_done(tmp_path / "out")["a"].mask == "png"
    save_geotiff(picture)
    predict(segmenter, [picture], tmp_path / "out")
    assert [path.name for path in masks.iterdir()] == ["a.tif"]
    picture.write_bytes(picture.read_bytes()[:300])
    summary = predict(segmenter, [picture], tmp_path / "out")
    assert len(summary.failed) == 1 and not list(masks.iterdir())
    assert summary.sources == {}


def test_a_part_of_a_picture_lies_where_it_lies(segmenter: Any, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="rasterio is not installed")
    pixels, out = save_geotiff(tmp_path / "a.tif"), tmp_path / "out"
    save_picture(tmp_path / "small.png", size=(9, 30))
    inputs = [tmp_path / "a.tif", tmp_path / "small.png"]
    summary = predict(segmenter, inputs, out, window=Window(7, 3, 10, 20))
    assert [(path.name, "does not lie in" in reason) for path, reason in summary.failed] == [
        ("small.png", True)
    ]
    with rasterio.open(out / "masks" / "a.tif") as file:
        np.testing.assert_array_equal(file.read(1), expected(pixels[7:17, 3:23]))
        assert file.transform @ (0, 0) == PLACE.to_map(3.0, 7.0)
    assert summary.done[0].size == (10, 20)
    assert predict(segmenter, inputs[:1], out, window=Window(7, 3, 10, 20)).kept == 1
    assert predict(segmenter, inputs[:1], out, window=Window(7, 3, 10, 21)).kept == 0
    assert predict(segmenter, inputs[:1], out).done[0].size == (20, 25)


def test_giants_go_the_same_way(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_WHOLE", 0)
    monkeypatch.setattr(opening, "_IN_MEMORY", 0)
    monkeypatch.setattr(reading, "_CUT_OUT", 0)
    monkeypatch.setattr(predicting, "_GIANT", 0)
    truth = {"a": save_geotiff(tmp_path / "in" / "a.tif"), "b": save_picture(tmp_path / "in/b.png")}
    for window in (None, Window(2, 1, 11, 15)):
        names = ("masks", "overlays", "confidence")
        summary = predict(
            segmenter, [tmp_path / "in"], tmp_path / "out", outputs=names, window=window
        )
        assert not summary.failed
        rows, columns = (slice(2, 13), slice(1, 16)) if window else (slice(None), slice(None))
        for name, suffix in (("a", "tif"), ("b", "png")):
            mask = read_mask(tmp_path / "out" / "masks" / f"{name}.{suffix}")
            np.testing.assert_array_equal(mask, expected(truth[name][rows, columns]))


def test_a_deep_giant_that_is_nearly_black_says_so(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "_WHOLE", 0)
    pixels = np.full((20, 25, 3), 4000, np.uint16)
    for high, told in ((4000, True), (40_000, False)):
        pixels[19, 24] = high
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=(16, 16))
        done = predict(segmenter, [tmp_path / "a.tif"], tmp_path / "out").done[0]
        assert ("nearly black" in done.note) == told


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "0,0,0,4", "-1,0,4,4", "a,b,c,d"])
def test_a_window_that_is_none_is_refused(tmp_path: Path, text: str, capsys: Any) -> None:
    save_picture(tmp_path / "a.png")
    words = ["predict", "model", str(tmp_path / "a.png"), "--output", str(tmp_path / "out")]
    assert main([*words, "--window", text]) == 2
    assert f"--window {text}: expected the first row" in capsys.readouterr().err


def test_a_giant_without_a_place_is_a_tiff(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = save_picture(tmp_path / "a.png", 1, (20, 24))
    save_picture(tmp_path / "b.png", 1, (20, 23))
    monkeypatch.setattr(place_module, "_LARGEST_PNG", 20 * 24 - 1)
    predict(segmenter, [tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "out")
    masks = tmp_path / "out" / "masks"
    assert sorted(path.name for path in masks.iterdir()) == ["a.tif", "b.png"]
    np.testing.assert_array_equal(read_mask(masks / "a.tif"), expected(pixels))
