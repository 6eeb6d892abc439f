"""Outlines are valid, of the right area, and give the mask back when they are filled."""

from __future__ import annotations

import builtins
import json
import math
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage
from shapely.geometry import shape

from segdeform.data.georeference import Georeference
from segdeform.errors import UsageError
from segdeform.results import outlines as module
from segdeform.results import polygons as polygons_module
from segdeform.results.outlines import outlines
from segdeform.results.polygons import geojson_text, polygons

NAMES = [f"class {k}" for k in range(9)]


def filled(found: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Draws features by the centres of pixels; -1 where none is. No pixel may be drawn twice."""
    drawn = np.full(size, -1)
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    for feature in found["features"]:
        polygon = shape(feature["geometry"])
        assert polygon.is_valid, shapely.is_valid_reason(polygon)
        assert polygon.exterior.is_ccw and not any(hole.is_ccw for hole in polygon.interiors)
        inside = shapely.contains_xy(polygon, columns, rows)
        assert inside.sum() == feature["properties"]["area"] == polygon.area
        assert (drawn[inside] == -1).all()
        drawn[inside] = feature["properties"]["class_index"]
        assert feature["properties"]["class"] == NAMES[feature["properties"]["class_index"]]
    return drawn


def pattern(*rows: str) -> np.ndarray:
    return np.array([[int(letter) for letter in row] for row in rows], np.uint8)


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)),
    st.sampled_from([1, 20, 2**20]),
)
def test_what_is_filled_is_the_mask(labels: np.ndarray, strip: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_STRIP", strip)
        found = polygons(labels, NAMES)
    np.testing.assert_array_equal(filled(found, labels.shape), labels)
    regions = [ndimage.label(labels == index) for index in range(4)]
    areas = sorted(area for where, _ in regions for area in np.bincount(where.ravel())[1:].tolist())
    assert sorted(feature["properties"]["area"] for feature in found["features"]) == areas


@pytest.mark.parametrize(
    ("labels", "rings"),
    [
        (pattern("101", "111"), [(1, 1), (0, 1)]),  # arms that meet further down
        (pattern("111", "101"), [(1, 1), (0, 1)]),
        (pattern("0000", "0110", "0110", "0000"), [(0, 2), (1, 1)]),  # an island in a hole
        (pattern("00000", "01110", "01210", "01110", "00000"), [(0, 2), (1, 2), (2, 1)]),
        (pattern("100", "010", "001"), [(1, 1), (0, 1), (0, 1), (1, 1), (1, 1)]),  # a diagonal
        # A hole whose corner is one of the outline, and two holes that meet in a corner.
        (pattern("1111", "1011", "1100"), [(1, 2), (0, 1), (0, 1)]),
        (pattern("1111", "1011", "1101", "1111"), [(1, 3), (0, 1), (0, 1)]),
        (pattern("0"), [(0, 1)]),
    ],
)
def test_islands_holes_and_corners(labels: np.ndarray, rings: list[tuple[int, int]]) -> None:
    found = [(outline.label, len(outline.rings)) for outline in outlines(labels)]
    assert found == rings
    np.testing.assert_array_equal(filled(polygons(labels, NAMES), labels.shape), labels)


def test_corners_are_pixel_edges_and_nothing_else() -> None:
    """By hand: an L of three pixels in the upper left corner."""
    (outline,) = outlines(pattern("110", "100"), skip=[0])
    assert outline.rings[0].tolist() == [[0, 0], [2, 0], [2, 1], [1, 1], [1, 2], [0, 2]]
    assert (outline.label, outline.area, len(outline.rings)) == (1, 3, 1)


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(1).integers(0, 3, (61, 43)).astype(np.uint16)
    for simplify in (0, 1.5):
        monkeypatch.undo()
        whole = polygons(labels, NAMES, simplify=simplify)
        for strip in (1, 100, 1000):
            monkeypatch.setattr(module, "_STRIP", strip)
            assert polygons(labels, NAMES, simplify=simplify) == whole


def test_small_regions_and_skipped_classes_are_left_out() -> None:
    labels = pattern("00000", "01020", "01000", "00000")
    found = polygons(labels, NAMES, min_area=2)
    drawn = filled(found, labels.shape)  # what is left out stays a hole
    assert drawn[1, 3] == -1 and (np.delete(drawn.ravel(), 8) == np.delete(labels.ravel(), 8)).all()
    found = polygons(labels, NAMES, skip_classes=["class 0", "class 2"])
    assert [feature["properties"]["class"] for feature in found["features"]] == ["class 1"]
    assert polygons(labels, NAMES, min_area=100)["features"] == []
    with pytest.raises(UsageError, match="Did you mean 'class 2'"):
        polygons(labels, NAMES, skip_classes=["clas 2"])


def test_simpler_outlines_share_their_borders() -> None:
    """A disc cut in two, in a background: no gap and no overlap, a fraction of the corners."""
    y, x = np.mgrid[:120, :150]
    disc = np.hypot(y - 55, x - 70) < 40
    labels = np.where(disc, 1 + (x + y > 125), 0).astype(np.uint8)
    labels[3, 3] = 2
    exact, simple = (polygons(labels, NAMES, simplify=s) for s in (0, 2))
    shapes = [shape(feature["geometry"]) for feature in simple["features"]]
    assert all(polygon.is_valid for polygon in shapes)
    assert sum(polygon.area for polygon in shapes) == pytest.approx(120 * 150)
    assert shapely.union_all(shapes).area == pytest.approx(120 * 150)
    counts = [
        sum(
            shapely.get_num_coordinates(shape(feature["geometry"])) for feature in found["features"]
        )
        for found in (exact, simple)
    ]
    assert counts[1] * 4 < counts[0]
    for before, after in zip(exact["features"], simple["features"], strict=True):
        assert before["properties"] == after["properties"]
        assert shape(before["geometry"]).hausdorff_distance(shape(after["geometry"])) < 4
        assert shape(after["geometry"]).exterior.is_ccw


def test_simpler_outlines_fit_together_where_three_regions_meet() -> None:
    """Stripes end at a straight line, whose other side has no corner of its own there."""
    y, x = np.mgrid[:90, :110]
    stripes = 1 + (y + 4 * np.sin(x / 5)).astype(int) // 15 % 3
    found = polygons(np.where(x < 40, 0, stripes).astype(np.uint8), NAMES, simplify=1.5)
    assert len(found["features"]) > 5
    assert shapely.coverage_is_valid([shape(one["geometry"]) for one in found["features"]])


def test_without_shapely_simpler_outlines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without(name: str, *given: Any, **more: Any) -> Any:
        if name == "shapely":
            raise ImportError(name)
        return imported(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"pip install 'segdeform\[polygons\]'"):
        polygons(pattern("01"), NAMES, simplify=1)
    assert len(polygons(pattern("01"), NAMES)["features"]) == 2


@pytest.mark.parametrize(
    ("transform", "epsg"),
    [
        ((0.3, 0.0, 500_000.1, 0.0, -0.3, 4_100_000.7), 32633),
        ((2.5e-5, 0.0, 13.4, 0.0, -2.5e-5, 52.5), 4326),
        ((0.2, 0.1, 5.0, 0.1, -0.2, 7.0), None),  # turned
        ((2.0, 0.0, 0.0, 0.0, 2.0, 0.0), 3857),  # y down as in the picture
    ],
)
def test_map_coordinates(transform: Any, epsg: int | None) -> None:
    labels = np.random.default_rng(5).integers(0, 3, (14, 11)).astype(np.uint8)
    place = Georeference(transform, epsg)
    found = json.loads("".join(geojson_text(labels, NAMES, georeference=place)))
    assert found == polygons(labels, NAMES, georeference=place)
    name = found.get("crs", {}).get("properties", {}).get("name")
    assert name == (f"urn:ogc:def:crs:EPSG::{epsg}" if epsg in (32633, 3857) else None)
    a, b, _, d, e, _ = transform
    drawn = np.full(labels.shape, -1)
    rows, columns = np.mgrid[:14, :11] + 0.5
    x, y = place.to_map(columns, rows)
    for feature in found["features"]:
        polygon = shape(feature["geometry"])
        assert polygon.is_valid and polygon.exterior.is_ccw
        assert polygon.area == pytest.approx(
            feature["properties"]["area"] * abs(a * e - b * d), rel=0.01
        )
        drawn[shapely.contains_xy(polygon, x, y)] = feature["properties"]["class_index"]
    np.testing.assert_array_equal(drawn, labels)
    corner = found["features"][0]["geometry"]["coordinates"][0]
    upper_left = place.to_map(0.0, 0.0)
    assert min(math.dist(point, upper_left) for point in corner) < 1e-3 * math.hypot(a, d)


@pytest.mark.parametrize("points", [1, 3, 10_000])
def test_the_text_is_the_collection(points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygons_module, "_POINTS", points)
    labels = np.random.default_rng(3).integers(0, 3, (12, 9)).astype(np.uint8)
    for how in ({}, {"min_area": 99}, {"simplify": 1.0}):
        text = "".join(geojson_text(labels, NAMES, **how))
        assert json.loads(text) == polygons(labels, NAMES, **how)
        assert text.count("\n") == max(1, len(polygons(labels, NAMES, **how)["features"])) + 2


def test_too_many_corners_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.random.default_rng(1).integers(0, 3, (50, 50)).astype(np.uint8)
    monkeypatch.setattr(module, "_MOST_CORNERS", 1000)
    with pytest.raises(UsageError, match="--min-area"):
        polygons(labels, NAMES)
    assert polygons(labels, NAMES, min_area=20)["features"]
    monkeypatch.setattr(module, "_MOST_RUNS", 1000)
    with pytest.raises(UsageError, match="too small and too many"):
        polygons(labels, NAMES, min_area=20)
