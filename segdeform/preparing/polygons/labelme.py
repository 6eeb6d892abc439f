"""Reads LabelMe's JSON files, one a picture, as they lie beside the pictures or in a folder.

    {"version": "5.5.0", "imagePath": "a.jpg", "imageHeight": 480, "imageWidth": 640,
     "imageData": null, "shapes": [
       {"label": "crack", "shape_type": "polygon", "points": [[10, 10], [90, 10], [50, 80]]},
       {"label": "hole", "shape_type": "circle", "points": [[40, 40], [48, 40]]}]}

- Read are polygons, rectangles (two corners, or four), circles (centre and a point on them),
  `mask` shapes (two corners and a PNG) and what derived tools call rotation or oriented_rectangle.
  Files of old versions, without a shape_type or a size, hold polygons.
- Lines and line strips are left out, and told, where no width for them is given; points always.
  (LabelMe's own export makes them 10 pixels wide, whatever the picture.)
- Later shapes are on top, as LabelMe shows and exports them. group_id joins shapes to one object,
  which changes nothing here. Of its special labels `__ignore__` is not scored, and `_background_`
  is the background.
- Classes are the labels in alphabetical order: there is no list of them.
- The picture is the one that imagePath names, else the one called like the JSON file; the copy of
  it in imageData is not used. A saved file without a shape says that there is nothing.
"""

from __future__ import annotations

import base64
import binascii
import io
import math
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import PngImagePlugin

from segdeform.data.image_io import MAX_PIXELS
from segdeform.errors import DataError
from segdeform.preparing.polygons.annotation import (
    AnnotatedPicture,
    Annotations,
    Bits,
    Points,
    Runs,
    Shape,
    checked_points,
    clean_label,
    shown,
)
from segdeform.preparing.polygons.geometry import ellipse, rectangle
from segdeform.preparing.polygons.strict_json import Model, parse_json

_CORNERS = ("polygon", "rotation", "oriented_rectangle")
_KEYS = (b'"imagePath"', b'"imageData"', b'"imageHeight"', b'"shape_type"', b'"version"')
_LINES = {"line": "lines", "linestrip": "line strips"}
_FLAT = {"point": "points", "points": "points"}


class _Shape(Model):
    label: str
    points: list[tuple[float, float]]
    shape_type: str | None = None
    mask: str | None = None


class _File(Model):
    shapes: list[_Shape]
    imagePath: str | None = None
    imageHeight: int | None = None
    imageWidth: int | None = None


def read_labelme(content: bytes, path: Path, inside: PurePosixPath, read: Annotations) -> None:
    """Adds what a LabelMe file says to READ; `inside` is its path in the folder of such files.

    Raises DataError naming the file and the shape.
    """
    found = parse_json(_File, content, path)
    shapes = []
    for index, given in enumerate(found.shapes):
        item = f"shapes[{index}] ('{shown(given.label)}')"
        try:
            shape = _shape(given, item, f"{path}: {item}")
        except ValueError as error:
            raise DataError(f"{path}: {item}: {error}") from error
        if shape is None:
            read.left_out[_FLAT.get(str(given.shape_type), f"of kind {given.shape_type!a}")] += 1
        else:
            shapes.append(shape)
    size = (found.imageHeight, found.imageWidth)
    read.pictures.append(
        AnnotatedPicture(
            names=_names(found.imagePath, inside),
            item=f"imagePath {shown(found.imagePath)}",
            source=path,
            shapes=tuple(shapes),
            size=None if None in size else size,  # type: ignore[arg-type]
        )
    )


def _names(image_path: str | None, inside: PurePosixPath) -> tuple[str, ...]:
    """Returns what the picture may be called: imagePath is relative to its JSON file."""
    own = inside.with_suffix("").as_posix()
    if not image_path:
        return (own,)
    name = image_path.replace("\\", "/")  # of Windows
    return ((inside.parent / name).as_posix(), own)


def _shape(given: _Shape, item: str, where: str) -> Shape | None:
    """Returns a shape, or None for one that has no area. Raises ValueError or DataError."""
    kind, label = given.shape_type or "polygon", clean_label(given.label, f"{where}: label")
    points = checked_points(np.array(given.points, np.float64).reshape(-1, 2), where)
    if kind == "mask":
        return Shape(label, item, runs=_mask(given, points))
    if kind == "circle":
        if len(points) != 2:
            raise ValueError(f"a circle has 2 points, not {len(points)}")
        (x, y), (edge_x, edge_y) = points.tolist()
        radius = math.hypot(edge_x - x, edge_y - y)
        return Shape(label, item, rings=(ellipse(x, y, radius, radius),))
    if kind == "rectangle" and len(points) == 2:
        return Shape(label, item, rings=(rectangle(*points[0], *points[1]),))
    if kind == "rectangle" and len(points) != 4:
        raise ValueError(f"a rectangle has 2 points, or 4, not {len(points)}")
    if kind in (*_CORNERS, "rectangle"):
        return Shape(label, item, rings=(points,))
    return Shape(label, item, rings=(points,), line=_LINES[kind]) if kind in _LINES else None


def _mask(given: _Shape, points: Points) -> Runs:
    """Reads a bitmap, a base64 PNG that fills the rectangle of its two points, both included."""
    if given.mask is None or len(points) != 2:
        raise ValueError("a mask has 2 points and a PNG")
    low, high = np.minimum(*points).astype(np.int64), np.maximum(*points).astype(np.int64)
    width, height = (int(value) for value in high - low + 1)
    return runs_of(png_bits(given.mask, (height, width)), top=int(low[1]), left=int(low[0]))


def png_bits(text: str, size: tuple[int, int]) -> Bits:
    """Decodes a base64 PNG of (H, W) as True where it is not zero. Raises ValueError."""
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"a bitmap that is no base64: {error}") from error
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"a bitmap of {size[0]}x{size[1]} pixels, more than any picture")
    try:
        image = PngImagePlugin.PngImageFile(io.BytesIO(content))
        # Asked before a byte is decoded: a small PNG can unpack to gigabytes.
        shape = (image.height, image.width)
        if shape == size and image.mode in ("1", "L", "P", "I;16", "I"):
            bits: Bits = np.asarray(image) != 0
            return bits
    except (OSError, SyntaxError, ValueError, EOFError, LookupError, ArithmeticError) as error:
        raise ValueError("a bitmap that is no PNG, or a damaged one") from error
    raise ValueError(
        f"a bitmap of {shape[0]}x{shape[1]} pixels ({image.mode}) for a place of "
        f"{size[0]}x{size[1]} (HxW)"
    )


def runs_of(bits: Bits, top: int, left: int) -> Runs:
    """Packs a bitmap [H, W]."""
    flat = bits.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends = np.concatenate((changes, [flat.size]))
    lengths = np.diff(ends, prepend=0)
    if flat[0]:
        lengths = np.concatenate(([0], lengths))
    height, width = bits.shape
    return Runs(top, left, height, width, lengths.astype(np.int64))


def looks_like_labelme(content: bytes) -> bool:
    """Tells LabelMe's files from other JSON, by keys of which a part of the file holds some."""
    return b'"shapes"' in content and any(key in content for key in _KEYS)
