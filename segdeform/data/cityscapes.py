"""Cityscapes in its official layout: 19 classes, masks read as what their names say they are."""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from segdeform.data.cityscapes_labels import (
    CITYSCAPES_CLASSES,
    CITYSCAPES_LABELS,
    HIGHEST_ID,
    label_ids_to_train_ids,
    train_ids_to_label_ids,
)
from segdeform.data.dataset import IGNORE, Dataset, MissingSplitError, Sample
from segdeform.data.image_io import MAX_PIXELS, PICTURE_SUFFIXES, UInt8, read_mask
from segdeform.errors import DataError, UnsafeInputError

__all__ = ["CITYSCAPES_LABELS", "default_root", "load", "read_train_ids", "train_ids_to_label_ids"]

SPLITS = {"train": 2975, "val": 500, "test": 1525}  # pictures in the whole data set
LAYOUT = (
    "ROOT/leftImg8bit/{train,val,test}/CITY/*_leftImg8bit.png and "
    "ROOT/gtFine/{train,val,test}/CITY/*_gtFine_labelIds.png"
)
PICTURE = "_leftImg8bit.png"
# In the order of preference; what a mask holds is told by its name alone.
_LABEL_IDS = "_gtFine_labelIds.png"
_TRAIN_IDS = "_gtFine_labelTrainIds.png"
_POLYGONS = "_gtFine_polygons.json"

_IDS = {label.name: label.id for label in CITYSCAPES_LABELS}
_MAX_JSON = 64 << 20  # bytes; the largest official file has less than one million
_MAX_COORDINATE = 1e6  # pixels


def default_root() -> Path | None:
    """Returns the folder that CITYSCAPES_DATASET names, as for the official scripts, or None."""
    root = os.environ.get("CITYSCAPES_DATASET")
    return Path(root) if root else None


def load(root: Path, split: str) -> Dataset:
    """Lists one split by city and name; a sample is named CITY/CITY_SEQUENCE_FRAME.

    Labels are the 19 train ids, made on reading from labelIds, else labelTrainIds, else polygons.
    Pictures of the test split may lack a mask. Raises DataError for a picture without a mask, a
    file that does not belong there, and where the folder does not look like Cityscapes.
    """
    pictures = root / "leftImg8bit" / split
    if not pictures.is_dir():
        known = ", ".join(sorted(path.name for path in pictures.parent.glob("*") if path.is_dir()))
        there = f"there are: {known}" if known else f"expected {LAYOUT}"
        raise MissingSplitError(f"{root}: holds no Cityscapes split '{split}'; {there}")
    samples = []
    for picture in _pictures(pictures):
        stem = picture.name.removesuffix(PICTURE)
        city = picture.parent.name
        mask = _find_mask(root / "gtFine" / split / city, stem)
        if mask is None and split != "test":
            expected = root / "gtFine" / split / city / f"{stem}{_LABEL_IDS}"
            raise DataError(
                f"{expected}: the mask of {picture} is missing (and so are {_TRAIN_IDS} and "
                f"{_POLYGONS})"
            )
        samples.append(Sample(f"{city}/{stem}", picture, mask))
    return Dataset(
        name="cityscapes",
        split=split,
        root=root,
        classes=tuple(label.name for label in CITYSCAPES_CLASSES),
        palette=tuple(label.color for label in CITYSCAPES_CLASSES),
        samples=tuple(samples),
        decode_mask=read_train_ids,
    )


def _pictures(folder: Path) -> list[Path]:
    try:
        found = sorted(
            path
            for path in (*folder.iterdir(), *folder.glob("*/*"))
            if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")
        )
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
    for path in found:
        if not path.name.endswith(PICTURE) or path.parent == folder:
            raise DataError(f"{path}: does not belong there; pictures are CITY/*{PICTURE}")
    if not found:
        raise DataError(f"{folder}: holds no picture; expected CITY/*{PICTURE} in it")
    return found


def _find_mask(folder: Path, stem: str) -> Path | None:
    masks = (folder / f"{stem}{ending}" for ending in (_LABEL_IDS, _TRAIN_IDS, _POLYGONS))
    return next((mask for mask in masks if mask.exists()), None)


def read_train_ids(path: Path) -> UInt8:
    """Reads a mask as train ids, uint8 [H, W]: 0 to 18 and 255; the name says what it holds.

    Raises DataError for values that the kind of file cannot hold, instead of taking it for another
    kind, and as `read_mask` does.
    """
    if path.name.endswith(_POLYGONS):
        return label_ids_to_train_ids(_draw_polygons(path))
    values = read_mask(path)
    if path.name.endswith(_TRAIN_IDS):
        return _train_ids(values, path)
    if (values == IGNORE).any():
        raise DataError(
            f"{path}: holds {IGNORE}, which no label id is: these look like train ids; name it "
            f"*{_TRAIN_IDS} or restore the official file"
        )
    if (highest := int(values.max())) > HIGHEST_ID:
        raise DataError(f"{path}: holds {highest}; label ids end at {HIGHEST_ID}")
    return label_ids_to_train_ids(values.astype(np.uint8))


def _train_ids(values: np.ndarray[Any, np.dtype[Any]], path: Path) -> UInt8:
    wrong = values[(values >= len(CITYSCAPES_CLASSES)) & (values != IGNORE)]
    if wrong.size:
        raise DataError(
            f"{path}: holds {int(wrong.max())}; train ids are 0 to {len(CITYSCAPES_CLASSES) - 1} "
            f"and {IGNORE}. If these are label ids, name it *{_LABEL_IDS}"
        )
    return values.astype(np.uint8)


def _draw_polygons(path: Path) -> UInt8:
    """Draws an annotation as label ids [H, W] by the rule of the official json2labelImg: in the
    file's order, later over earlier, deleted objects and licence plates left out."""
    content = _read_json(path)
    try:
        height, width = content["imgHeight"], content["imgWidth"]
        objects = [
            (_label_id(item["label"], path), _points(item["polygon"], path))
            for item in content["objects"]
            if not item.get("deleted")
        ]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path}: is no Cityscapes annotation ({error!r})") from error
    if not all(type(side) is int and side > 0 for side in (height, width)):
        raise DataError(f"{path}: imgHeight and imgWidth are {height!r} and {width!r}")
    if height * width > MAX_PIXELS:
        raise UnsafeInputError(f"{path}: {width}x{height} pixels are over the limit")
    image = Image.new("L", (width, height), _IDS["unlabeled"])
    drawer = ImageDraw.Draw(image)
    for label, points in objects:
        if label >= 0:
            drawer.polygon(points, fill=label)
    return np.array(image)


def _read_json(path: Path) -> Any:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: not a regular file")
        if status.st_size > _MAX_JSON:
            raise UnsafeInputError(f"{path}: {status.st_size} bytes are no annotation")
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged: {error}") from error


def _label_id(name: Any, path: Path) -> int:
    """Returns an object's label id; an unknown name that ends with "group" is a group of these."""
    known = name if name in _IDS else str(name).removesuffix("group")
    if known not in _IDS:
        raise DataError(f"{path}: Cityscapes knows no label {name!r}")
    return _IDS[known]


def _points(polygon: Any, path: Path) -> list[tuple[float, float]]:
    points = [(x, y) for x, y in polygon]
    for value in (value for point in points for value in point):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise DataError(f"{path}: a polygon holds {value!r}, which is no number")
        if not math.isfinite(value) or abs(value) > _MAX_COORDINATE:
            raise DataError(f"{path}: a polygon reaches {value}, far out of the picture")
    if len(points) < 2:
        raise DataError(f"{path}: a polygon has less than two points")
    return points
