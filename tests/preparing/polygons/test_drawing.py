"""The one rule: against a golden picture, pycocotools, matplotlib's geometry, and as a property."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline
from pycocotools import mask as coco

from segdeform.data.dataset import IGNORE
from segdeform.errors import UnsafeInputError
from segdeform.preparing.polygons import drawing
from segdeform.preparing.polygons.annotation import Points, Runs, Shape
from segdeform.preparing.polygons.drawing import draw
from segdeform.preparing.polygons.geometry import ellipse, rectangle, turned
from tests.preparing.polygons.scenes import Mask, covered, distances, filled, star


def _picture(text: str) -> Mask:
    return np.array([[letter == "#" for letter in line] for line in text.split()])


def test_golden_rings_by_hand() -> None:
    # Centres at 0.5, 1.5, ...: the triangle's slope passes through (2.5, 2.5) and its like.
    triangle = filled([(1, 1), (5, 1), (1, 5)], (5, 7))
    np.testing.assert_array_equal(triangle, _picture("....... .###... .##.... .#..... ......."))
    square = filled([(1, 0.6), (3.4, 0.6), (3.4, 2.5), (1, 2.5)], (4, 6))
    np.testing.assert_array_equal(square, _picture("...... .##... ...... ......"))
    bow_tie = filled([(0, 0), (6, 4), (6, 0), (0, 4)], (4, 6))
    np.testing.assert_array_equal(bow_tie, _picture("#....# ##..## ##..## #....#"))


def test_a_bridge_to_a_hole_and_back_leaves_the_hole_free() -> None:
    outer, hole = [(0, 0), (8, 0), (8, 6), (0, 6), (0, 0)], [(2, 2), (2, 4), (5, 4), (5, 2), (2, 2)]
    mask = filled([*outer, *hole], (7, 9))
    expected = np.zeros((7, 9), np.bool_)
    expected[:6, :8] = True
    expected[2:4, 2:5] = False
    np.testing.assert_array_equal(mask, expected)


def test_rings_differ_from_pycocotools_only_where_a_centre_is_at_the_outline() -> None:
    rng = np.random.default_rng(3)
    different = both = 0
    for turn in range(400):
        size = (int(rng.integers(5, 60)), int(rng.integers(5, 60)))
        ring = rng.uniform(-15, 75, (rng.integers(3, 9), 2))
        ring = np.round(ring, turn % 4) if turn % 2 else ring
        theirs = coco.decode(coco.merge(coco.frPyObjects([ring.ravel().tolist()], *size)))
        mine = filled(ring, size)
        odd = np.argwhere(mine != (theirs == 1))
        assert not len(odd) or distances(odd, ring).max() < 0.3
        different, both = different + len(odd), both + int(mine.sum())
    assert 0 < different < 0.02 * both


def test_centres_inside_are_what_matplotlib_finds_inside() -> None:
    rng = np.random.default_rng(4)
    for _ in range(60):
        size = (int(rng.integers(9, 60)), int(rng.integers(9, 60)))
        ring = star(rng, int(rng.integers(3, 40)), size)
        rows, columns = np.indices(size)
        centres = np.stack((columns.ravel() + 0.5, rows.ravel() + 0.5), axis=1)
        inside = Outline(np.vstack((ring, ring[:1])), closed=True).contains_points(centres)
        np.testing.assert_array_equal(filled(ring, size).ravel(), inside)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(-4, 40), st.integers(-4, 40)), min_size=2, max_size=2, unique=True
    ),
    st.sampled_from([1.0, 0.5, 0.37]),
)
def test_two_shapes_with_a_common_edge_share_no_pixel_and_leave_none(
    edge: list[tuple[int, int]], scale: float
) -> None:
    (ax, ay), (bx, by) = ((x * scale, y * scale) for x, y in edge)
    far = np.array([(-by + ay), (bx - ax)]) * 100  # beyond the picture, at right angles
    a, b = np.array((ax, ay)), np.array((bx, by))
    along = (b - a) * 100
    left = filled([a - along, b + along, b + along + far, a - along + far], (17, 13))
    right = filled([b + along, a - along, a - along - far, b + along - far], (17, 13))
    assert (left ^ right).all()


def test_what_lies_out_of_the_picture_is_cut_off_and_nothing_else() -> None:
    rng = np.random.default_rng(5)
    for _ in range(40):
        ring = rng.uniform(-30, 60, (7, 2))
        whole = filled(ring + 40, (110, 110))
        np.testing.assert_array_equal(filled(ring, (19, 23)), whole[40:59, 40:63])


def test_huge_coordinates_are_cut_off_too() -> None:
    assert filled([(-1e9, -1e9), (1e9, -1e9), (1e9, 1e9), (-1e9, 1e9)], (5, 4)).all()
    half = filled([(-1e9, 2.0), (1e9, 2.0), (0.0, 1e9)], (5, 4))
    np.testing.assert_array_equal(half[:, 1], [False, False, True, True, True])


def test_long_rings_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    ring = star(np.random.default_rng(6), 300, (90, 80))
    at_once = filled(ring, (90, 80))
    monkeypatch.setattr(drawing, "_CHUNK", 7)
    np.testing.assert_array_equal(filled(ring, (90, 80)), at_once)
    monkeypatch.setattr(drawing, "_MOST_CROSSINGS", 100)
    with pytest.raises(UnsafeInputError, match="crosses"):
        filled(ring, (90, 80))


def test_ellipses_and_turned_rectangles_are_what_their_equations_say() -> None:
    size = (60, 70)
    rows, columns = np.indices(size)
    x, y = columns + 0.5 - 33.3, rows + 0.5 - 28.1
    angle = np.radians(30)
    across, down = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    oval = filled(turned(ellipse(33.3, 28.1, 25, 11), 30, 33.3, 28.1), size)
    level = np.hypot(across / 25, down / 11)
    np.testing.assert_array_equal(
        oval[np.abs(level - 1) > 1e-3], (level < 1)[np.abs(level - 1) > 1e-3]
    )
    box = filled(turned(rectangle(13.3, 18.1, 53.3, 38.1), 30, 33.3, 28.1), size)
    np.testing.assert_array_equal(box, (np.abs(across) < 20) & (np.abs(down) < 10))


def test_ellipses_of_any_size_have_a_bounded_outline() -> None:
    for radius, corners in ((0.0, 8), (1.0, 23), (1e3, 703), (1e12, 100_000), (1e300, 100_000)):
        assert abs(len(ellipse(4, 4, radius, radius / 2)) - corners) <= 1
    assert filled(ellipse(2, 2, 1e9, 1e9), (5, 4)).all()


def _square(left: int, top: int, side: int) -> Points:
    return rectangle(left, top, left + side, top + side)


def test_rings_of_one_shape_are_a_union() -> None:
    shape = Shape("a", "a", rings=(_square(0, 0, 4), _square(2, 2, 4), _square(9, 1, 1)))
    expected = filled(_square(0, 0, 4), (8, 11)) | filled(_square(2, 2, 4), (8, 11))
    expected[1, 9] = True
    np.testing.assert_array_equal(covered(shape, (8, 11)), expected)


def test_later_shapes_are_on_top_or_smaller_ones_and_crowds_below_all() -> None:
    classes = {"large": 1, "small": 2, "equal": 3}
    shapes = (
        Shape("small", "0", rings=(_square(2, 2, 2),)),
        Shape("large", "1", rings=(_square(0, 0, 5),)),
        Shape("equal", "2", rings=(_square(3, 3, 2),)),
        Shape("small", "3", rings=(_square(0, 0, 7),), crowd=True),
    )
    in_order, _ = draw(shapes, (8, 8), classes, 0, smaller_on_top=False, number=5)
    by_size, _ = draw(shapes, (8, 8), classes, 0, smaller_on_top=True, number=5)
    expected = np.zeros((8, 8), np.uint8)
    expected[:7, :7] = IGNORE
    expected[:5, :5] = 1
    later = expected.copy()
    later[3:5, 3:5] = 3
    np.testing.assert_array_equal(in_order, later)
    expected[2:4, 2:4] = 2
    expected[3:5, 3:5] = 3  # as large, and later
    np.testing.assert_array_equal(by_size, expected)


def test_shapes_that_leave_no_pixel_are_told_by_the_reason() -> None:
    shapes = [
        Shape("a", "0", rings=(np.array([(1.0, 1.0), (5.0, 5.0)]),)),
        Shape("a", "1", rings=(np.array([(1.0, 1.0), (5.0, 5.0), (3.0, 3.0)]),)),
        Shape("a", "2", rings=(_square(20, 2, 3),)),
        Shape("a", "3", rings=(rectangle(1, 1.6, 5, 2.4),)),
        Shape("a", "4", runs=Runs(0, 0, 2, 3, np.array([6]))),
        Shape("a", "5", rings=(_square(1, 1, 1),)),
    ]
    labels, lost = draw(shapes, (6, 9), {"a": 4}, 0, smaller_on_top=False, number=5)
    assert lost == {
        "with fewer than 3 points": 1,
        "without area, or too thin to cover the centre of a pixel": 2,
        "outside of their picture": 1,
        "empty bitmaps": 1,
    }
    assert np.argwhere(labels).tolist() == [[1, 1]] and labels.max() == 4


@pytest.mark.parametrize(("top", "left"), [(0, 0), (-1, 2), (3, -2), (4, 4), (9, 0), (0, -9)])
def test_bitmaps_lie_where_they_say_cut_at_the_border(top: int, left: int) -> None:
    bits = np.random.default_rng(1).random((3, 4)) < 0.5
    runs = np.diff(np.flatnonzero(np.diff(bits.ravel(), prepend=False, append=True)), prepend=0)
    lengths = np.append(runs, 12 - runs.sum())
    shape = Shape("a", "a", runs=Runs(top, left, 3, 4, lengths))
    wide = np.zeros((30, 30), np.bool_)
    wide[10 + top : 13 + top, 10 + left : 14 + left] = bits
    np.testing.assert_array_equal(covered(shape, (6, 7)), wide[10:16, 10:17])


@pytest.mark.parametrize(
    ("height", "width", "lengths", "said"),
    [
        (3, 4, [5, 6], "do not sum up"),
        (3, 4, [5, -2, 9], "negative"),
        (3, 4, [1 << 62, 1 << 62, 1 << 62, 1 << 62, 12], "do not sum up"),
        (0, 4, [], "0x4"),
        (1 << 40, 1 << 40, [12], "more than any picture"),
    ],
)
def test_runs_that_claim_what_is_not_so_are_refused(
    height: int, width: int, lengths: list[int], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        Runs(0, 0, height, width, np.array(lengths, np.int64))
