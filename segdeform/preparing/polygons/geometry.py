"""Rings of rectangles and ellipses, turned or not, and of lines of a width."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from segdeform.preparing.polygons.annotation import Points

_SAGITTA = 0.01  # pixels: how far an ellipse's ring may lie inside of the ellipse
_MOST_CORNERS = 100_000


def rectangle(left: float, top: float, right: float, bottom: float) -> Points:
    """Returns the four corners, [4, 2]."""
    return np.array([(left, top), (right, top), (right, bottom), (left, bottom)], np.float64)


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> Points:
    """Returns a ring [N, 2] that is an ellipse to within a hundredth of a pixel."""
    radius = max(abs(radius_x), abs(radius_y))
    # A chord of a circle over the angle 2a lies radius * (1 - cos a) inside of it.
    share = min(_SAGITTA / radius, 1.0) if radius > 0 else 1.0
    half = max(math.acos(1 - share), math.pi / _MOST_CORNERS)
    corners = max(math.ceil(math.pi / half), 8)
    angle = np.arange(corners) * (2 * np.pi / corners)
    return np.stack((x + radius_x * np.cos(angle), y + radius_y * np.sin(angle)), axis=1)


def turned(ring: Points, degrees: float, x: float, y: float) -> Points:
    """Turns a ring [N, 2] around (x, y), clockwise as it is seen on the screen."""
    if degrees % 360 == 0:
        return ring
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    across, down = ring[:, 0] - x, ring[:, 1] - y
    return np.stack((x + cosine * across - sine * down, y + sine * across + cosine * down), axis=1)


def stroke(points: Points, width: float) -> tuple[Points, ...]:
    """Returns rings of which the union is a line [N, 2] of a width, with round ends and joints."""
    rings = [ellipse(x, y, width / 2, width / 2) for x, y in points.tolist()]
    for start, end in pairwise(points):
        along = end - start
        length = float(np.hypot(*along))
        if length > 0:
            aside = np.array([-along[1], along[0]]) * (width / 2 / length)
            rings.append(np.array([start + aside, end + aside, end - aside, start - aside]))
    return tuple(rings)
