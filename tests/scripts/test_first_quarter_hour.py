"""The likenesses that a first training is shown on: what they promise, and that they are hard."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt

from scripts.first_quarter_hour import WANTED, threshold_scores
from segdeform.cli import main
from tests.likenesses import cracked_road, tissue, write_cracks, write_membranes


def width(area: NDArray[np.bool_]) -> float:
    """Returns the width, pixels, that nine of ten of an area's pixels do not exceed."""
    padded = np.pad(area, 1)
    return float(2 * np.quantile(distance_transform_edt(padded)[padded], 0.9) - 1)


def test_cracks_are_few_thin_and_the_same_everywhere() -> None:
    masks = [cracked_road(np.random.default_rng([0, 2, k]), (320, 480))[1] for k in range(12)]
    assert 0.013 < np.mean(masks) < 0.019
    assert min(mask.mean() for mask in masks) > 0.003
    assert all(width(mask) < 5 for mask in masks)
    again, _ = cracked_road(np.random.default_rng([0, 2, 3]), (320, 480))
    assert np.array_equal(again, cracked_road(np.random.default_rng([0, 2, 3]), (320, 480))[0])


def test_membranes_are_thin_walls_around_cells() -> None:
    for number in range(2):
        cells, membrane = tissue(np.random.default_rng([0, 3, number]), (512, 512))
        assert cells.dtype == np.uint16 and cells.max() <= 4095 and cells.max() > 3000
        assert 0.16 < membrane.mean() < 0.26
        assert 2 < width(membrane) < 5


@pytest.mark.parametrize(
    ("name", "write", "count"), [("cracks", write_cracks, 40), ("membranes", write_membranes, 5)]
)
def test_no_threshold_comes_near_what_is_wanted(
    name: str, write: object, count: int, tmp_path: Path
) -> None:
    """Learned on four of five pictures, scored on the others."""
    raw, masked = tmp_path / "raw", {"masked": 36} if name == "cracks" else {}
    write(raw, pictures=count, **masked)  # type: ignore[operator]
    suffix = "_mask" if name == "cracks" else ""
    values = set()
    for mask in (raw / "masks").iterdir():
        assert (raw / "image" / mask.name.replace(f"{suffix}.png", ".jpg")).exists() or not suffix
        values |= set(np.unique(np.asarray(Image.open(mask))).tolist())
    assert values == {0, 255}
    root = tmp_path / "data"
    words = ["prepare", "folder", "--images", raw / "image", "--masks", raw / "masks"]
    assert main([str(word) for word in [*words, "--output", root, "--split", 0.2]]) == 0
    best = max(threshold_scores(root, rare=name == "cracks").values())
    assert best < WANTED[name] - 0.05, best
