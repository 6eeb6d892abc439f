"""The outlines of the shapes data set's classes, and their random bending, shear and rotation."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Outline = list[Points]  # closed contours [P, 2] of (x, y), even-odd filled


def disc() -> Outline:
    """Returns a circle."""
    return [_arc(1.0, 0, 2 * math.pi)]


def ring() -> Outline:
    """Returns a circle with a round hole."""
    return [_arc(1.05, 0, 2 * math.pi), _arc(0.55, 0, 2 * math.pi)]


def triangle() -> Outline:
    """Returns an equilateral triangle."""
    return [_polygon([_polar(1.25, 120 * corner) for corner in range(3)])]


def square() -> Outline:
    """Returns a square."""
    return [_polygon([_polar(1.2, 90 * corner) for corner in range(4)])]


def star() -> Outline:
    """Returns a star of five points."""
    return [_polygon([_polar(0.5 if i % 2 else 1.25, 36 * i) for i in range(10)])]


def cross() -> Outline:
    """Returns a plus sign."""
    arm, width = 1.15, 0.36
    corners = [(arm, -width), (arm, width), (width, width)]
    turned = [corners]
    for _ in range(3):
        turned.append([(-y, x) for x, y in turned[-1]])
    return [_polygon([point for quarter in turned for point in quarter])]


def crescent() -> Outline:
    """Returns a moon: a circle without the part that another circle covers."""
    outer, inner, apart = 1.15, 0.95, 0.5  # radii and distance of the two circles
    x = (outer**2 - inner**2 + apart**2) / (2 * apart)  # where they meet
    y = math.sqrt(outer**2 - x**2)
    tip, hollow = math.atan2(y, x), math.atan2(y, x - apart)
    outside = _arc(outer, tip, 2 * math.pi - tip)
    inside = _arc(inner, 2 * math.pi - hollow, hollow) + np.array([apart, 0])
    return [np.concatenate([outside, inside]) + np.array([0.3, 0])]


def _polar(radius: float, degrees: float) -> tuple[float, float]:
    angle = math.radians(degrees)
    return radius * math.cos(angle), radius * math.sin(angle)


def _arc(radius: float, start: float, end: float) -> Points:
    angles = np.linspace(start, end, 64)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _polygon(corners: list[tuple[float, float]]) -> Points:
    """Returns the closed polygon with points along its sides, so that they can be bent."""
    points = np.array(corners)
    steps = np.linspace(0, 1, 12, endpoint=False)[:, None]
    following = np.roll(points, -1, axis=0)
    sides = [a + (b - a) * steps for a, b in zip(points, following, strict=True)]
    return np.concatenate(sides)


def pose(
    rng: np.random.Generator,
    outline: Outline,
    radius: float,  # pixels, what the unit becomes
    size: int,  # pixels, side of the picture
    deformation: float = 1.0,  # times the usual bending and shear
) -> Outline:
    """Bends, shears, turns, enlarges and moves an outline at random: unit size to pixels."""
    first, last = _rotation(rng.uniform(0, 2 * math.pi)), _rotation(rng.uniform(0, 2 * math.pi))
    bend = deformation * rng.uniform(-0.35, 0.35)
    shear = np.array([[1, deformation * rng.uniform(-0.25, 0.25)], [0, 1]])
    centre = rng.uniform(0.06, 0.94, 2) * size
    return [
        radius * (_bent(contour @ first.T, bend) @ (last @ shear).T) + centre for contour in outline
    ]


def _bent(points: Points, curvature: float) -> Points:
    """Wraps the x axis around a circle of the given curvature; lengths along it are kept."""
    if abs(curvature) < 1e-3:
        return points
    radius = 1 / curvature
    angle = points[:, 0] * curvature
    distance = radius - points[:, 1]
    return np.stack([distance * np.sin(angle), radius - distance * np.cos(angle)], axis=1)


def _rotation(angle: float) -> Points:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


OUTLINES: dict[str, Callable[[], Outline]] = {  # of about unit radius around the origin
    "disc": disc,
    "ring": ring,
    "triangle": triangle,
    "star": star,
    "cross": cross,
    "crescent": crescent,
}
