"""Reads COCO's instance annotations: polygons, and run lengths, compressed or not.

    {"images": [{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}],
     "annotations": [{"image_id": 1, "category_id": 2, "segmentation": [[10, 10, 90, 10, 50, 80]]},
                     {"image_id": 1, "category_id": 2, "iscrowd": 1,
                      "segmentation": {"size": [480, 640], "counts": [4800, 960, 301440]}}],
     "categories": [{"id": 2, "name": "crack"}]}

- Classes are the categories by id; two of one name are one class. A category that is used nowhere
  and is but the supercategory of others (as Roboflow writes) is none.
- Several polygons of an annotation are a union: a hole needs run lengths or a bridge.
- The format has no order: annotations that cover fewer pixels are on top.
- `iscrowd: 1` is not scored (255) where no other annotation is. Annotations with a box alone have
  no mask and are left out.
- A picture that is listed without an annotation has nothing in it: the file says that it belongs to
  the set.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import AfterValidator, Field

from segdeform.errors import DataError
from segdeform.preparing.polygons.annotation import (
    AnnotatedPicture,
    Annotations,
    Runs,
    Shape,
    checked_points,
    clean_label,
    shown,
)
from segdeform.preparing.polygons.strict_json import Model, parse_json

# Arrays are made while the file is read: lists of Python's numbers would take ten times the memory.
_Ring = Annotated[list[float], AfterValidator(lambda numbers: np.array(numbers, np.float64))]
_LENGTH = 1 << 62
_Lengths = Annotated[list[Annotated[int, Field(gt=-_LENGTH, lt=_LENGTH)]], AfterValidator(np.array)]
_MOST_DIGITS = 7  # of 5 bits, of one compressed run: 2^35 pixels


class _RunLengths(Model):
    size: tuple[int, int]  # height, width
    counts: str | _Lengths


class _Annotation(Model):
    id: int | str | None = None
    image_id: int | str
    category_id: int
    segmentation: list[_Ring] | _RunLengths | None = None
    iscrowd: int = 0


class _Picture(Model):
    id: int | str
    file_name: str = Field(min_length=1)
    width: int | None = None
    height: int | None = None


class _Category(Model):
    id: int
    name: str
    supercategory: str | None = None


class _File(Model):
    images: list[_Picture]
    annotations: list[_Annotation]
    categories: list[_Category]


def read_coco(content: bytes, path: Path) -> Annotations:
    """Reads the content of a COCO file. Raises DataError naming the file and the item."""
    if b'"segments_info"' in content:
        raise DataError(
            f"{path}: is COCO's panoptic format, whose masks are PNGs of their own; give the file "
            "of instances"
        )
    found = parse_json(_File, content, path)
    names = {
        category.id: clean_label(category.name, f"{path}: category {category.id}")
        for category in found.categories
    }
    if len(names) != len(found.categories):
        raise DataError(f"{path}: two categories have the same id")
    read = Annotations("COCO", path, smaller_on_top=True)
    shapes = _shapes(found, names, read)
    _list_classes(found, names, read)
    for picture in found.images:
        size = (picture.height, picture.width)
        read.pictures.append(
            AnnotatedPicture(
                names=(picture.file_name,),
                item=f"image {shown(picture.id)} ({shown(picture.file_name)})",
                source=path,
                shapes=tuple(shapes[picture.id]),
                size=None if None in size else size,  # type: ignore[arg-type]
            )
        )
    return read


def _shapes(found: _File, names: dict[int, str], read: Annotations) -> dict[int | str, list[Shape]]:
    shapes: dict[int | str, list[Shape]] = {picture.id: [] for picture in found.images}
    if len(shapes) != len(found.images):
        raise DataError(f"{read.source}: two images have the same id")
    for index, annotation in enumerate(found.annotations):
        item = f"annotation {index if annotation.id is None else shown(annotation.id)}"
        if annotation.image_id not in shapes:
            raise DataError(
                f"{read.source}: {item}: there is no image {shown(annotation.image_id)} in the file"
            )
        if annotation.category_id not in names:
            raise DataError(
                f"{read.source}: {item}: there is no category {annotation.category_id} in the file"
            )
        label, crowd = names[annotation.category_id], annotation.iscrowd != 0
        where, drawn = f"{read.source}: {item}", annotation.segmentation
        if isinstance(drawn, _RunLengths):
            shape = Shape(label, item, runs=_runs(drawn, where), crowd=crowd)
        else:
            rings = tuple(
                _ring(np.asarray(ring, np.float64), where) for ring in drawn or () if len(ring)
            )
            if not rings:
                read.left_out["annotations with a box alone"] += 1
                continue
            shape = Shape(label, item, rings=rings, crowd=crowd)
        shapes[annotation.image_id].append(shape)
    return shapes


def _list_classes(found: _File, names: dict[int, str], read: Annotations) -> None:
    """Takes the categories by their ids, without those that only group others."""
    used = Counter(annotation.category_id for annotation in found.annotations)
    groups = {part.supercategory for part in found.categories if part.supercategory != part.name}
    for category in sorted(found.categories, key=lambda category: category.id):
        if not used[category.id] and category.name in groups:
            read.notes.append(f"category '{category.name}' only groups others and is no class")
        elif names[category.id] in read.listed:
            read.notes.append(f"two categories are called '{category.name}' and are one class")
        else:
            read.listed.append(names[category.id])


def _ring(numbers: npt.NDArray[np.float64], where: str) -> npt.NDArray[np.float64]:
    if len(numbers) % 2:
        raise DataError(f"{where}: a polygon of {len(numbers)} numbers, which are no x, y pairs")
    return checked_points(numbers.reshape(-1, 2), where)


def _runs(given: _RunLengths, where: str) -> Runs:
    height, width = given.size
    try:
        counts: Any = given.counts
        lengths = decode(counts) if isinstance(counts, str) else counts.astype(np.int64)
        return Runs(0, 0, height, width, lengths, by_columns=True, whole=True)
    except ValueError as error:
        raise DataError(f"{where}: {error}") from error


def decode(counts: str) -> npt.NDArray[np.int64]:
    """Returns the run lengths of a compressed text.

    Each is written in digits of 5 bits, the lowest first, in one letter from "0" on, 32 added where
    more follow; the highest bit of the last is its sign. From the fourth on it is the difference to
    the one before the last. Raises ValueError for another text.
    """
    letters = np.frombuffer(counts.encode("ascii", "ignore"), np.uint8).astype(np.int64) - 48
    if (
        not 0 < len(letters) == len(counts)
        or letters.min() < 0
        or letters.max() > 63
        or letters[-1] & 32
    ):
        raise ValueError("compressed runs that are damaged")
    ends = np.flatnonzero((letters & 32) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    digits = ends - starts + 1
    if digits.max() > _MOST_DIGITS:
        raise ValueError("a run that is longer than any picture")
    places = np.arange(len(letters)) - np.repeat(starts, digits)
    values = np.add.reduceat((letters & 31) << (5 * places), starts)
    values -= np.where(letters[ends] & 16, np.int64(1) << (5 * digits), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
