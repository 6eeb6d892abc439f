"""Reads "CVAT for images 1.1": one XML file, the annotations.xml of CVAT's export.

    <annotations><meta><task><labels>
      <label><name>crack</name><color>#ff0000</color></label></labels></task></meta>
    <image id="0" name="road/a.jpg" width="640" height="480">
      <polygon label="crack" z_order="0" points="10.00,10.00;90.00,10.00;50.00,80.00"/>
    </image></annotations>

- Read are polygons, boxes and ellipses (also rotated ones) and masks (runs along the rows of their
  box). Polylines are left out, and told, where no width for them is given; points, cuboids and
  skeletons always.
- A higher z_order is on top, of one z_order what comes later, as CVAT shows them. Occluded says
  nothing about pixels; attributes and tags mean nothing here.
- Classes and their colours are those of `meta`, in its order.
- CVAT writes every picture of a task, whether or not anybody has opened it: one without a shape
  counts as not annotated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from xml.parsers import expat

import numpy as np

from segdeform.errors import DataError, UnsafeInputError
from segdeform.preparing.polygons.annotation import (
    AnnotatedPicture,
    Annotations,
    Colour,
    Points,
    Runs,
    Shape,
    checked_points,
    clean_label,
    shown,
)
from segdeform.preparing.polygons.geometry import ellipse, rectangle, turned

_FLAT = {"points": "points", "cuboid": "cuboids", "skeleton": "skeletons"}
_READ = frozenset({"polygon", "box", "ellipse", "mask", "polyline"})
# Kinds of labels that are drawn as areas; "" is what CVAT before 2.3 writes.
_AREA_LABELS = frozenset({"", "any", "polygon", "rectangle", "ellipse", "mask"})
_LABEL_KEYS = frozenset({"name", "color", "type", "parent"})
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_FAR = 1_000_000_000  # no number is larger
_MOST_DEPTH = 64
_MOST_TEXT = 4096  # letters of a name or a colour


def read_cvat(content: bytes, path: Path) -> Annotations:
    """Reads the content of a CVAT file.

    Raises DataError naming the file and the item, UnsafeInputError for a document type, with which
    a small XML could name other files or grow without bound.
    """
    reader = _Reader(path)
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = reader.refuse_doctype
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise DataError(f"{path}: not well-formed XML: {error}") from error
    except (LookupError, ValueError) as error:  # an encoding that Python does not know
        raise DataError(f"{path}: cannot be read as XML: {error}") from error
    return reader.read


class _Reader:
    """Hears of one XML element after the other; nothing of the document is kept but the shapes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read = Annotations("CVAT for images", path)
        self._open: list[str] = []  # names of the elements around
        self._text = ""
        self._label: dict[str, str] = {}  # of the label in meta that is being read
        self._image: Mapping[str, str] | None = None
        self._shapes: list[tuple[int, Shape]] = []  # with their z_order

    def refuse_doctype(self, *_: object) -> None:
        raise UnsafeInputError(
            f"{self.path}: declares a document type, which CVAT never does; not read"
        )

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        if not self._open and name != "annotations":
            raise DataError(
                f"{self.path}: an XML file of <{name[:40]}>, not CVAT's <annotations>; export "
                "'CVAT for images 1.1'"
            )
        if name == "track":
            raise DataError(
                f"{self.path}: is 'CVAT for video' (tracks); export 'CVAT for images 1.1' instead"
            )
        if len(self._open) >= _MOST_DEPTH:
            raise UnsafeInputError(f"{self.path}: elements in elements, {_MOST_DEPTH} deep")
        if name == "image":
            self._image, self._shapes = dict(attributes), []
        elif self._image is not None and self._open[-1] == "image":
            self._add(name, attributes)
        elif name == "label":
            self._label = {}
        self._open.append(name)
        self._text = ""

    def text(self, text: str) -> None:
        if self._image is None and len(self._text) < _MOST_TEXT:
            self._text += text

    def end(self, name: str) -> None:
        self._open.pop()
        if name == "image" and self._image is not None:
            self._add_picture(self._image)
            self._image = None
        elif self._image is None and self._open[-1:] == ["label"] and name in _LABEL_KEYS:
            self._label[name] = self._text.strip()
        elif self._image is None and name == "label" and self._label.get("name"):
            self._add_label(self._label)

    def _add_label(self, label: Mapping[str, str]) -> None:
        name = clean_label(label["name"], f"{self.path}: labels")
        if "parent" in label or label.get("type", "") not in _AREA_LABELS:
            return
        if name not in self.read.listed:
            self.read.listed.append(name)
        if _COLOUR.fullmatch(label.get("color", "")):
            self.read.colours[name] = _colour(label["color"])

    def _add_picture(self, image: Mapping[str, str]) -> None:
        name = image.get("name", "")
        where = f"image {shown(image.get('id', '?'))} ({shown(name)})"
        if not name:
            raise DataError(f"{self.path}: {where}: has no name")
        ordered = sorted(self._shapes, key=lambda pair: pair[0])  # keeps the order of equal ones
        subset = image.get("subset")
        self.read.pictures.append(
            AnnotatedPicture(
                names=(f"{subset}/{name}", name) if subset else (name,),
                item=where,
                source=self.path,
                shapes=tuple(shape for _, shape in ordered),
                size=self._size(image, where),
                looked_at=bool(ordered),
            )
        )

    def _size(self, image: Mapping[str, str], where: str) -> tuple[int, int] | None:
        if "height" not in image or "width" not in image:
            return None
        return (
            self._whole(image["height"], f"{where}: height"),
            self._whole(image["width"], f"{where}: width"),
        )

    def _add(self, kind: str, given: Mapping[str, str]) -> None:
        if kind in _FLAT:
            self.read.left_out[_FLAT[kind]] += 1
        if kind not in _READ:
            return
        image = self._image or {}
        number = len(self._shapes) + 1
        item = (
            f"image {shown(image.get('id', '?'))} ({shown(image.get('name', ''))}), {kind} {number}"
        )
        order = self._whole(given.get("z_order", "0"), f"{item}: z_order", low=-_FAR)
        label = clean_label(given.get("label", ""), f"{self.path}: {item}: label")
        if kind == "mask":
            shape = Shape(label, item, runs=self._runs(given, item))
        else:
            ring = checked_points(self._ring(kind, given, item), f"{self.path}: {item}")
            line = "polylines" if kind == "polyline" else ""
            shape = Shape(label, item, rings=(ring,), line=line)
        self._shapes.append((order, shape))

    def _ring(self, kind: str, given: Mapping[str, str], item: str) -> Points:
        if kind in ("polygon", "polyline"):
            return self._numbers(given, "points", item).reshape(-1, 2)
        keys = ("xtl", "ytl", "xbr", "ybr") if kind == "box" else ("cx", "cy", "rx", "ry")
        a, b, c, d = (float(self._numbers(given, key, item, count=1)[0]) for key in keys)
        degrees = 0.0
        if "rotation" in given:
            degrees = float(self._numbers(given, "rotation", item, count=1)[0])
        if kind == "ellipse":
            return turned(ellipse(a, b, c, d), degrees, a, b)
        return turned(rectangle(a, b, c, d), degrees, (a + c) / 2, (b + d) / 2)

    def _runs(self, given: Mapping[str, str], item: str) -> Runs:
        top, left, height, width = (
            self._whole(given.get(key, ""), f"{item}: {key}")
            for key in ("top", "left", "height", "width")
        )
        lengths = self._numbers(given, "rle", item)
        try:
            return Runs(top, left, height, width, lengths.astype(np.int64))
        except ValueError as error:
            raise DataError(f"{self.path}: {item}: {error}") from error

    def _numbers(
        self, given: Mapping[str, str], key: str, item: str, count: int | None = None
    ) -> Points:
        """Reads numbers, [N], between commas and semicolons."""
        text = given.get(key, "")
        try:
            numbers = np.array(text.replace(";", ",").split(","), np.float64)
        except ValueError:
            numbers = np.array([np.nan])
        odd = key == "points" and len(numbers) % 2
        if odd or (count is not None and len(numbers) != count):
            numbers = np.array([np.nan])
        if key == "rle" and (numbers != np.floor(numbers)).any():
            numbers = np.array([np.nan])
        if not np.isfinite(numbers).all() or (np.abs(numbers) > _FAR).any():
            raise DataError(f"{self.path}: {item}: {key} is not what it should be: {text[:60]!a}")
        return numbers

    def _whole(self, text: str, where: str, low: int = 0) -> int:
        """Reads a whole number; CVAT writes them with decimals at times."""
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not (low <= value <= _FAR and value == int(value)):
            raise DataError(f"{self.path}: {where}: {text[:40]!a} is no such number")
        return int(value)


def _colour(text: str) -> Colour:
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)
