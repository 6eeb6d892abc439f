"""CVAT's XML against its documented examples and a second decoder, and what XML can do to harm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from segdeform.errors import SegdeformError
from segdeform.preparing.polygons.rasterising import Drawn, draw_annotations
from tests.preparing.polygons.foreign import load_file
from tests.preparing.polygons.scenes import (
    filled,
    labels_of,
    star,
    write_pictures,
)

SIZE = (50, 71)
META = """<meta><task><name>t</name><labels>
<label><name>sign</name><color>#0000ff</color><type>any</type><attributes>
<attribute><name>label</name><values>x</values></attribute></attributes></label>
<label><name>crack</name><color>#ff0000</color></label>
<label><name>spot</name><color>#00ff00</color><type>points</type></label>
</labels></task></meta>"""


def _write(path: Path, shapes: str, meta: str = META, name: str = "road/a.jpg") -> Path:
    image = f'<image id="3" name="{name}" width="{SIZE[1]}" height="{SIZE[0]}">{shapes}</image>'
    path.write_text(
        f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{meta}{image}'
        '<image id="4" name="road/b.jpg" width="71" height="50"></image></annotations>'
    )
    return path


def _draw(tmp_path: Path, shapes: str, **options: Any) -> Drawn:
    images = write_pictures(tmp_path / "images", {"road/a.jpg": SIZE, "road/b.jpg": SIZE})
    path = _write(tmp_path / "annotations.xml", shapes)
    return draw_annotations(path, images, tmp_path / "masks", **options)


def _points(ring: np.ndarray) -> str:
    return ";".join(f"{x:.2f},{y:.2f}" for x, y in ring)


def test_z_order_then_document_order_decides(tmp_path: Path) -> None:
    def box(label: str, left: int, z_order: str) -> str:
        return (
            f'<box label="{label}" source="manual" occluded="1" xtl="{left}.00" ytl="2.00" '
            f'xbr="{left + 20}.00" ybr="12.00" {z_order}><attribute name="a">b</attribute></box>'
        )

    drawn = _draw(
        tmp_path,
        box("sign", 10, 'z_order="1"') + box("crack", 20, 'z_order="0"')
        + box("sign", 35, 'z_order="-2"') + box("crack", 25, 'z_order="1"')
        + '<tag label="sign"></tag>',
    )  # fmt: skip
    assert drawn.classes == ("background", "sign", "crack")
    assert drawn.palette == ((0, 0, 0), (0, 0, 255), (255, 0, 0))
    row = np.zeros(SIZE[1], np.uint8)
    row[35:55], row[20:40], row[10:30], row[25:45] = 1, 2, 1, 2
    mask = labels_of(tmp_path / "masks", "road/a")
    np.testing.assert_array_equal(mask[7], row)
    assert not mask[:2].any() and not mask[12:].any()
    assert [path.name for path in drawn.unannotated] == ["b.jpg"], "CVAT lists every frame"


def test_polygons_ellipses_and_turned_boxes_are_where_cvat_draws_them(tmp_path: Path) -> None:
    ring = star(np.random.default_rng(5), 9, SIZE).round(2)
    for shape, outline, theirs in (
        (f'<polygon label="crack" points="{_points(ring)}"/>', ring, filled(ring, SIZE)),
        (
            '<ellipse label="crack" cx="30.0" cy="25.0" rx="20.0" ry="8.0" rotation="25.00"/>',
            None,
            _by_opencv((30, 25), (20, 8), 25),
        ),
        (
            '<box label="crack" xtl="10" ytl="15" xbr="50" ybr="35" rotation="300.0"/>',
            cv2.boxPoints(((30.0, 25.0), (40.0, 20.0), -60.0)),
            None,
        ),
    ):
        _draw(tmp_path, shape)
        mine = labels_of(tmp_path / "masks", "road/a") == 2
        if theirs is None:
            theirs = filled(outline, SIZE)
        assert mine.sum() > 200
        odd = np.argwhere(mine != theirs)
        assert not len(odd) or (outline is None and len(odd) < 0.06 * mine.sum())


def _by_opencv(centre: tuple[int, int], radii: tuple[int, int], degrees: float) -> np.ndarray:
    """Draws an ellipse eight times as large, and takes the centres."""
    large = np.zeros((8 * SIZE[0], 8 * SIZE[1]), np.uint8)
    middle = tuple(8 * value for value in centre)
    cv2.ellipse(large, middle, tuple(8 * r for r in radii), degrees, 0, 360, 1, -1)
    return large[4::8, 4::8] == 1


def test_masks_are_runs_along_the_rows_of_their_box(tmp_path: Path) -> None:
    # The example of CVAT's documentation of run lengths, by hand: rows of 00011 / 11100 / 00000.
    drawn = _draw(
        tmp_path,
        '<mask label="crack" source="semi-auto" occluded="0" rle="3, 5, 7" left="4" top="2" '
        'width="5" height="3" z_order="0"></mask>',
    )
    expected = np.zeros(SIZE, np.uint8)
    expected[2, 7:9] = expected[3, 4:7] = 2
    np.testing.assert_array_equal(labels_of(tmp_path / "masks", "road/a"), expected)
    assert len(drawn.samples) == 1


def test_masks_are_what_cvat_encodes(tmp_path: Path) -> None:
    theirs = load_file("cvat_sdk", "masks.py")
    rng = np.random.default_rng(6)
    for density in (0.4, 0.01, 0.999):
        bits = np.zeros(SIZE, np.bool_)
        bits[11:28, 30:53] = rng.random((17, 23)) < density
        *runs, left, top, right, bottom = theirs.encode_mask(bits)
        _draw(
            tmp_path,
            f'<mask label="sign" rle="{", ".join(map(str, runs))}" left="{left}" top="{top}" '
            f'width="{right - left + 1}" height="{bottom - top + 1}"/>',
        )
        np.testing.assert_array_equal(labels_of(tmp_path / "masks", "road/a"), bits)


def test_shapes_without_area_are_left_out_and_told(tmp_path: Path) -> None:
    flat = (
        '<polyline label="crack" points="1,1;9,9"/><points label="spot" points="1,1;2,2"/>'
        '<cuboid label="crack" xtl1="1"/><skeleton label="spot"><points label="0" points="1,1"/>'
        "</skeleton>"
    )
    drawn = _draw(tmp_path, flat + '<polygon label="crack" points="1,1;9,1;9,9"/>')
    told = "\n".join(drawn.messages)
    for said in ("1 polylines", "1 points", "1 cuboids", "1 skeletons"):
        assert said in told
    with pytest.raises(SegdeformError, match=r"polylines.* have no area"):
        _draw(tmp_path, flat)
    assert len(_draw(tmp_path, flat, line_width=3).samples) == 1
    assert 8 * 3 < labels_of(tmp_path / "masks", "road/a").astype(bool).sum() < 50


def test_pictures_of_two_subsets_are_told_apart(tmp_path: Path) -> None:
    images = write_pictures(tmp_path / "images", {"train/a.jpg": SIZE, "val/a.jpg": SIZE})
    parts = "".join(
        f'<image id="{index}" name="a.jpg" subset="{subset}" width="71" height="50">'
        f'<box label="x" xtl="0" ytl="0" xbr="{index}" ybr="2"/></image>'
        for index, subset in ((4, "val"), (9, "train"))
    )
    path = tmp_path / "annotations.xml"
    path.write_text(f"<annotations><meta></meta>{parts}</annotations>")
    draw_annotations(path, images, tmp_path / "masks")
    assert labels_of(tmp_path / "masks", "val/a").sum() == 8
    assert labels_of(tmp_path / "masks", "train/a").sum() == 18
    path.write_text(path.read_text().replace('subset="val"', "").replace('subset="train"', ""))
    with pytest.raises(SegdeformError, match=r"image 4 \(a\.jpg\) may mean .*train/a.*val/a"):
        draw_annotations(path, images, tmp_path / "masks2")


_LAUGHS = (
    '<!DOCTYPE annotations [<!ENTITY a "ha">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + "]><annotations><meta>&j;</meta></annotations>"
)
_OUTSIDE = (
    '<!DOCTYPE annotations [<!ENTITY x SYSTEM "file:///etc/passwd">]>'
    "<annotations><meta>&x;</meta></annotations>"
)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (_LAUGHS, 6, "document type"),
        (_OUTSIDE, 6, "document type"),
        ("<annotations>" + "<a>" * 100_000, 6, "64 deep"),
        ("<annotations><meta></annotations>", 4, "not well-formed"),
        ("<annotations>", 4, "not well-formed"),
        ("<annotation><object/></annotation>", 4, "<annotation>, not CVAT"),
        ("<annotations><track id='0' label='x'></track></annotations>", 4, "CVAT for video"),
        ("<annotations></annotations>", 4, "without a single picture"),
        ("<annotations><image id='1'></image></annotations>", 4, "image 1 .*no name"),
        ('<?xml version="1.0" encoding="klingon"?><annotations/>', 4, "not well-formed|cannot"),
    ],
)
def test_files_that_mean_harm_or_are_of_another_kind_are_one_line(
    text: str, code: int, said: str, tmp_path: Path
) -> None:
    images = write_pictures(tmp_path / "images", {"road/a.jpg": SIZE})
    path = tmp_path / "annotations.xml"
    path.write_text(text)
    with pytest.raises(SegdeformError, match=rf"annotations\.xml: .*({said})") as caught:
        draw_annotations(path, images, tmp_path / "masks")
    assert caught.value.exit_code == code and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ('<polygon label="x" points="1,1;2"/>', "points is not"),
        ('<polygon label="x" points="1,nan;2,2;3,3"/>', "points is not"),
        ('<polygon label="x" points="1,1e99;2,2;3,3"/>', "points is not"),
        ('<polygon label="x"/>', "points is not"),
        ('<polygon points="1,1;2,2;3,4"/>', "label: .*name of a class"),
        ('<box label="x" xtl="0" ytl="0" xbr="4"/>', "ybr is not"),
        ('<ellipse label="x" cx="0" cy="0" rx="inf" ry="1"/>', "rx is not"),
        ('<box label="x" z_order="top" xtl="0" ytl="0" xbr="4" ybr="4"/>', "z_order.*'top'"),
        ('<mask label="x" rle="9" left="0" top="0" width="3" height="2"/>', "do not sum up"),
        ('<mask label="x" rle="2.5,3.5" left="0" top="0" width="3" height="2"/>', "rle is not"),
        ('<mask label="x" rle="-3,9" left="0" top="0" width="3" height="2"/>', "negative"),
        ('<mask label="x" rle="9" left="0" top="0" width="999999" height="999999"/>', "more than"),
        ('<mask label="x" rle="0,5100" left="0" top="0" width="100" height="51"/>', "51x100 for a"),
        ('<mask label="x" rle="1" left="0" top="0" width="one" height="1"/>', "width: 'one'"),
    ],
)
def test_each_fault_is_one_line_that_names_file_and_shape(
    shape: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(SegdeformError, match=rf"annotations\.xml: image 3 .*{said}") as caught:
        _draw(tmp_path, shape)
    assert caught.value.exit_code == 4 and "\n" not in str(caught.value)
