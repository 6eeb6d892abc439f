"""LabelMe's files against what its documentation says: PIL's fills, document order, PNGs inside."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin
from scipy import ndimage

from segdeform.errors import SegdeformError
from segdeform.preparing.polygons.rasterising import Drawn, draw_annotations
from tests.preparing.polygons.scenes import distances, labels_of, star, write_pictures

SIZE = (61, 47)


def _png(bits: np.ndarray, mode: str = "1") -> str:
    buffer = io.BytesIO()
    Image.fromarray(bits.astype(np.uint8) * 255).convert(mode).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _shape(label: str, kind: str | None, points: Any, **more: Any) -> dict[str, Any]:
    points = np.asarray(points, float).tolist()
    return {"label": label, "shape_type": kind, "points": points, "group_id": None, **more}


def _write(path: Path, shapes: list[Any], image: str | None, **more: Any) -> None:
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image}
    size = {"imageHeight": SIZE[0], "imageWidth": SIZE[1], "imageData": "AAAA" * 20_000}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**content, **size, **more}))


def _draw(tmp_path: Path, **options: Any) -> Drawn:
    images = write_pictures(tmp_path / "images", {"a.jpg": SIZE})
    return draw_annotations(tmp_path / "json", images, tmp_path / "masks", **options)


def test_shapes_are_what_pil_fills_but_for_its_border(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for _ in range(6):
        ring = star(rng, int(rng.integers(3, 12)), SIZE)
        low, high = ring.min(axis=0), ring.max(axis=0)
        radius = float(np.hypot(*(high - low))) / 5
        middle = tuple((low + high) / 2)
        edge = (middle[0] + radius, middle[1])
        for kind, points in (
            ("polygon", ring),
            (None, ring),
            ("rotation", ring[:4]),
            ("rectangle", (low, high)),
            ("rectangle", (high, low)),
            ("circle", (middle, edge)),
        ):
            _write(tmp_path / "json" / "a.json", [_shape("x", kind, points)], "a.jpg")
            _draw(tmp_path)
            mine = labels_of(tmp_path / "masks", "a") == 1
            canvas = Image.new("1", SIZE[::-1])
            pen = ImageDraw.Draw(canvas)
            turn = np.linspace(0, 2 * np.pi, 400)
            if kind == "circle":
                box = [middle[0] - radius, middle[1] - radius, edge[0], middle[1] + radius]
                pen.ellipse(box, outline=1, fill=1)
                outline = np.array(middle) + radius * np.stack((np.cos(turn), np.sin(turn)), 1)
            elif kind == "rectangle":
                pen.rectangle([*low, *high], outline=1, fill=1)
                outline = np.array([low, (high[0], low[1]), high, (low[0], high[1])])
            else:
                outline = np.asarray(points)
                pen.polygon([tuple(point) for point in outline.tolist()], outline=1, fill=1)
            theirs = np.array(canvas)
            odd = np.argwhere(mine != theirs)
            assert mine.any() and (not len(odd) or distances(odd, outline).max() < 1.3)
            assert mine.sum() < theirs.sum(), "no border is added"


def test_later_shapes_are_on_top_and_masks_are_taken_as_they_are(tmp_path: Path) -> None:
    bits = np.random.default_rng(2).random((7, 9)) < 0.5
    _write(
        tmp_path / "json" / "a.json",
        [
            _shape("zebra", "rectangle", [(0, 0), (40, 50)]),
            _shape("_background_", "polygon", [(4, 4), (8, 4), (8, 8), (4, 8)]),
            _shape("__ignore__", "rectangle", [(30, 30), (33, 34)], group_id=4),
            _shape("ant", "mask", [(10, 20), (18, 26)], mask=_png(bits)),
        ],
        "a.jpg",
    )
    drawn = _draw(tmp_path)
    assert drawn.classes == ("background", "ant", "zebra")
    expected = np.zeros(SIZE, np.uint8)
    expected[:50, :40] = 2
    expected[4:8, 4:8] = 0
    expected[30:34, 30:33] = 255
    expected[20:27, 10:19][bits] = 1
    np.testing.assert_array_equal(labels_of(tmp_path / "masks", "a"), expected)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_pngs_of_other_modes_and_at_the_border(mode: str, tmp_path: Path) -> None:
    bits = np.ones((8, 5), np.bool_)
    points = [(SIZE[1] - 3, -2), (SIZE[1] + 1, 5)]
    _write(tmp_path / "json/a.json", [_shape("x", "mask", points, mask=_png(bits, mode))], "a.jpg")
    _draw(tmp_path)
    expected = np.zeros(SIZE, np.uint8)
    expected[:6, -3:] = 1
    np.testing.assert_array_equal(labels_of(tmp_path / "masks", "a"), expected)


def test_lines_and_points_have_no_area_and_are_told(tmp_path: Path) -> None:
    _write(
        tmp_path / "json" / "a.json",
        [
            _shape("x", "line", [(0, 0), (9, 9)]),
            _shape("x", "linestrip", [(0, 0), (9, 9), (3, 9)]),
            _shape("x", "point", [(0, 0)]),
            _shape("x", "cuboid", [(0, 0)] * 8),
            _shape("y", "polygon", [(0, 0), (5, 0), (0, 5)]),
            _shape("y", "polygon", [(0, 0), (5, 0)]),
        ],
        "a.jpg",
    )
    drawn = _draw(tmp_path)
    assert drawn.classes == ("background", "y")
    told = "\n".join(drawn.messages)
    for said in ("1 lines", "1 line strips", "1 points", "'cuboid'", "fewer than 3 points"):
        assert said in told
    _write(tmp_path / "json" / "a.json", [_shape("x", "linestrip", [(0, 0), (9, 9)])], "a.jpg")
    with pytest.raises(SegdeformError, match=r"only 1 line strips \(--line-width.*no area"):
        _draw(tmp_path)


@pytest.mark.parametrize("width", [1, 2.5, 9])
def test_lines_of_a_width_cover_what_is_near_them(width: float, tmp_path: Path) -> None:
    points = np.array([(4.2, 5.1), (30.3, 12.9), (30.3, 12.9), (22.0, 50.5), (60, 58)])
    shapes = [_shape("x", "linestrip", points), _shape("y", "line", [(40, 2), (40, 2)])]
    _write(tmp_path / "json" / "a.json", shapes, "a.jpg")
    drawn = _draw(tmp_path, line_width=width)
    assert drawn.classes == ("background", "x", "y") and "line strips" not in str(drawn.messages)
    pixels = np.stack([axis.ravel() for axis in np.indices(SIZE)], axis=1)
    # There and back again, an outline is a line.
    away = distances(pixels, np.concatenate((points, points[::-1]))).reshape(SIZE)
    mask = labels_of(tmp_path / "masks", "a")
    sure = np.abs(away - width / 2) > 0.011
    np.testing.assert_array_equal((mask == 1)[sure], (away < width / 2)[sure])
    assert ndimage.label(mask == 1, np.ones((3, 3)))[1] == 1, "without a gap"
    middle = distances(pixels, np.array([(40.0, 2.0)])).reshape(SIZE)
    assert ((mask == 2) <= (middle <= width / 2)).all() and (mask == 2).sum() >= (width > 1)


def test_old_and_renamed_files_find_their_picture(tmp_path: Path) -> None:
    images = write_pictures(
        tmp_path / "images", {"a.jpg": SIZE, "b.png": SIZE, "deep/c.jpg": SIZE, "d.jpg": SIZE}
    )
    folder, ring = tmp_path / "json", [(1, 1), (9, 1), (9, 9)]
    shapes = [_shape("x", "polygon", ring)]
    _write(folder / "one.json", shapes, "..\\images\\a.jpg")
    _write(folder / "b.json", shapes, "C:\\Users\\me\\old name.jpg")
    # As version 3 wrote them: no kinds, no sizes, colours.
    (folder / "deep").mkdir()
    old = {"label": "x", "line_color": None, "fill_color": None, "points": ring}
    text = json.dumps({"flags": {}, "shapes": [old], "lineColor": [0, 255, 0], "imageData": None})
    (folder / "deep" / "c.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    _write(folder / "d.json", [], "d.jpg")
    (folder / "notes.json").write_text('{"shape": 1}')
    (folder / ".hidden.json").write_text("{")
    drawn = draw_annotations(folder, images, tmp_path / "masks")
    assert [sample.name for sample in drawn.samples] == ["a", "b", "d", "deep/c"]
    assert not labels_of(tmp_path / "masks", "d").any(), "saved without a shape: nothing there"
    for name in ("a", "b", "deep/c"):
        assert labels_of(tmp_path / "masks", name).sum() == 36, "with the centres on the slope"
    assert "1 JSON files are not LabelMe's" in "\n".join(drawn.messages)


def test_files_beside_the_pictures_are_read(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", {"a.jpg": SIZE})
    _write(images / "a.json", [_shape("x", "rectangle", [(0, 0), (2, 2)])], "a.jpg")
    drawn = draw_annotations(images, images, tmp_path / "masks")
    assert len(drawn.samples) == 1


def _bomb() -> str:
    """Returns the beginning of a PNG of 900 megapixels: nobody shall ask for more of it."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0))
    content = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9)))
    return base64.b64encode(content).decode()


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (_shape("x", "circle", [(1, 1)]), r"circle has 2 points"),
        (_shape("x", "rectangle", [(1, 1)] * 3), r"rectangle has 2 points, or 4"),
        (_shape("x", "mask", [(1, 1), (4, 4)]), r"a mask has 2 points and a PNG"),
        (_shape("x", "mask", [(1, 1), (4, 4)], mask="@@"), r"no base64"),
        (_shape("x", "mask", [(1, 1), (4, 4)], mask="AAAA"), r"no PNG"),
        (_shape("x", "mask", [(1, 1), (4, 4)], mask=_png(np.ones((3, 4)))), r"3x4 .* of 4x4"),
        (_shape("x", "mask", [(1, 1), (4, 4)], mask=_bomb()), r"30000x30000"),
        (_shape("x", "mask", [(0, 0), (29999, 29999)], mask=_bomb()), r"more than any picture"),
        (_shape("x", "mask", [(0, 0), (59, 59)], mask=_png(np.ones((60, 60)))), r"60x60 for a"),
        (_shape("x", "polygon", [(1, 1e30)] * 3), r"no picture has"),
        ({"label": "x", "points": [[1, 2, 3]]}, r"shapes\[0\]\.points\[0\]"),
        ({"label": 7, "points": []}, r"shapes\[0\]\.label"),
        ({"points": []}, r"shapes\[0\]\.label"),
        ("x", r"shapes\[0\]"),
    ],
)
def test_each_fault_is_one_line_that_names_file_and_shape(
    shape: Any, said: str, tmp_path: Path
) -> None:
    _write(tmp_path / "json" / "a.json", [shape], "a.jpg")
    with pytest.raises(SegdeformError, match=rf"a\.json: .*{said}") as caught:
        _draw(tmp_path)
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
    assert "shapes[0]" in str(caught.value) or "60x60" in str(caught.value)


def test_a_bomb_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda self: pytest.fail("decoded"))
    for end in (4, 29_999):
        shape = _shape("x", "mask", [(0, 0), (end, end)], mask=_bomb())
        _write(tmp_path / "json" / "a.json", [shape], "a.jpg")
        with pytest.raises(SegdeformError, match=r"shapes\[0\]"):
            _draw(tmp_path)


def test_two_files_of_one_picture_are_refused(tmp_path: Path) -> None:
    for name in ("a.json", "other.json"):
        _write(tmp_path / "json" / name, [_shape("x", "rectangle", [(0, 0), (2, 2)])], "a.jpg")
    with pytest.raises(SegdeformError, match=r"other\.json.*a\.json.*both of"):
        _draw(tmp_path)
