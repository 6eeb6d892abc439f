"""YOLO's label files: shares of the picture, boxes left out, names, order, and what is odd."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segdeform.errors import SegdeformError
from segdeform.preparing.polygons.rasterising import Drawn, draw_annotations
from tests.preparing.polygons.scenes import distances, filled, labels_of, star, write_pictures

SIZE = (45, 62)


def _draw(tmp_path: Path, lines: dict[str, str], names: str = "", **options: Any) -> Drawn:
    images = write_pictures(tmp_path / "images", {"a.jpg": SIZE, "deep/b.png": SIZE, "c.jpg": SIZE})
    for name, text in lines.items():
        path = tmp_path / "labels" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if names:
        (tmp_path / "data.yaml").write_text(names)
    return draw_annotations(tmp_path / "labels", images, tmp_path / "masks", **options)


def _line(number: int, ring: np.ndarray) -> str:
    return f"{number} " + " ".join(f"{value:.6f}" for value in (ring / SIZE[::-1]).ravel())


def test_masks_are_the_polygons_in_pixels_the_smaller_on_top(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    large, small = star(rng, 12, SIZE), star(rng, 8, SIZE) * 0.5 + (12, 9)
    names = "names: {0: spot, 1: unused, 2: sheet}\ntrain: images\n"
    text = f"{_line(0, small)}\n\n{_line(2, large)} \n"
    drawn = _draw(tmp_path, {"a.txt": text, "deep/b.txt": "", "gone.txt": text}, names)
    assert drawn.classes == ("background", "spot", "unused", "sheet")
    assert [sample.name for sample in drawn.samples] == ["a", "deep/b"]
    mask = labels_of(tmp_path / "masks", "a")
    spot, sheet = filled(small, SIZE), filled(large, SIZE)
    expected = np.where(spot, 1, np.where(sheet, 3, 0))
    odd = np.argwhere(mask != expected)
    assert len(odd) < 4, "the text has six digits"
    assert (spot & sheet).any() and sheet.sum() > spot.sum() > 20
    # OpenCV's fill, which ultralytics uses, cuts corners to whole pixels and adds the border.
    canvas = np.zeros(SIZE, np.uint8)
    cv2.fillPoly(canvas, [large.astype(np.int32)], 1)
    assert distances(np.argwhere((canvas == 1) != sheet), large).max() < 2.3
    assert not labels_of(tmp_path / "masks", "deep/b").any(), "an empty file: nothing there"
    told = "\n".join(drawn.messages)
    assert "1 annotated pictures are not there: 'gone'" in told
    assert [path.name for path in drawn.unannotated] == ["c.jpg"]


def test_boxes_are_left_out_and_alone_are_refused(tmp_path: Path) -> None:
    box, polygon = "0 0.5 0.5 0.2 0.2\n", "1 0.1 0.1 0.9 0.1 0.9 0.9\n"
    drawn = _draw(tmp_path, {"a.txt": box + polygon})
    assert drawn.classes == ("background", "class_0", "class_1")
    told = "\n".join(drawn.messages)
    assert "1 lines with a box alone" in told and "names the classes" in told
    with pytest.raises(SegdeformError, match="only 1 lines with a box alone, which have no area"):
        _draw(tmp_path, {"a.txt": box})


def test_names_are_found_in_a_class_list_too(tmp_path: Path) -> None:
    polygon = "1 0.1 0.1 0.9 0.1 0.9 0.9\n"
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    assert _draw(tmp_path, {"a.txt": polygon}).classes == ("background", "road", "car")
    given = _draw(tmp_path, {"a.txt": polygon}, classes=["car", "background"])
    assert given.classes == ("car", "background")
    assert set(np.unique(labels_of(tmp_path / "masks", "a"))) == {0, 1}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("5 0.1 0.1 0.9 0.1 0.9 0.9", "class 5 of 2 names"),
        ("0 0.1 0.1 0.9 0.1 0.9", "5 numbers"),
        ("0 0.1 0.1", "2 numbers"),
        ("0 nan 0.1 0.9 0.1 0.9 0.9", "no class number"),
        ("0 10.1 200.1 34.9 50.1 90 90", "shares of the picture"),
        ("-1 0.1 0.1 0.9 0.1 0.9 0.9", "no class number"),
        ("0.5 0.1 0.1 0.9 0.1 0.9 0.9", "no class number"),
        ("1e300 0.1 0.1 0.9 0.1 0.9 0.9", "no class number"),
        ("car 0.1 0.1 0.9 0.1 0.9 0.9", "no class number"),
    ],
)
def test_each_fault_is_one_line_that_names_file_and_line(
    line: str, said: str, tmp_path: Path
) -> None:
    good = "1 0.1 0.1 0.9 0.1 0.9 0.9\n"
    names = "names: [a, b]\ntrain: images\n"
    with pytest.raises(SegdeformError, match=rf"b\.txt, line 2: .*{said}") as caught:
        _draw(tmp_path, {"a.txt": good, "b.txt": f"{good}{line}\n"}, names)
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
