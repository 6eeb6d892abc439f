"""Drawings of sampling points and offsets: everything stands where it belongs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segdeform.explaining.drawing import draw_offsets, draw_points, point_colours, point_radii
from segdeform.explaining.sampling import LayerSampling, Points


def near(drawing: NDArray[np.uint8], colour: tuple[int, int, int]) -> tuple[float, float]:
    """Returns the mean row and column of what is drawn in a colour."""
    rows, columns = np.nonzero((drawing == colour).all(2))
    return float(rows.mean()), float(columns.mean())


def test_points_stand_where_the_samples_are_and_places_are_ringed() -> None:
    image = np.full((60, 100, 3), 128, np.uint8)
    scale = 9.6  # the longer side becomes 960 pixels
    one = Points(np.array([10.0]), np.array([80.0]), np.ones(1, np.float32), 0)
    two = Points(np.array([50.0]), np.array([20.0]), np.ones(1, np.float32), 0)
    places = [(10, 80), (50, 20)]
    drawing = np.asarray(draw_points(image, places, [one, two]))
    assert drawing.shape == (576, 960, 3)
    first, second = point_colours(2)
    assert first != second
    for (y, x), colour in zip(places, (first, second), strict=True):
        row, column = near(drawing, colour)
        assert abs(row - (y + 0.5) * scale) < 3 and abs(column - (x + 0.5) * scale) < 3
        middle = drawing[round((y + 0.5) * scale), round((x + 0.5) * scale)]
        assert middle.tolist() == [255, 255, 255]


def test_samples_that_weigh_more_are_larger() -> None:
    radii = point_radii(np.array([0.0, 1.0, 2.0, 1.0], np.float32))
    assert radii[1] == radii[3] == 1 and radii[0] == 0.5
    assert radii[2] == np.float32(np.sqrt(2))
    image = np.zeros((40, 40, 3), np.uint8)
    at = Points(np.array([5.0, 30.0]), np.array([5.0, 30.0]), np.array([0.2, 2.0], np.float32), 0)
    drawing = np.asarray(draw_points(image, [(20, 5)], [at]))
    marked = (drawing == point_colours(1)[0]).all(2)
    corner = 400  # of 960
    assert marked[corner:, corner:].sum() > 3 * marked[: corner // 2, : corner // 2].sum() > 0


def test_offsets_are_drawn_around_the_pixel_that_a_place_is_centred_on() -> None:
    """Stride 8: the place in row 2 and column 3 is centred on pixel (16, 24)."""
    offset = np.zeros((1, 9, 2, 5, 6), np.float32)
    offset[0, :, 0, 2, 3] = 2  # steps of 8 pixels down
    offset[0, :, 1, 4, 0] = 1  # half as far
    layer = LayerSampling(
        "layer", (3, 3), (1, 1), (1, 1), (1, 1), (5, 6), 8, offset,
        np.ones((1, 9, 5, 6), np.float32),
    )  # fmt: skip
    drawing = np.asarray(draw_offsets(layer, (38, 45), largest=16.0)).astype(int)
    assert drawing.shape == (38, 45, 3)
    bright = (drawing == 255).all(2)
    rows, columns = np.nonzero(bright)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (12, 19, 20, 27)
    assert (drawing[28:36, :4] == (255, 127, 0)).all()  # half as far: orange
