"""Where on earth the pixels of a picture lie: of GeoTIFFs, and of pictures with a world file.

The tags are those of OGC GeoTIFF 1.1 (https://docs.ogc.org/is/19-008r4/19-008r4.html).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from segdeform.data.bands import BandsFile

Affine = tuple[float, float, float, float, float, float]
Number = TypeVar("Number", float, npt.NDArray[np.float64])

_SCALE, _TIE_POINTS, _MATRIX = 33550, 33922, 34264
_KEYS, _KEY_NUMBERS, _KEY_TEXTS = 34735, 34736, 34737
# Keys of the directory, and values of theirs.
_MODEL_TYPE, _RASTER_TYPE, _GEODETIC, _PROJECTED = 1024, 1025, 2048, 3072
_IS_PROJECTED, _IS_POINT = 1, 2
_PRIVATE = 32767  # from here on numbers mean nothing, or what the writer wants
_MOST_NUMBERS = 1 << 16  # of a tag; tie points can be many
_WORLD_FILE = 4096  # bytes; six numbers are less

# Stored pixel coordinates (x, y) of upright ones, by EXIF orientation, in a picture stored as
# (H, W): x = (xx, xy, whether W is added), y = (yx, yy, whether H is added).
_STORED = {
    2: ((-1, 0, 1), (0, 1, 0)),
    3: ((-1, 0, 1), (0, -1, 1)),
    4: ((1, 0, 0), (0, -1, 1)),
    5: ((0, 1, 0), (1, 0, 0)),
    6: ((0, 1, 0), (-1, 0, 1)),
    7: ((0, -1, 1), (-1, 0, 1)),
    8: ((0, -1, 1), (1, 0, 0)),
}


class Tag(NamedTuple):
    """A tag as `tifffile.TiffWriter.write` takes it in `extratags`."""

    number: int
    kind: int  # 2 text, 3 short, 12 double
    length: int
    value: str | tuple[float, ...]
    once: bool = True


@dataclass(frozen=True)
class Georeference:
    """Leads from the pixels of a picture to a map.

    `transform` is (a, b, c, d, e, f) with X = a x + b y + c and Y = d x + e y + f, where (x, y) =
    (0, 0) is the upper left corner of the upper left pixel, whose middle is (0.5, 0.5): the
    convention of GDAL and rasterio.
    """

    transform: Affine
    epsg: int | None = None  # number of the coordinate reference system, where it has one
    keys: tuple[Tag, ...] = ()  # the GeoKeys as the file has them, for whoever writes a TIFF

    def to_map(self, x: Number, y: Number) -> tuple[Number, Number]:
        """Returns the map coordinates (X, Y) of pixel coordinates; arrays or single numbers."""
        a, b, c, d, e, f = self.transform
        return a * x + b * y + c, d * x + e * y + f

    def of_part(self, top: int, left: int) -> Georeference:
        """Returns that of a part of the picture whose first row and column these are."""
        a, b, _, d, e, _ = self.transform
        x, y = self.to_map(float(left), float(top))
        return replace(self, transform=(a, b, x, d, e, y))

    def upright(self, orientation: int, height: int, width: int) -> Georeference:
        """Returns that of the picture turned upright, which is stored as [height, width]."""
        if orientation not in _STORED:
            return self
        (xx, xy, add_w), (yx, yy, add_h) = _STORED[orientation]
        a, b, c, d, e, f = self.transform
        x, y = add_w * width, add_h * height
        first = (a * xx + b * yx, a * xy + b * yy, a * x + b * y + c)
        second = (d * xx + e * yx, d * xy + e * yy, d * x + e * y + f)
        return replace(self, transform=(*first, *second))

    def tags(self) -> tuple[Tag, ...]:
        """Returns what makes a GeoTIFF of a TIFF: scale and tie point, or a matrix, and the keys.

        Scale and tie point, which more programs know, are for pictures with north above.
        """
        a, b, c, d, e, f = self.transform
        if _raster_type(self.keys) == _IS_POINT:
            c, f = self.to_map(0.5, 0.5)
        if b == 0 == d and a > 0 > e:
            scale, tie = (a, -e, 0.0), (0.0, 0.0, 0.0, c, f, 0.0)
            return (Tag(_SCALE, 12, 3, scale), Tag(_TIE_POINTS, 12, 6, tie), *self.keys)
        matrix = (a, b, 0.0, c, d, e, 0.0, f, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
        return (Tag(_MATRIX, 12, 16, matrix), *self.keys)


def georeference(
    image: Image.Image, path: Path, orientation: int, size: tuple[int, int]
) -> Georeference | None:
    """Returns where the pixels of an opened picture lie once it is upright, or None.

    `size` is that of the upright picture, (H, W). Tags come first, then a world file beside it.
    Control points without a scale and projections by formula (RPC) are left alone.
    """
    found = _of_tags(_tags(image)) or _of_world_file(path)
    height, width = size[::-1] if orientation >= 5 else size
    return None if found is None else found.upright(orientation, height, width)


def _tags(image: Image.Image) -> Mapping[int, Any]:
    numbers = (_SCALE, _TIE_POINTS, _MATRIX, _KEYS, _KEY_NUMBERS, _KEY_TEXTS)
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return {number: image.tag_v2[number] for number in numbers if number in image.tag_v2}
    if isinstance(image, BandsFile):
        page = image.page.tags
        return {number: page.valueof(number) for number in numbers if number in page}
    return {}


def _of_tags(tags: Mapping[int, Any]) -> Georeference | None:
    scale, ties = _numbers(tags.get(_SCALE)), _numbers(tags.get(_TIE_POINTS))
    matrix = _numbers(tags.get(_MATRIX))
    if len(scale) >= 2 and scale[0] and scale[1] and len(ties) >= 6:
        (i, j, _, x, y, _), (across, down) = ties[:6], scale[:2]
        # Writers differ in the sign of the second scale; rows go down all the same.
        down = abs(down)
        transform: Affine = (across, 0.0, x - i * across, 0.0, -down, y + j * down)
    elif len(matrix) == 16:
        transform = (*matrix[0:2], matrix[3], *matrix[4:6], matrix[7])  # type: ignore[assignment]
    else:
        return None
    keys = _keys(tags)
    a, b, c, d, e, f = transform
    if _raster_type(keys) == _IS_POINT:  # what the tags give is the middle of a pixel
        transform = (a, b, c - (a + b) / 2, d, e, f - (d + e) / 2)
    return Georeference(transform, _epsg(keys), keys) if _is_a_map(transform) else None


def _is_a_map(transform: Affine) -> bool:
    a, b, _, d, e, _ = transform
    return all(map(math.isfinite, transform)) and a * e != b * d


def _numbers(value: object) -> tuple[float, ...]:
    if isinstance(value, int | float):
        value = (value,)
    if not isinstance(value, Sequence | np.ndarray) or len(value) > _MOST_NUMBERS:
        return ()
    if not all(isinstance(number, int | float) for number in value):
        return ()
    return tuple(float(number) for number in value)


def _keys(tags: Mapping[int, Any]) -> tuple[Tag, ...]:
    """Takes over the three tags that the keys lie in; none where they are damaged."""
    directory = tuple(int(number) for number in _numbers(tags.get(_KEYS)))
    if len(directory) < 4 or len(directory) % 4 or not all(0 <= n < 1 << 16 for n in directory):
        return ()
    found = [Tag(_KEYS, 3, len(directory), directory)]
    numbers, text = _numbers(tags.get(_KEY_NUMBERS)), tags.get(_KEY_TEXTS)
    if numbers:
        found.append(Tag(_KEY_NUMBERS, 12, len(numbers), numbers))
    if isinstance(text, bytes):
        text = text.decode("latin-1")
    if isinstance(text, str) and text:
        text = text.encode("ascii", "replace").decode()  # which TIFFs hold alone
        found.append(Tag(_KEY_TEXTS, 2, len(text) + 1, text))
    return tuple(found)


def _key(keys: Sequence[Tag], wanted: int) -> int | None:
    """Returns the value of a key that stands in the directory itself."""
    directory = keys[0].value if keys else ()
    assert not isinstance(directory, str)
    for at in range(4, len(directory), 4):
        key, where, _, value = directory[at : at + 4]
        if (key, where) == (wanted, 0):
            return int(value)
    return None


def _raster_type(keys: Sequence[Tag]) -> int | None:
    return _key(keys, _RASTER_TYPE)


def _epsg(keys: Sequence[Tag]) -> int | None:
    projected = _key(keys, _MODEL_TYPE) == _IS_PROJECTED
    number = _key(keys, _PROJECTED if projected else _GEODETIC)
    return number if number is not None and 0 < number < _PRIVATE else None


def _of_world_file(path: Path) -> Georeference | None:
    """Reads the six lines beside a picture (a.jgw, a.jpgw or a.wld of a.jpg), of a pixel's middle.

    They name no coordinate reference system.
    """
    suffix = path.suffix[1:].lower()
    if len(suffix) < 3:
        return None
    endings = (f"{suffix[0]}{suffix[-1]}w", f"{suffix}w", "wld")
    for ending in (*endings, *(ending.upper() for ending in endings)):
        world = path.with_suffix(f".{ending}")
        try:
            if not world.is_file() or world.stat().st_size > _WORLD_FILE:
                continue
            a, d, b, e, x, y = (float(line) for line in world.read_text().split())
        except (OSError, ValueError):
            continue
        transform = (a, b, x - (a + b) / 2, d, e, y - (d + e) / 2)
        return Georeference(transform) if _is_a_map(transform) else None
    return None
