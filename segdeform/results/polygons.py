"""Label maps as GeoJSON polygons: one for each region, with its holes.

Corners are pixel edges, x to the right and y down from the upper left corner of the picture, or map
coordinates where the picture has them. Coordinates are WGS 84 where nothing else is said (RFC
7946); another reference system stands in the member "crs", as in GeoJSON of 2008, which GDAL and
QGIS read and write.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segdeform.data.georeference import Georeference
from segdeform.errors import UsageError, nearest
from segdeform.results.outlines import Outline, outlines
from segdeform.results.overlay import Labels

_WGS84 = 4326
_FINENESS = 1000  # parts of a pixel to which map coordinates are rounded, at least
_POINTS = 10_000  # of a ring made text at a time
Ring = NDArray[np.int64 | np.float64]  # [n, 2]


class Drawn(NamedTuple):
    """A region as it stands in the file."""

    properties: dict[str, Any]
    rings: list[Ring]  # closed, on the map where there is one


def polygons(labels: Labels, classes: Sequence[str], **how: Any) -> dict[str, Any]:
    """Returns a GeoJSON FeatureCollection of all regions; arguments and errors as `drawn` has."""
    features = [
        _feature(one.properties, [ring.tolist() for ring in one.rings])
        for one in drawn(labels, classes, **how)
    ]
    return {**_head(how.get("georeference")), "features": features}


def geojson_text(labels: Labels, classes: Sequence[str], **how: Any) -> Iterator[str]:
    """Yields `polygons` as text bit by bit, a line a feature; never all of a long ring at once."""
    yield f'{json.dumps(_head(how.get("georeference")))[:-1]}, "features": [\n'
    separator, end = "", "]}}"  # of the coordinates, the geometry and the feature
    for one in drawn(labels, classes, **how):
        text = json.dumps(_feature(one.properties, []))
        yield separator + text[: -len(end)]
        for number, ring in enumerate(one.rings):
            yield ", [" if number else "["
            for first in range(0, len(ring), _POINTS):
                yield ", " * bool(first) + json.dumps(ring[first : first + _POINTS].tolist())[1:-1]
            yield "]"
        yield end
        separator = ",\n"
    yield "\n]}\n"


def drawn(
    labels: Labels,  # [H, W]
    classes: Sequence[str],
    *,
    min_area: int = 1,
    simplify: float = 0.0,
    skip_classes: Collection[str] = (),
    georeference: Georeference | None = None,
) -> Iterator[Drawn]:
    """Yields the regions one by one, from the top of the picture down.

    Args:
        min_area: pixels; smaller regions are left out, and stay holes of what surrounds them.
        simplify: pixels; above 0 outlines are smoothed by about this much, borders alike on both
            sides (Visvalingam-Whyatt, by shapely). 0: along the edges of pixels, exactly.
        skip_classes: classes without polygons.

    Raises UsageError for an unknown class, too many regions, or where shapely is not installed.
    """
    for name in skip_classes:
        if name not in classes:
            raise UsageError(f"polygons: no class '{name}'.{nearest(name, classes)}")
    skip = [index for index, name in enumerate(classes) if name in skip_classes]
    found = outlines(labels, min_area=min_area, skip=skip, junctions=simplify > 0)
    for outline, rings in _simplified(list(found), simplify) if simplify else _exact(found):
        properties = {
            "class": classes[outline.label],
            "class_index": outline.label,
            "area": outline.area,  # pixels
        }
        yield Drawn(properties, [_closed(ring, georeference) for ring in rings])


def _feature(properties: Any, coordinates: list[Any]) -> dict[str, Any]:
    return {
        "type": "Feature",
        "properties": properties,
        "geometry": {"type": "Polygon", "coordinates": coordinates},
    }


def _head(georeference: Georeference | None) -> dict[str, Any]:
    head: dict[str, Any] = {"type": "FeatureCollection"}
    if georeference is not None and georeference.epsg not in (None, _WGS84):
        name = f"urn:ogc:def:crs:EPSG::{georeference.epsg}"
        head["crs"] = {"type": "name", "properties": {"name": name}}
    return head


def _exact(found: Iterable[Outline]) -> Iterator[tuple[Outline, Sequence[Ring]]]:
    return ((outline, outline.rings) for outline in found)


def _simplified(
    found: Sequence[Outline], tolerance: float
) -> Iterator[tuple[Outline, Sequence[Ring]]]:
    """Smooths outlines that meet in the same way on both sides."""
    try:
        import shapely
    except ImportError as error:
        raise UsageError(
            "simpler outlines need shapely: pip install 'segdeform[polygons]', or leave --simplify "
            "out"
        ) from error
    whole = [shapely.Polygon(outline.rings[0], outline.rings[1:]) for outline in found]
    for outline, polygon in zip(found, shapely.coverage_simplify(whole, tolerance), strict=True):
        inner = [shapely.LinearRing(ring) for ring in polygon.interiors]
        rings = [_turning(polygon.exterior, True), *(_turning(ring, False) for ring in inner)]
        yield outline, rings


def _turning(ring: Any, anticlockwise: bool) -> Ring:
    corners: NDArray[np.float64] = np.asarray(ring.coords)[:-1]
    return corners if ring.is_ccw == anticlockwise else corners[::-1]


def _closed(ring: Ring, georeference: Georeference | None) -> Ring:
    """Returns a ring whose last point is the first again, on the map where there is one."""
    points = ring
    if georeference is not None:
        a, b, _, d, e, _ = georeference.transform
        x, y = ring.T.astype(np.float64)
        points = np.stack(georeference.to_map(x, y), 1)
        finest = min(math.hypot(a, d), math.hypot(b, e)) / _FINENESS
        points = points.round(max(0, math.ceil(-math.log10(finest))))
        if a * e < b * d:  # y goes up: what was anticlockwise is clockwise now
            points = points[::-1]
    return np.concatenate([points, points[:1]])
