"""Reads Label Studio's exports "JSON" and "JSON-MIN": a list of tasks.

    [{"id": 7, "data": {"image": "/data/upload/3/0a1b2c3d-a.jpg"}, "annotations": [{"result": [
       {"type": "polygonlabels", "original_width": 640, "original_height": 480,
        "value": {"points": [[1.5, 2], [14, 2], [8, 17]], "polygonlabels": ["crack"]}},
       {"type": "ellipselabels", "original_width": 640, "original_height": 480,
        "value": {"x": 50, "y": 50, "radiusX": 9, "radiusY": 6, "ellipselabels": ["hole"]}}]}]}]

- Read are polygons, rectangles, ellipses and brushes, from labels of their own kind or from a
  common <Labels>. Coordinates are per cent of the picture. Key points and other kinds have no area
  and are left out, and told.
- Brushes are below all other shapes, and of each group later ones are on top, as Label Studio shows
  them. A brush covers the pixels that have any opacity.
- Annotations that were cancelled (skipped) do not count, nor do predictions. Of several of one task
  the one marked as ground truth is taken, else the one changed last.
- Classes are the labels in alphabetical order: the export does not list them.
- The picture's name is the end of the address, without what Label Studio puts before an uploaded
  file's (8 digits). A submitted annotation without a result says that there is nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from pydantic import Field, JsonValue, TypeAdapter

from segdeform.data.image_io import MAX_PIXELS, PICTURE_SUFFIXES
from segdeform.errors import DataError
from segdeform.preparing.polygons.annotation import (
    AnnotatedPicture,
    Annotations,
    Points,
    Shape,
    checked_points,
    clean_label,
    shown,
)
from segdeform.preparing.polygons.brush import decode_brush
from segdeform.preparing.polygons.geometry import ellipse, rectangle, turned
from segdeform.preparing.polygons.strict_json import Model, parse_json, parse_part

_LABEL_KEYS = ("polygonlabels", "rectanglelabels", "ellipselabels", "brushlabels", "labels")
# What is said about a whole picture, or about nothing that could be drawn.
_NO_SHAPES = frozenset(
    ("choices", "textarea", "rating", "number", "taxonomy", "datetime", "relation", "pairwise")
)
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")


class _Value(Model):
    points: list[tuple[float, float]] | None = None
    closed: bool | None = None
    x: float | None = None
    y: float | None = None
    width: float | None = None
    height: float | None = None
    radiusX: float | None = None
    radiusY: float | None = None
    rotation: float = 0
    rle: list[int] | None = None
    polygonlabels: list[str] | None = None
    rectanglelabels: list[str] | None = None
    ellipselabels: list[str] | None = None
    brushlabels: list[str] | None = None
    labels: list[str] | None = None

    def names(self) -> list[str]:
        """Returns the labels of whichever kind."""
        return next((found for key in _LABEL_KEYS if (found := getattr(self, key))), [])


class _Result(Model):
    type: str = ""
    value: dict[str, JsonValue] = Field(default_factory=dict)
    original_width: int | None = None
    original_height: int | None = None
    image_rotation: float | None = None


class _Annotation(Model):
    result: list[_Result] = Field(default_factory=list)
    was_cancelled: bool | None = None
    ground_truth: bool | None = None
    updated_at: str | int | float | None = None
    created_at: str | int | float | None = None


class _Task(Model):
    id: int | str | None = None
    data: dict[str, JsonValue]
    annotations: list[_Annotation] | None = None
    completions: list[_Annotation] | None = None  # as versions before 1.0 call them


def read_label_studio(content: bytes, path: Path) -> Annotations:
    """Reads the content of an export. Raises DataError naming the file and the task."""
    rows = parse_json(TypeAdapter(list[dict[str, JsonValue]]), content, path)
    read = Annotations("Label Studio", path)
    several = 0
    for task in _tasks(rows, path):
        where = f"{path}: task {shown(task.id)}"
        done = [a for a in task.annotations or task.completions or () if not a.was_cancelled]
        several += len(done) > 1
        chosen = _chosen(done)
        size, shapes = _shapes(chosen.result if chosen else (), where, read)
        read.pictures.append(
            AnnotatedPicture(
                names=tuple(_names(_address(task.data, where))),
                item=f"task {shown(task.id)}",
                source=path,
                shapes=shapes,
                size=size,
                looked_at=chosen is not None,
            )
        )
    if several:
        read.notes.append(
            f"{several} tasks have several annotations: the one marked as ground truth is taken, "
            "else the one changed last"
        )
    return read


def _tasks(rows: Sequence[Mapping[str, JsonValue]], path: Path) -> Iterator[_Task]:
    """Yields the tasks; of the short form, rows of one id are annotations of one task."""
    short: dict[str, dict[str, Any]] = {}
    for index, row in enumerate(rows):
        if "data" in row:
            yield parse_part(_Task, row, f"{path}: [{index}]")
            continue
        regions = [
            {**part, "value": part, "type": _kind(part)}
            for value in row.values()
            if isinstance(value, list)
            for part in value
            if isinstance(part, dict)
        ]
        data = {key: value for key, value in row.items() if isinstance(value, str)}
        task = short.setdefault(
            repr(row.get("id", index)), {"id": row.get("id"), "data": data, "annotations": []}
        )
        stamps = {key: row.get(key) for key in ("updated_at", "created_at")}
        task["annotations"].append({**stamps, "result": regions})
    for task in short.values():
        yield parse_part(_Task, task, f"{path}: task {shown(task['id'])}")


def _kind(part: Mapping[str, JsonValue]) -> str:
    return next((key for key in part if key.endswith("labels")), "choices")


def _chosen(annotations: Sequence[_Annotation]) -> _Annotation | None:
    if not annotations:
        return None
    # ISO times of one zone, as exports have them, are in order as texts; max takes the first of
    # equal ones, so that the list is turned.
    return max(
        reversed(annotations),
        key=lambda one: (bool(one.ground_truth), str(one.updated_at or one.created_at or "")),
    )


def _shapes(
    results: Sequence[_Result], where: str, read: Annotations
) -> tuple[tuple[int, int] | None, tuple[Shape, ...]]:
    """Returns the (H, W) that the results tell, and the shapes in drawing order."""
    brushes: list[Shape] = []
    others: list[Shape] = []
    sizes = set()
    for index, result in enumerate(results):
        item = f"result[{index}]"
        if result.type in _NO_SHAPES or not _is_labelled(result):
            continue
        if not _has_area(result.value):
            read.left_out[f"of type {result.type!a}"] += 1
            continue
        here = f"{where}: {item}"
        size = (result.original_height or 0, result.original_width or 0)
        if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
            raise DataError(f"{here}: original_width and original_height are no size of a picture")
        if result.image_rotation:
            raise DataError(
                f"{here}: was drawn on a picture turned by {result.image_rotation:g} degrees in "
                "the editor, which is not read; turn the picture back there"
            )
        sizes.add(size)
        value = parse_part(_Value, result.value, f"{here}: value")
        if value.points is not None and value.closed is False:
            read.left_out["polygons that were not closed"] += 1
            continue
        try:
            shape = _shape(value, size, f"{where.rsplit(': ', 1)[-1]}, {item}", here)
        except ValueError as error:
            raise DataError(f"{here}: {error}") from error
        (brushes if shape.runs is not None else others).append(shape)
    if len(sizes) > 1:
        raise DataError(f"{where}: its results are of pictures of different sizes")
    return next(iter(sizes), None), (*brushes, *others)


def _is_labelled(result: _Result) -> bool:
    """Tells regions with a label from bare ones, which a result of its own gives the label."""
    return any(key.endswith("labels") and value for key, value in result.value.items())


def _has_area(value: Mapping[str, JsonValue]) -> bool:
    if not any(value.get(key) for key in _LABEL_KEYS):
        return False
    return any(key in value for key in ("points", "rle", "radiusX")) or {"width", "height"} <= {
        *value
    }


def _shape(value: _Value, size: tuple[int, int], item: str, where: str) -> Shape:
    names = value.names()
    if len(names) > 1:
        raise ValueError(f"has {len(names)} labels ({shown(', '.join(names))}); a pixel has one")
    label = clean_label(names[0], f"{where}: label")
    if value.rle is not None:
        return Shape(label, item, runs=decode_brush(value.rle, size))
    return Shape(label, item, rings=(checked_points(_ring(value, size), where),))


def _ring(value: _Value, size: tuple[int, int]) -> Points:
    """Returns the outline in pixels; turns are around the first corner, an ellipse's centre."""
    scale = np.array([size[1], size[0]]) / 100
    if value.points is not None:
        return np.array(value.points, np.float64).reshape(-1, 2) * scale
    if value.x is None or value.y is None:
        raise ValueError("has no x and y")
    x, y = (float(number) for number in (value.x, value.y) * scale)
    if value.radiusX is not None and value.radiusY is not None:
        ring = ellipse(x, y, value.radiusX * scale[0], value.radiusY * scale[1])
    elif value.width is not None and value.height is not None:
        ring = rectangle(x, y, x + value.width * scale[0], y + value.height * scale[1])
    else:
        raise ValueError("has no width and height, nor two radii")
    return turned(ring, value.rotation, x, y)


def _address(data: Mapping[str, JsonValue], where: str) -> str:
    """Returns the address of a task's picture, the one text that looks like it."""
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    found = {key: text for key, text in texts.items() if _suffix(text) in PICTURE_SUFFIXES}
    if len(found) > 1 and "image" in found:
        return found["image"]
    if len(found) == 1:
        return next(iter(found.values()))
    if not found and "image" in texts:
        return texts["image"]
    raise DataError(
        f"{where}: its data name {len(found) or 'no'} pictures ({shown(', '.join(data))}); a task "
        "of one picture is read"
    )


def _suffix(address: str) -> str:
    return Path(_file_path(address)).suffix.lower()


def _file_path(address: str) -> str:
    """Returns the path of an address: of /data/local-files/?d=PATH, s3://bucket/PATH or a URL."""
    try:
        parts = urlsplit(address)
        local = parse_qs(parts.query).get("d")
    except ValueError:
        return address
    return local[0] if local else unquote(parts.path)


def _names(address: str) -> Iterator[str]:
    path = _file_path(address).replace("\\", "/")
    yield path
    folder, _, name = path.rpartition("/")
    if _UPLOADED.match(name):
        yield f"{folder}/{_UPLOADED.sub('', name, count=1)}".lstrip("/")
