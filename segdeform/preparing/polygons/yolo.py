"""Reads YOLO's segmentation labels: one text file a picture, a line a shape.

    0 0.015 0.02 0.14 0.02 0.08 0.17

- A line is a class number and the corners of a polygon, x and y as shares of the picture's width
  and height. Lines of five numbers are boxes, have no mask, and are left out, and told.
- Names come from a data YAML or a classes.txt in the folder or up to two above it.
- The format has no order: shapes that cover fewer pixels are on top, as ultralytics has them. A
  hole is a bridge to it and back.
- An empty file says that there is nothing in its picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from segdeform.config.strict_yaml import read_yaml
from segdeform.data.class_list import find_class_list, parse_class_list
from segdeform.errors import DataError
from segdeform.preparing.polygons.annotation import AnnotatedPicture, Annotations, Points, Shape
from segdeform.preparing.polygons.strict_json import read_bytes

_LISTS = frozenset({"classes.txt", "obj.names", "train.txt", "val.txt", "test.txt", "readme.txt"})
_MOST_CLASSES = 65_536
_FARTHEST = 10.0  # in pictures: what is farther away is no share of one


def label_files(folder: Path) -> list[Path]:
    """Lists the text files below a folder that may hold labels, sorted; hidden ones left out."""
    return sorted(
        path
        for path in folder.rglob("*.txt")
        if path.name.lower() not in _LISTS
        and not path.name.startswith(("README.", "."))
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def looks_like_yolo(folder: Path) -> bool:
    """Tells a folder of label files by the first line that any of them holds."""
    for path in label_files(folder):
        try:
            with path.open("rb") as file:
                words = file.read(1 << 16).split(b"\n")[0].split()
            numbers = [float(word) for word in words]
            if numbers:
                return len(numbers) >= 5 and numbers[0] == int(numbers[0]) >= 0
        except (OSError, ValueError, OverflowError):
            return False
    return False


def read_yolo(folder: Path) -> Annotations:
    """Reads a folder of label files. Raises DataError naming the file and the line."""
    read = Annotations("YOLO segmentation", folder, smaller_on_top=True)
    names = _names(folder)
    numbers: set[int] = set()
    for path in label_files(folder):
        shapes = []
        for number, index, ring in _lines(path):
            numbers.add(number)
            if names is not None and number >= len(names):
                raise DataError(f"{path}, line {index}: class {number} of {len(names)} names")
            label = f"class_{number}" if names is None else names[number]
            if ring is None:
                read.left_out["lines with a box alone"] += 1
            else:
                shapes.append(Shape(label, f"line {index}", rings=(ring,)))
        inside = path.relative_to(folder).with_suffix("").as_posix()
        read.pictures.append(
            AnnotatedPicture((inside,), path.name, path, tuple(shapes), in_fractions=True)
        )
    read.listed = list(names or (f"class_{n}" for n in range(max(numbers, default=-1) + 1)))
    if names is None:
        read.notes.append(f"{folder}: no data YAML or classes.txt names the classes")
    return read


def _lines(path: Path) -> Iterator[tuple[int, int, Points | None]]:
    """Yields the class number, the number of the line and the ring of each line, None for a box."""
    try:
        lines = read_bytes(path).decode().splitlines()
    except UnicodeError as error:
        raise DataError(f"{path}: is not UTF-8 text") from error
    for index, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        try:
            numbers = np.array(words, np.float64)
        except ValueError:
            numbers = np.array([np.nan])
        ring = numbers[1:]
        sound = np.isfinite(numbers).all() and (np.abs(ring) <= _FARTHEST).all()
        if not sound or not 0 <= numbers[0] < _MOST_CLASSES or numbers[0] != int(numbers[0]):
            raise DataError(
                f"{path}, line {index}: {line[:60]!a} is no class number with shares of the "
                "picture, 0 to 1"
            )
        if len(ring) % 2 or len(ring) < 4:
            raise DataError(f"{path}, line {index}: {len(ring)} numbers, which are no x, y pairs")
        yield int(numbers[0]), index, None if len(ring) == 4 else ring.reshape(-1, 2)


def _names(folder: Path) -> Sequence[str] | None:
    """Looks for the names of the classes in the folder and in the two above it."""
    for place in (folder, *folder.absolute().parents[:2]):
        for path in sorted((*place.glob("*.yaml"), *place.glob("*.yml"))):
            content = read_yaml(path, DataError)
            if isinstance(content, dict) and "names" in content:
                return parse_class_list({"names": content["names"]}, path).names
        if (place / "classes.txt").is_file() and (found := find_class_list(place)):
            return found[0].names
    return None
