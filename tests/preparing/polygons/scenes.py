"""Pictures to annotate, outlines, and how far a pixel's centre is from one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from segdeform.data.image_io import read_mask
from segdeform.preparing.polygons.annotation import Points, Shape
from segdeform.preparing.polygons.drawing import cover

Mask = npt.NDArray[np.bool_]


def write_pictures(folder: Path, sizes: Mapping[str, tuple[int, int]]) -> Path:
    """Writes a grey picture of (H, W) under each name, which may hold folders."""
    for name, (height, width) in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, height), (90, 90, 90)).save(folder / name)
    return folder


def write_turned(path: Path, size: tuple[int, int], orientation: int = 6) -> Path:
    """Writes a JPEG that is (H, W) as stored and carries an EXIF orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size[1], size[0])).save(path, exif=exif)
    return path


def star(rng: np.random.Generator, corners: int, size: tuple[int, int]) -> Points:
    """Returns a ring [N, 2] around the middle of (H, W) that does not cross itself."""
    angle = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radius = rng.uniform(0.1, 0.48, corners) * min(size)
    ring = np.stack((radius * np.cos(angle), radius * np.sin(angle)), axis=1)
    return ring + np.array(size[::-1]) / 2


def distances(pixels: npt.NDArray[np.int64], ring: Points) -> npt.NDArray[np.float64]:
    """Returns how far the centres of pixels [M, 2], (row, column), are from an outline [N, 2]."""
    centres = pixels[:, None, ::-1] + 0.5
    along = np.roll(ring, -1, axis=0) - ring
    length = np.maximum((along**2).sum(axis=1), 1e-12)
    share = np.clip(((centres - ring) * along).sum(axis=2) / length, 0, 1)
    nearest = ring + share[..., None] * along
    return np.sqrt(((centres - nearest) ** 2).sum(axis=2)).min(axis=1)


def covered(shape: Shape, size: tuple[int, int]) -> Mask:
    """Returns the pixels [H, W] of a picture that a shape covers."""
    mask = np.zeros(size, np.bool_)
    patch = cover(shape, size)
    if patch is not None:
        mask[patch.window()] = patch.bits
    return mask


def filled(ring: Any, size: tuple[int, int]) -> Mask:
    """Returns what one ring covers."""
    return covered(Shape("a", "a", rings=(np.array(ring, np.float64),)), size)


def labels_of(masks: Path, name: str) -> npt.NDArray[np.uint8]:
    """Reads a mask as it was written."""
    return np.asarray(read_mask(masks / f"{name}.png"), np.uint8)
