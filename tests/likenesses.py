"""Likenesses of two data sets that people bring: cracked roads and membranes under a microscope.

Pictures and masks as their makers leave them: 0/255 masks, suffixes that differ, pictures without
a mask, no split, 16-bit files that hold 12 bits. All from a seed: the same files everywhere.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

Plane = NDArray[np.float32]  # [H, W], grey values 0..1 or a share of something
Area = NDArray[np.bool_]  # [H, W]


def write_cracks(
    root: Path,
    seed: int = 0,
    pictures: int = 155,
    masked: int = 118,
    size: tuple[int, int] = (320, 480),  # (H, W), pixels
) -> None:
    """Writes ROOT/image/road_NNN.jpg and, for `masked` of them, ROOT/masks/road_NNN_mask.png."""
    image, masks = _folders(root)
    without = set(np.random.default_rng([seed, 1]).permutation(pictures)[masked:].tolist())
    for number in range(pictures):
        road, crack = cracked_road(np.random.default_rng([seed, 2, number]), size)
        name = f"road_{number:03}"
        Image.fromarray(road).save(image / f"{name}.jpg", quality=88)
        if number not in without:
            _write_mask(masks / f"{name}_mask.png", crack)


def write_membranes(
    root: Path, seed: int = 0, pictures: int = 30, size: tuple[int, int] = (512, 512)
) -> None:
    """Writes ROOT/image/slice_NN.png, 16 bits that hold 12, and masks in which membranes are 0."""
    image, masks = _folders(root)
    for number in range(pictures):
        cells, membrane = tissue(np.random.default_rng([seed, 3, number]), size)
        Image.fromarray(cells).save(image / f"slice_{number:02}.png")
        _write_mask(masks / f"slice_{number:02}.png", ~membrane)


def _folders(root: Path) -> tuple[Path, Path]:
    folders = root / "image", root / "masks"
    for folder in folders:
        folder.mkdir(parents=True)
    return folders


def _write_mask(path: Path, area: Area) -> None:
    Image.fromarray(area.astype(np.uint8) * 255).save(path)


def cracked_road(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[NDArray[np.uint8], Area]:  # [H, W, 3], [H, W]
    """Draws asphalt with thin cracks, and with much that is dark or thin and is no crack."""
    grey = rng.uniform(0.36, 0.6) + rng.uniform(0.02, 0.06) * _clouds(rng, size, 40)
    stones = rng.uniform(0.03, 0.075)
    grey += stones * _clouds(rng, size, 0.7) + 0.6 * stones * _clouds(rng, size, 1.6)
    grey *= _slope(rng, size, 0.25)
    for _ in range(rng.integers(0, 3)):
        grey *= 1 - rng.uniform(0.2, 0.5) * _blob(rng, size, (12, 60), soft=6)  # stains
    if rng.random() < 0.35:
        wear = _clouds(rng, size, 3) > rng.uniform(-1.5, -0.4)
        grey += rng.uniform(0.2, 0.35) * (_band(rng, size, (14, 40)) & wear)  # lane paint
    if rng.random() < 0.35:
        edge = gaussian_filter(_band(rng, size, (5, 11)).astype(np.float32), 1.2)
        grey *= 1 - rng.uniform(0.25, 0.5) * edge  # a tar seam: straight, wide, no crack
    for _ in range(rng.integers(0, 5)):
        tone = rng.choice([-0.12, 0.2])  # twigs and straws: short and smooth, darker or lighter
        grey += tone * gaussian_filter(_twig(rng, size).astype(np.float32), 0.6)
    crack, depth = _cracks(rng, size)
    grey *= 1 - depth
    if rng.random() < 0.45:
        shade = gaussian_filter(_half(rng, size).astype(np.float32), rng.uniform(1, 5))
        grey *= 1 - rng.uniform(0.3, 0.55) * shade  # shadow of a kerb or a tree
    grey = gaussian_filter(grey, rng.uniform(0.4, 0.8))
    tint = 1 + rng.uniform(-0.05, 0.05, 3)
    noise = rng.normal(0, rng.uniform(0.01, 0.03), (*size, 3))
    return _bytes(grey[..., None] * tint + noise), crack


def _cracks(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Area, Plane]:
    """Draws branching random walks, 1 to 4 pixels wide, until they cover enough of the picture.

    Returns where they are, and how much of the light they take, which varies along each.
    """
    wanted = np.clip(rng.lognormal(np.log(0.0107), 0.45), 0.004, 0.04)
    mask, depth = np.zeros(size, np.uint8), np.zeros(size, np.float32)
    contrast = rng.uniform(0.22, 0.5)
    while mask.mean() < wanted:
        place, angle = rng.uniform((0, 0), size), rng.uniform(0, 2 * np.pi)
        length = int(rng.uniform(25, 110))
        _walk(rng, mask, depth, place, angle, rng.uniform(1.2, 3.4), contrast, length)
    depth = gaussian_filter(depth, 0.5)
    return mask.astype(bool), depth


def _walk(
    rng: np.random.Generator,
    mask: NDArray[np.uint8],  # drawn into
    depth: Plane,  # drawn into
    place: NDArray[np.float64],  # (y, x)
    angle: float,
    width: float,
    contrast: float,
    steps: int,
) -> None:
    strength = contrast
    for step in range(steps):
        angle += rng.normal(0, 0.32)
        width = float(np.clip(width + rng.normal(0, 0.2), 1, 3.4))  # lines of 3 have 4 at bends
        strength = float(np.clip(strength + rng.normal(0, 0.04), 0.6 * contrast, 1.3 * contrast))
        goal = place + rng.uniform(2, 5) * np.array([np.sin(angle), np.cos(angle)])
        line = [tuple(round(16 * v) for v in point[::-1]) for point in (place, goal)]
        cv2.line(mask, *line, 1, round(width), cv2.LINE_8, 4)
        cv2.line(depth, *line, strength, round(width), cv2.LINE_8, 4)
        place = goal
        if not (0 <= place[0] < mask.shape[0] and 0 <= place[1] < mask.shape[1]):
            return
        if rng.random() < 0.035 and width > 1.3:
            turn, rest = rng.choice([-1, 1]) * rng.uniform(0.5, 1.2), (steps - step) // 2
            _walk(rng, mask, depth, place, angle + turn, 0.7 * width, contrast, rest)


def tissue(
    rng: np.random.Generator, size: tuple[int, int]
) -> tuple[NDArray[np.uint16], Area]:  # [H, W] of 0..4095, [H, W]
    """Draws cells with dark membranes 2 to 5 pixels wide, and organelles that look alike."""
    height, width = size
    seeds = _spread(rng, size, rng.uniform(20, 27))
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    bent = [axis + 5 * _clouds(rng, size, 9) for axis in (rows, columns)]
    distance, nearest = cKDTree(seeds).query(np.stack(bent, -1), k=2)
    apart = np.linalg.norm(seeds[nearest[..., 0]] - seeds[nearest[..., 1]], axis=-1)
    aside = (distance[..., 1] ** 2 - distance[..., 0] ** 2) / (2 * apart)  # of the middle line
    thick = 1.75 + 0.55 * _clouds(rng, size, 14)  # half the width, which varies along a membrane
    membrane = aside < np.clip(thick, 1, 2.6)
    grey = 0.62 + 0.06 * rng.normal(size=len(seeds))[nearest[..., 0]]
    grey += 0.05 * _clouds(rng, size, 3) + 0.04 * _clouds(rng, size, 1)
    grey -= _organelles(rng, size, len(seeds)) * ~membrane
    faint = 0.3 + 0.7 / (1 + np.exp(-2.2 * (_clouds(rng, size, 22) + 0.8)))  # cut obliquely
    dark = gaussian_filter(membrane.astype(np.float32), 0.9) * faint
    grey -= rng.uniform(0.26, 0.36) * dark
    grey = gaussian_filter(grey, rng.uniform(0.5, 0.9))
    grey = 0.5 + (grey - 0.5) * rng.uniform(0.7, 1.15) * _slope(rng, size, 0.2)
    grey += rng.uniform(-0.06, 0.06) + 0.03 * _clouds(rng, size, 60)
    grey += rng.normal(0, rng.uniform(0.05, 0.085), size)
    return (np.clip(grey, 0, 1) * 4095).astype(np.uint16), membrane


def _spread(rng: np.random.Generator, size: tuple[int, int], least: float) -> NDArray[np.float64]:
    """Returns points (y, x), also around the picture, that keep a distance: [N, 2]."""
    points = rng.uniform((-40, -40), (size[0] + 40, size[1] + 40), (20_000, 2))
    pairs = cKDTree(points).query_ball_point(points, least)
    kept = np.ones(len(points), bool)
    for index, near in enumerate(pairs):
        if kept[index]:
            kept[[other for other in near if other > index]] = False
    return points[kept]


def _organelles(rng: np.random.Generator, size: tuple[int, int], count: int) -> Plane:
    """Draws the darkness of mitochondria, with dark outlines, and of small dark rings."""
    drawn = np.zeros(size, np.float32)
    for _ in range(count):
        centre = (int(rng.uniform(0, size[1])), int(rng.uniform(0, size[0])))
        tone = rng.uniform(0.16, 0.34)
        if rng.random() < 0.5:
            axes, angle = (int(rng.uniform(5, 12)), int(rng.uniform(3, 6))), rng.uniform(0, 180)
            cv2.ellipse(drawn, centre, axes, angle, 0, 360, 0.6 * tone, -1)
            cv2.ellipse(drawn, centre, axes, angle, 0, 360, tone, 1)
        else:
            cv2.circle(drawn, centre, int(rng.uniform(2, 6)), tone, int(rng.integers(1, 3)))
    return drawn


def _clouds(rng: np.random.Generator, size: tuple[int, int], scale: float) -> Plane:
    """Returns smooth noise of mean 0 and deviation 1 whose spots are `scale` pixels wide."""
    step = max(1, int(scale / 2))
    small = (size[0] // step + 2, size[1] // step + 2)
    noise = gaussian_filter(rng.normal(size=small), scale / step, mode="wrap").astype(np.float32)
    noise = (noise - noise.mean()) / noise.std()
    large = cv2.resize(noise, (small[1] * step, small[0] * step), interpolation=cv2.INTER_LINEAR)
    return np.asarray(large[: size[0], : size[1]], np.float32)


def _slope(rng: np.random.Generator, size: tuple[int, int], strength: float) -> Plane:
    """Returns light that falls off in one direction, 1 in the mean."""
    across = _across(rng, size)
    return (1 + strength * rng.uniform(-1, 1) * across / np.abs(across).max()).astype(np.float32)


def _across(rng: np.random.Generator, size: tuple[int, int]) -> Plane:
    """Returns the distance of every pixel from a random line through the picture, with a sign."""
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    (y, x), angle = rng.uniform((0, 0), size), rng.uniform(0, np.pi)
    distance: Plane = (rows - y) * np.float32(np.cos(angle)) - (columns - x) * np.float32(
        np.sin(angle)
    )
    return distance


def _band(rng: np.random.Generator, size: tuple[int, int], width: tuple[int, int]) -> Area:
    return np.abs(_across(rng, size)) < rng.uniform(*width) / 2


def _half(rng: np.random.Generator, size: tuple[int, int]) -> Area:
    """Returns one side of a ragged line."""
    return _across(rng, size) + rng.uniform(2, 25) * _clouds(rng, size, 25) > 0


def _blob(
    rng: np.random.Generator, size: tuple[int, int], radius: tuple[int, int], soft: float
) -> Plane:
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    y, x = rng.uniform((0, 0), size)
    distance = np.hypot(rows - y, columns - x) / rng.uniform(*radius) + 0.3 * _clouds(rng, size, 12)
    return gaussian_filter((distance < 1).astype(np.float32), soft)


def _twig(rng: np.random.Generator, size: tuple[int, int]) -> Area:
    """Returns a short arc, 1 or 2 pixels wide."""
    drawn = np.zeros(size, np.uint8)
    centre = tuple(int(v) for v in rng.uniform((0, 0), size[::-1]))
    axes = tuple(int(v) for v in rng.uniform(15, 70, 2))
    start = rng.uniform(0, 360)
    end = start + rng.uniform(20, 70)
    cv2.ellipse(drawn, centre, axes, rng.uniform(0, 180), start, end, 1, int(rng.integers(1, 3)))
    return drawn.astype(bool)


def _bytes(values: NDArray[np.float64]) -> NDArray[np.uint8]:
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)
