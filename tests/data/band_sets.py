"""Data sets of TIFFs of several bands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tests.data.tiff_files import GREY, write_tiff


def random(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> npt.NDArray[Any]:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def band_set(root: Path, text: str, count: int = 5, dtype: Any = np.uint8, pairs: int = 3) -> Path:
    """Writes a data set of TIFFs of `count` bands, and its data YAML."""
    for split in ("train", "val"):
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True)
        for number in range(pairs):
            values = random(30 + number, 41, count, dtype=dtype, seed=number)
            write_tiff(root / split / "images" / f"{number}.tif", values, photometric=GREY)
            mask = Image.fromarray((values[..., 0] > values[..., 1]).astype(np.uint8))
            mask.save(root / split / "masks" / f"{number}.png")
    (root / "data.yaml").write_text(
        f"names: [x, y]\ntrain: train/images\nval: val/images\n{text}\n"
    )
    return root
