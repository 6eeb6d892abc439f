"""Pictures with boxes, made from the shapes data set and from CamVid's cars."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from segdeform.data import IGNORE, load_dataset, read_pair
from segdeform.data.image_io import UInt8
from segdeform.preparing.shapes import CLASSES as SHAPES
from segdeform.preparing.shapes import picture_randomness
from segdeform.preparing.shapes_drawing import draw_objects

LEAST_AREA = 150  # pixels of a car that is to be found, at CamVid's 480 x 360
_MOST_VOID = 0.25  # share of a car's surroundings that may be void


@dataclass(frozen=True)
class Scene:
    """A picture and where its objects are.

    A box x1, y1, x2, y2 has its corners on pixel edges: a whole picture is 0, 0, W, H.
    """

    picture: UInt8  # [H, W, 3] RGB
    boxes: npt.NDArray[np.float32]  # [n, 4]
    labels: npt.NDArray[np.int64]  # [n], from 1
    ignored: npt.NDArray[np.bool_]  # [n]: neither trained on nor scored


def shapes_scenes(split: str, count: int, size: int, seed: int = 0) -> list[Scene]:
    """Draws the first pictures of a split of `segdeform prepare shapes`, with boxes."""
    return [shapes_scene(split, index, size, seed) for index in range(count)]


def shapes_scene(split: str, index: int, size: int, seed: int) -> Scene:
    """Draws one picture; the box of an object holds exactly the pixels that show it."""
    picture, owners, classes = draw_objects(picture_randomness(seed, split, index), size)
    numbers = [number for number in range(1, len(classes)) if (owners == number).any()]
    boxes = [_box(owners == number) for number in numbers]
    labels = classes[numbers].astype(np.int64)
    return Scene(picture, _array(boxes), labels, np.zeros(len(boxes), bool))


def car_scenes(root: Path, split: str, count: int | None = None) -> list[Scene]:
    """Reads CamVid: a car is a connected region of the class. Raises DataError."""
    dataset = load_dataset("camvid", root, split)
    car = dataset.classes.index("car")
    pairs = (read_pair(dataset, index) for index in range(min(len(dataset), count or 10**9)))
    return [car_scene(picture, labels, car) for picture, labels in pairs]


def car_scene(picture: UInt8, labels: UInt8, car: int) -> Scene:
    """Makes a box of each connected region (8 neighbours) of label `car`.

    Ignored are regions below LEAST_AREA pixels, and those with more than a quarter of their rim in
    void, of which nobody knows where they end. Cars that hide each other are one region.
    """
    count, regions = cv2.connectedComponents((labels == car).astype(np.uint8), connectivity=8)
    void = labels == IGNORE
    boxes, ignored = [], []
    for number in range(1, count):
        region = regions == number
        rim = cv2.dilate(region.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & ~region
        unsure = np.count_nonzero(rim & void) > _MOST_VOID * np.count_nonzero(rim)
        boxes.append(_box(region))
        ignored.append(bool(unsure or np.count_nonzero(region) < LEAST_AREA))
    return Scene(picture, _array(boxes), np.ones(len(boxes), np.int64), np.array(ignored, bool))


def class_names(cars: bool) -> tuple[str, ...]:
    """Returns the names of labels 1 and up."""
    return ("car",) if cars else tuple(SHAPES[1:])


def _box(mask: npt.NDArray[np.bool_]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1


def _array(boxes: list[tuple[float, float, float, float]]) -> npt.NDArray[np.float32]:
    return np.array(boxes, np.float32).reshape(-1, 4)
