"""Raw folders of pictures and masks, as people have them before a data set is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def put_picture(path: Path, seed: int, size: tuple[int, int] = (6, 9)) -> None:
    """Writes a picture [H, W] of its own; JPEG or PNG by suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)


def put_mask(path: Path, values: Sequence[int], size: tuple[int, int] = (6, 9)) -> None:
    """Writes an index mask [H, W] of the first value, whose first row begins with all of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels: NDArray[np.uint8] = np.full(size, values[0], np.uint8)
    labels[0, : len(values)] = values
    Image.fromarray(labels).save(path)


def raw_folders(
    root: Path,
    names: Sequence[str],
    values: Sequence[int] = (0, 255),
    mask_name: str = "{}",
    without: Sequence[str] = (),
) -> tuple[Path, Path]:
    """Writes ROOT/image and ROOT/masks, and returns both; pictures of `without` have no mask."""
    for seed, name in enumerate(names):
        put_picture(root / "image" / f"{name}.jpg", seed)
        if name not in without:
            folder, _, base = name.rpartition("/")
            put_mask(root / "masks" / folder / f"{mask_name.format(base)}.png", values)
    return root / "image", root / "masks"
