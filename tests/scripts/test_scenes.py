"""Boxes against the pixels they were made from."""

from __future__ import annotations

import numpy as np
import pytest
from detection.scenes import LEAST_AREA, Scene, car_scene, car_scenes, class_names, shapes_scene

from segdeform.data import IGNORE, load_dataset, read_pair
from segdeform.data.image_io import UInt8
from segdeform.preparing.shapes import picture_randomness, write_shapes
from segdeform.preparing.shapes_drawing import draw_objects, draw_picture
from tests.conftest import external_data


@pytest.fixture(scope="module")
def scenes() -> list[tuple[Scene, UInt8]]:
    """Scenes with the labels that the segmentation data set has for the same pictures."""
    pairs = [draw_picture(picture_randomness(0, "train", i), 128) for i in range(30)]
    found = [shapes_scene("train", i, 128, seed=0) for i in range(30)]
    for (picture, _), scene in zip(pairs, found, strict=True):
        assert np.array_equal(picture, scene.picture)
    return [(scene, labels) for scene, (_, labels) in zip(found, pairs, strict=True)]


def window(box: np.ndarray, labels: UInt8) -> UInt8:
    x1, y1, x2, y2 = box.astype(int)
    return labels[y1:y2, x1:x2]


def test_every_box_is_as_tight_as_its_objects_label_allows(
    scenes: list[tuple[Scene, UInt8]],
) -> None:
    for scene, labels in scenes:
        assert len(scene.boxes) == len(scene.labels) >= 1 and not scene.ignored.any()
        for box, label in zip(scene.boxes, scene.labels, strict=True):
            inside = window(box, labels) == label
            assert box.min() >= 0 and box.max() <= 128
            # Each of the four sides touches a pixel of the object's class.
            for side in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert side.any()


def test_boxes_hold_all_labelled_pixels(scenes: list[tuple[Scene, UInt8]]) -> None:
    for scene, labels in scenes:
        left = labels.copy()
        for box, label in zip(scene.boxes, scene.labels, strict=True):
            window(box, left)[window(box, labels) == label] = 0
        assert not left.any()


def test_objects_of_one_class_that_touch_stay_apart() -> None:
    """What connected components of the labels would get wrong happens, and is got right."""
    merged = 0
    for index in range(60):
        _, owners, classes = draw_objects(picture_randomness(0, "train", index), 96)
        scene = shapes_scene("train", index, 96, seed=0)
        assert len(scene.boxes) == len(classes) - 1 == owners.max()
        for number, box in enumerate(scene.boxes, start=1):
            rows, columns = np.nonzero(owners == number)
            expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            assert tuple(box) == expected
        right, below = owners[:, :-1] != owners[:, 1:], owners[:-1] != owners[1:]
        labels = classes[owners]
        same = (labels[:, :-1] == labels[:, 1:]) & (labels[:, 1:] > 0)
        merged += bool((right & same).any())
        merged += bool((below & (labels[:-1] == labels[1:]) & (labels[1:] > 0)).any())
    assert merged > 0


def test_they_are_the_pictures_of_the_data_set(tmp_path) -> None:  # type: ignore[no-untyped-def]
    write_shapes(tmp_path / "shapes", seed=4, train=1, val=2, size=64)
    picture, _ = read_pair(load_dataset("shapes", tmp_path / "shapes", "val"), 1)
    assert np.array_equal(shapes_scene("val", 1, 64, seed=4).picture, picture)


def test_cars_by_hand() -> None:
    labels = np.zeros((60, 80), np.uint8)
    car = 8
    labels[5:20, 3:23] = car  # 300 pixels
    labels[20, 23] = car  # joined by a corner: the same car
    labels[30:34, 10:20] = car  # 40 pixels: too small
    labels[30:50, 40:60] = car  # 400 pixels, void on its right and below
    labels[28:55, 60:70] = IGNORE
    labels[50:52, 38:62] = IGNORE
    picture = np.zeros((60, 80, 3), np.uint8)
    scene = car_scene(picture, labels, car)
    found = {tuple(box): bool(flag) for box, flag in zip(scene.boxes, scene.ignored, strict=True)}
    assert found == {(3, 5, 24, 21): False, (10, 30, 20, 34): True, (40, 30, 60, 50): True}
    assert scene.labels.tolist() == [1, 1, 1]
    assert LEAST_AREA == 150


def test_a_street_without_cars() -> None:
    scene = car_scene(np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint8), 8)
    assert scene.boxes.shape == (0, 4) and len(scene.labels) == len(scene.ignored) == 0


def test_camvid_shows_cars() -> None:
    found = car_scenes(external_data("data/camvid"), "val", 20)
    assert len(found) == 20
    assert sum(len(scene.boxes) - scene.ignored.sum() for scene in found) > 20
    assert class_names(cars=True) == ("car",) and len(class_names(cars=False)) == 6
