"""Draws the pictures of the shapes data set: textured objects over textured ground.

A class has an outline and a pair of colours. Every colour belongs to three classes, so that a
single pixel leaves it open; the pattern around it or the outline tells. With
`outline_only` the colours are drawn at random: the outline alone tells.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from segdeform.data.image_io import UInt8
from segdeform.preparing.shapes_outlines import OUTLINES, Outline, pose

Float = npt.NDArray[np.float32]

_RADIUS = 0.13  # of an outline of unit size at scale 1, as a share of the picture's side
_FINE = 4  # samples a pixel and direction for smooth edges
_LEAST_VISIBLE = 0.75  # share of each object that later ones and the frame leave visible
_PLACEMENTS = 40
_BORDER = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))  # of white paper, 3 pixels
_WHITE = np.float32(0.96)
_MARGIN = 16  # pixels that a shadow reaches beyond its object
_SHADOW, _RIM, _GLOSS = np.float32(0.5), np.float32(0.9), np.float32(0.25)

_PATTERNS = ("stripes", "waves", "checks", "dots", "wood", "speckles")
_GROUND_PATTERNS = (*_PATTERNS, "plain", "clouds")
_PAIRS = ((0, 1), (2, 3), (0, 2), (1, 3), (0, 3), (1, 2))  # of _COLOURS, in the outlines' order


def _rgb(texts: list[str]) -> Float:
    """Reads "#rrggbb" into [n, 3] in 0..1."""
    values = [[int(text[i : i + 2], 16) / 255 for i in (1, 3, 5)] for text in texts]
    return np.array(values, np.float32)


_COLOURS = _rgb(["#e63946", "#2a6fdb", "#ffd23f", "#1b998b"])
_GROUNDS = _rgb(["#8d99ae", "#6d6875", "#a5a58d", "#b08968", "#7f8f94", "#4a4e69", "#c9ada7"])


def draw_picture(
    rng: np.random.Generator,
    size: int,
    outline_only: bool = False,  # colours tell nothing of the class
    deformation: float = 1.0,  # times the usual bending and shear
) -> tuple[UInt8, UInt8]:
    """Draws a picture, uint8 [S, S, 3] RGB, and its labels, uint8 [S, S].

    Label 0 is the ground, 1 and up are the outlines. All randomness comes from `rng`.
    """
    picture, owners, classes = draw_objects(rng, size, outline_only, deformation)
    return picture, classes[owners]


def draw_objects(
    rng: np.random.Generator, size: int, outline_only: bool = False, deformation: float = 1.0
) -> tuple[UInt8, UInt8, UInt8]:
    """Draws the picture of `draw_picture` and tells its objects apart.

    Returns the picture, uint8 [S, S, 3] RGB; the number of the object that each pixel shows, uint8
    [S, S], from 1 for the lowest, 0 for the ground; and the label of each of these numbers.
    """
    grid = _grid(size)
    picture = _ground(rng, grid)
    owners = np.zeros((size, size), np.uint8)
    classes = [0]
    for kind, cover in _objects(rng, size, deformation):
        colours = rng.permutation(len(_COLOURS))[:2] if outline_only else _PAIRS[kind]
        pair = _varied(rng, _COLOURS[rng.permutation(colours)], 0.04)
        _lay(rng, picture, cover, grid, pair)
        owners[cover >= 0.5] = len(classes)
        classes.append(kind + 1)
    pixels = (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    picture_pixels = np.ascontiguousarray(pixels.transpose(1, 2, 0))
    return picture_pixels, owners, np.array(classes, np.uint8)


# Objects: where they lie and what they cover.


def _objects(rng: np.random.Generator, size: int, deformation: float) -> list[tuple[int, Float]]:
    """Returns (outline index, cover [S, S] in 0..1) from the lowest object to the topmost."""
    outlines = list(OUTLINES.values())
    placed: list[tuple[int, Float]] = []
    visible: list[tuple[npt.NDArray[np.bool_], float]] = []  # pixels still seen, whole area
    count = int(rng.integers(3, 6, endpoint=True))
    # Large ones first, so that they do not hide the small ones.
    for scale in sorted(rng.uniform(0.5, 2, count), reverse=True):
        kind = int(rng.integers(len(outlines)))
        for _ in range(_PLACEMENTS):
            outline = pose(rng, outlines[kind](), scale * _RADIUS * size, size, deformation)
            cover, area = _cover(outline, size)
            mask = cover >= 0.5
            left = [(seen & ~mask, whole) for seen, whole in visible] + [(mask, area)]
            if all(np.count_nonzero(seen) >= _LEAST_VISIBLE * whole for seen, whole in left):
                visible = left
                placed.append((kind, cover))
                break
    return placed


def _cover(outline: Outline, size: int) -> tuple[Float, float]:
    """Returns the share of each pixel inside the outline, [S, S], and the outline's whole area."""
    corners = np.concatenate(outline)
    left, top = np.clip(np.floor(corners.min(axis=0)).astype(int), 0, size - 1)
    right, bottom = np.clip(np.ceil(corners.max(axis=0)).astype(int), 1, size)
    fine = np.zeros(((bottom - top) * _FINE, (right - left) * _FINE), np.uint8)
    # OpenCV gives pixel centres integer coordinates; four more bits place the corners.
    contours = [
        (((contour - [left, top]) * _FINE - 0.5) * 16).round().astype(np.int32)
        for contour in outline
    ]
    cv2.fillPoly(fine, contours, 255, shift=4)
    small = cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    cover = np.zeros((size, size), np.float32)
    cover[top:bottom, left:right] = small.astype(np.float32) / np.float32(255)
    areas = sorted(abs(cv2.contourArea(contour.astype(np.float32))) for contour in outline)
    return cover, areas[-1] - sum(areas[:-1])


# Colours, textures and light.


def _varied(rng: np.random.Generator, colours: Float, spread: float) -> Float:
    """Changes colours [n, 3] a little, each channel for itself and all in brightness."""
    changed = colours * rng.uniform(0.85, 1.1) + rng.normal(0, spread, colours.shape)
    return np.clip(changed, 0, 1).astype(np.float32)


def _grid(size: int) -> tuple[Float, Float]:
    y, x = np.mgrid[:size, :size].astype(np.float32)
    return x, y


def _ground(rng: np.random.Generator, grid: tuple[Float, Float]) -> Float:
    first = _varied(rng, _GROUNDS[rng.integers(len(_GROUNDS), size=1)], 0.05)[0]
    second = _shade(rng, first, 0.06)
    pattern = _GROUND_PATTERNS[rng.integers(len(_GROUND_PATTERNS))]
    ground = _blend(first, second, _texture(rng, grid, pattern))
    return ground * (np.float32(0.7) + np.float32(0.3) * _noise(rng, grid[0].shape, 128))


def _lay(
    rng: np.random.Generator,
    picture: Float,  # [3, S, S], drawn upon
    cover: Float,  # [S, S]
    grid: tuple[Float, Float],
    pair: Float,  # [2, 3]
) -> None:
    """Lays an object over the picture, with a soft shadow below and light on its rim."""
    left, top, width, height = cv2.boundingRect((cover > 0).astype(np.uint8))
    window = (
        slice(max(0, top - _MARGIN), top + height + _MARGIN),
        slice(max(0, left - _MARGIN), left + width + _MARGIN),
    )
    cover = cover[window]
    pattern = _PATTERNS[rng.integers(len(_PATTERNS))]
    texture = _texture(rng, (grid[0][window], grid[1][window]), pattern)
    surface = _blend(pair[0], pair[1], texture)
    moved = np.zeros_like(cover)
    moved[4:, 3:] = cover[:-4, :-3]
    shadow = cv2.GaussianBlur(moved, (0, 0), 4)
    soft = cv2.GaussianBlur(cover, (0, 0), 2)
    # The blurred cover rises towards the inside: its slope against the light is the rim's shade.
    slope = np.zeros_like(cover)
    slope[1:-1, 1:-1] = soft[2:, 2:] - soft[:-2, :-2]
    paper = cover - cv2.erode(cover, _BORDER)
    surface = surface + (_WHITE - surface) * paper
    surface = surface * (1 + _RIM * slope) + _GLOSS * slope.clip(0)
    below = picture[:, *window] * (1 - _SHADOW * shadow)
    picture[:, *window] = below + (surface - below) * cover


def _shade(rng: np.random.Generator, colour: Float, least: float) -> Float:
    """Draws a lighter or darker tone of a colour."""
    amount = np.float32(rng.uniform(least, least + 0.16))
    target = np.float32(1 if rng.random() < 0.5 else 0)
    return colour + (target - colour) * amount


def _blend(first: Float, second: Float, share: Float) -> Float:
    """Mixes two colours [3] by a pattern [S, S] into [3, S, S]."""
    return first[:, None, None] + (second - first)[:, None, None] * share


def _texture(rng: np.random.Generator, grid: tuple[Float, Float], pattern: str) -> Float:
    """Draws a pattern, [S, S] in 0..1, in any direction."""
    angle, wavelength = rng.uniform(0, math.pi), rng.uniform(8, 14)
    along = np.float32(2 * math.pi / wavelength * math.cos(angle))
    across = np.float32(2 * math.pi / wavelength * math.sin(angle))
    (x, y), shape = grid, grid[0].shape
    u, v = along * x + across * y, along * y - across * x
    match pattern:
        case "stripes":
            return _crisp(np.sin(u))
        case "waves":
            return _crisp(np.sin(u + np.float32(1.5) * np.sin(v / 2)))
        case "checks":
            return _crisp(2 * np.sin(u) * np.sin(v))
        case "dots":
            return _crisp(np.cos(u) + np.cos(v) - np.float32(0.7))
        case "wood":
            return _crisp(np.float32(0.6) * np.sin(u / 2 + 14 * _noise(rng, shape, 80)))
        case "speckles":
            return _crisp(8 * _noise(rng, shape, 9) - 5)
        case "clouds":
            return _noise(rng, shape, 40)
        case _:  # plain
            return _noise(rng, shape, 128)


def _crisp(wave: Float) -> Float:
    return (wave * 1.5 + 0.5).clip(0, 1)


def _noise(rng: np.random.Generator, shape: tuple[int, ...], wavelength: int) -> Float:
    """Draws smooth noise [H, W] in 0..1 with bumps of about `wavelength` pixels."""
    height, width = shape
    coarse = rng.random((height // wavelength + 3, width // wavelength + 3), dtype=np.float32)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth, np.float32).clip(0, 1)
