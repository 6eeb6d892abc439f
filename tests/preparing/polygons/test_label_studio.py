"""Label Studio's exports against its own decoder, where installed, and a golden brush by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segdeform.errors import SegdeformError
from segdeform.preparing.polygons.brush import decode_brush
from segdeform.preparing.polygons.geometry import ellipse, rectangle, turned
from segdeform.preparing.polygons.rasterising import Drawn, draw_annotations
from tests.preparing.polygons.foreign import load_file
from tests.preparing.polygons.scenes import filled, labels_of, write_pictures

SIZE = (40, 64)
WHOLE = {"original_width": 64, "original_height": 40, "image_rotation": 0}


def _pack(bits: list[tuple[int, int]]) -> list[int]:
    """Packs (value, how many bits) into bytes."""
    text = "".join(f"{value:0{count}b}" for value, count in bits)
    text += "0" * (-len(text) % 8)
    return [int(text[place : place + 8], 2) for place in range(0, len(text), 8)]


def brush(alpha: np.ndarray) -> list[int]:  # [H, W] uint8
    """Encodes a brush as the format is described, in runs and in values one by one."""
    flat = np.repeat(alpha.ravel(), 4).astype(int)
    bits = [(len(flat), 32), (7, 5), (2, 4), (3, 4), (7, 4), (15, 4)]
    place = 0
    while place < len(flat):
        same = int(np.argmax(np.append(flat[place:] != flat[place], True)))
        if same > 1:
            size, kind = next(
                (s, k) for k, s in enumerate((3, 4, 8, 16)) if same <= 2**s or s == 16
            )
            same = min(same, 2**size)
            bits += [(1, 1), (kind, 2), (same - 1, size), (flat[place], 8)]
        else:
            same = min(3, len(flat) - place)
            bits += [(0, 1), (0, 2), (same - 1, 3), *((v, 8) for v in flat[place : place + same])]
        place += same
    return _pack(bits)


def _result(kind: str, label: str, **value: Any) -> dict[str, Any]:
    return {"id": "r", "type": kind, "value": {**value, kind: [label]}, **WHOLE}


BOX = {"x": 0, "y": 0, "width": 50, "height": 50}


def _box(**more: Any) -> dict[str, Any]:
    return {**_result("rectanglelabels", "x", **BOX), **more}


def _task(*results: Any, image: str = "/data/upload/3/0a1b2c3d-a.jpg", **more: Any) -> Any:
    return {
        "id": 5,
        "data": {"image": image},
        "annotations": [{"id": 1, "result": [*results]}],
        **more,
    }


def _draw(tmp_path: Path, tasks: Any, **options: Any) -> Drawn:
    images = write_pictures(tmp_path / "images", {"a.jpg": SIZE, "my photo (1).jpg": SIZE})
    path = tmp_path / "export.json"
    path.write_text(json.dumps(tasks))
    return draw_annotations(path, images, tmp_path / "masks", **options)


def test_a_brush_by_hand() -> None:
    # 2x1 pixels, RGBA: one run of three zeros, then the values 9, 0, 0, 0, 0 one by one.
    bits = [(8, 32), (7, 5), (1, 4), (2, 4), (7, 4), (15, 4)]
    bits += [(1, 1), (0, 2), (2, 2), (0, 8)]
    bits += [(0, 1), (1, 2), (4, 3), (9, 8), (0, 8), (0, 8), (0, 8), (0, 8)]
    assert decode_brush(_pack(bits), (2, 1)).lengths.tolist() == [0, 1, 1]
    # Five bytes of 7 in a run, three of 0: opaque is the first pixel, the second is but reddish.
    bits = [*bits[:6], (1, 1), (1, 2), (4, 3), (7, 8), (1, 1), (0, 2), (2, 2), (0, 8)]
    assert decode_brush(_pack(bits), (2, 1)).lengths.tolist() == [0, 1, 1]


def test_brushes_are_what_label_studio_decodes() -> None:
    theirs = load_file("label_studio_sdk", "converter/brush.py")
    decode = getattr(theirs, "decode_rle_python", theirs.decode_rle)
    rng = np.random.default_rng(7)
    for density in (0, 0.01, 0.5, 1):
        alpha = ((rng.random((23, 31)) < density) * rng.integers(1, 256, (23, 31))).astype(np.uint8)
        alpha[4:15, 3:20] = 255
        for rle in (brush(alpha), [int(byte) for byte in theirs.mask2rle(alpha)]):
            lengths = decode_brush(rle, (23, 31)).lengths
            mine = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths).reshape(23, 31)
            decoded = np.asarray(decode(rle)).reshape(23, 31, 4)[:, :, 3]
            np.testing.assert_array_equal(mine, decoded > 0)


def test_every_kind_of_shape_is_where_it_was_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    alpha = (rng.random(SIZE) < 0.2).astype(np.uint8) * 255
    points = [(5, 10), (40, 20), (30, 90)]
    triangle = filled(np.array(points) * (0.64, 0.4), SIZE)
    upright = filled(rectangle(19.2, 10, 51.2, 18), SIZE)
    oval = {"x": 50, "y": 40, "radiusX": 20, "radiusY": 25}
    box = {"x": 30, "y": 25, "width": 50, "height": 20}
    for result, expected in (
        (_result("polygonlabels", "x", points=points, closed=True), triangle),
        (_result("rectanglelabels", "x", **box, rotation=0), upright),
        (
            _result("rectanglelabels", "x", **box, rotation=30),
            filled(turned(rectangle(19.2, 10, 51.2, 18), 30, 19.2, 10), SIZE),
        ),
        (
            _result("ellipselabels", "x", **oval, rotation=20),
            filled(turned(ellipse(32, 16, 12.8, 10), 20, 32, 16), SIZE),
        ),
        (_result("brushlabels", "x", format="rle", rle=brush(alpha)), alpha > 0),
        (
            {"type": "labels", "value": {"points": points, "labels": ["x"]}, **WHOLE},
            triangle,
        ),
    ):
        _draw(tmp_path, [_task(result)])
        mine = labels_of(tmp_path / "masks", "a")
        np.testing.assert_array_equal(mine == 1, expected)
        assert 100 < expected.sum() < expected.size


def test_brushes_are_below_and_later_shapes_above(tmp_path: Path) -> None:
    stroke = np.zeros(SIZE, np.uint8)
    stroke[:, :40] = 255
    results = [
        _result("rectanglelabels", "b", x=0, y=0, width=50, height=50),
        _result("rectanglelabels", "a", x=25, y=25, width=50, height=50),
        _result("brushlabels", "c", rle=brush(stroke)),
        {"type": "choices", "value": {"choices": ["good"]}},
        {"type": "polygon", "value": {"points": [[0, 0], [9, 9], [0, 9]]}, **WHOLE},
        _result("keypointlabels", "k", x=1, y=1, width=1),
        _result("polygonlabels", "a", points=[[0, 0], [9, 0], [9, 90]], closed=False),
    ]
    drawn = _draw(tmp_path, [_task(*results)])
    expected = np.zeros(SIZE, np.uint8)
    expected[:, :40] = 3
    expected[:20, :32] = 2
    expected[10:30, 16:48] = 1
    assert drawn.classes == ("background", "a", "b", "c")
    np.testing.assert_array_equal(labels_of(tmp_path / "masks", "a"), expected)
    told = "\n".join(drawn.messages)
    assert "1 of type 'keypointlabels'" in told and "1 polygons that were not closed" in told


def test_the_annotation_that_counts_is_neither_cancelled_nor_outdated(tmp_path: Path) -> None:
    def one(width: int, **more: Any) -> dict[str, Any]:
        return {
            "result": [_result("rectanglelabels", "x", x=0, y=0, width=width, height=50)],
            **more,
        }

    late, early = {"updated_at": "2026-02-01T00:00:00Z"}, {"updated_at": "2026-01-01T00:00:00Z"}
    for done, width in (
        ([one(25, **late), one(50, **early), one(75, was_cancelled=True)], 25),
        ([one(25, **late), one(50, **early, ground_truth=True)], 50),
        ([one(25), one(50)], 50),
    ):
        drawn = _draw(tmp_path, [{"id": 5, "data": {"image": "a.jpg"}, "annotations": done}])
        assert labels_of(tmp_path / "masks", "a").sum() == 64 * width // 100 * 20
        assert "1 tasks have several annotations" in "\n".join(drawn.messages)
    # As versions before 1.0 call them.
    _draw(tmp_path, [{"id": 5, "data": {"image": "a.jpg"}, "completions": [one(25)]}])
    assert labels_of(tmp_path / "masks", "a").sum() == 16 * 20


def test_a_skipped_task_is_not_annotated_and_an_empty_one_is_nothing(tmp_path: Path) -> None:
    photo = {"id": 6, "data": {"image": "my photo (1).jpg"}}
    shape = _box()
    empty = _draw(tmp_path, [_task(shape), {**photo, "annotations": [{"result": []}]}])
    assert [sample.name for sample in empty.samples] == ["a", "my photo (1)"]
    for skipped in ([], [{"result": [shape], "was_cancelled": True}]):
        drawn = _draw(tmp_path, [_task(shape), {**photo, "annotations": skipped}])
        assert [path.name for path in drawn.unannotated] == ["my photo (1).jpg"]


@pytest.mark.parametrize(
    "address",
    [
        "/data/upload/3/0a1b2c3d-my_photo_1.jpg",
        "/data/local-files/?d=some/where/my%20photo%20(1).jpg",
        "s3://bucket/set/my photo (1).jpg",
        "https://host/set/my%20photo%20(1).jpg?token=a.png",
        "C:\\set\\my photo (1).jpg",
        "../../../my photo (1).jpg",
    ],
)
def test_addresses_lead_to_the_picture(address: str, tmp_path: Path) -> None:
    shape = _box()
    drawn = _draw(tmp_path, [_task(shape, image=address)])
    assert [sample.name for sample in drawn.samples] == ["my photo (1)"]


def test_the_short_export_is_read_too(tmp_path: Path) -> None:
    row = {
        "image": "/data/upload/3/0a1b2c3d-a.jpg",
        "id": 5,
        "annotator": 1,
        "label": [{"x": 0, "y": 0, "width": 50, "height": 50, "rectanglelabels": ["x"], **WHOLE}],
        "tag": [{"rle": brush(np.eye(*SIZE, dtype=np.uint8)), "brushlabels": ["b"], **WHOLE}],
        "updated_at": "2026-01-01",
    }
    later = {**row, "updated_at": "2026-03-01", "tag": []}
    _draw(tmp_path, [row])
    mask = labels_of(tmp_path / "masks", "a")
    assert (mask[:20, :32] == 2).all() and mask[30, 30] == 1 and (mask == 1).sum() == 20
    _draw(tmp_path, [later, row])
    assert (labels_of(tmp_path / "masks", "a") == 1).sum() == 20 * 32


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (_result("brushlabels", "x", rle=[0, 0, 0, 1]), r"result\[0\]: a brush that (ends|is not)"),
        (_result("brushlabels", "x", rle=brush(np.ones((3, 3), np.uint8))), "40x64"),
        (_result("brushlabels", "x", rle=brush(np.ones(SIZE, np.uint8))[:9]), "ends before"),
        (_result("brushlabels", "x", rle=[300]), "range"),
        (_result("polygonlabels", "x", points=[[0, float("nan")]]), "no picture|finite|valid"),
        (_result("polygonlabels", "x", points=[[0, 1e40]] * 3), "no picture has"),
        (_result("polygonlabels", "x", points="all"), r"value: points"),
        (_box(original_width=10**9), "no size"),
        (_box(image_rotation=90), "90 degrees"),
        (_box(original_width=65), "40x65 .* 40x64"),
        ({"type": "labels", "value": {**BOX, "labels": ["x", "y"]}, **WHOLE}, "2 labels"),
        ("x", r"annotations\[0\]\.result\[0\]"),
    ],
)
def test_each_fault_is_one_line_that_names_file_and_task(
    result: Any, said: str, tmp_path: Path
) -> None:
    with pytest.raises(SegdeformError, match=rf"export\.json: .*({said})") as caught:
        _draw(tmp_path, [_task(result)])
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
    assert "task 5" in str(caught.value) or "[0]" in str(caught.value)


def test_two_pictures_in_a_task_are_refused(tmp_path: Path) -> None:
    task = _task(_box())
    task["data"] = {"left": "a.jpg", "right": "b.jpg"}
    with pytest.raises(SegdeformError, match="task 5: its data name 2 pictures"):
        _draw(tmp_path, [task])
