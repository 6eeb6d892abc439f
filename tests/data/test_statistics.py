"""Mean and deviation of channels, against numpy over all pixels at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeform.data import load_dataset
from segdeform.data.cache import with_cache
from segdeform.data.image_io import read_image
from segdeform.data.statistics import Statistics, count_values, statistics_of
from segdeform.errors import DataError
from segdeform.preparing.decoding import write_cache
from tests.data.band_sets import band_set


def test_the_numbers_are_those_of_all_pixels(tmp_path: Path) -> None:
    root = band_set(tmp_path / "a", "bands: [4, 0, 1, 2]", pairs=5)
    dataset = load_dataset("folder", root, "train")
    pictures = [
        read_image(path, bands=(4, 0, 1, 2)) for path in sorted(root.glob("train/images/*.tif"))
    ]
    pixels = np.concatenate([picture.reshape(-1, 4) for picture in pictures]) / 255
    counts = count_values(dataset, range(5), workers=1)
    found = statistics_of(counts)
    np.testing.assert_allclose(found.mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std, pixels.std(0), rtol=1e-12)
    # The same bits for any workers, order, share of the processes, and from a cache.
    assert statistics_of(count_values(dataset, (3, 1, 4, 0, 2), workers=3)) == found
    halves = count_values(dataset, (0, 2, 4), 2) + count_values(dataset, (1, 3), 2)
    assert statistics_of(halves) == found
    write_cache(dataset)
    cached = with_cache(dataset, lambda text: None)
    for path in root.glob("train/images/*.tif"):
        path.unlink()
    assert statistics_of(count_values(cached, range(5), workers=2)) == found


def test_a_channel_of_one_value_is_divided_by_one() -> None:
    counts = np.zeros((3, 256), np.int64)
    counts[0, 51] = 10
    counts[1, [0, 255]] = 5
    assert statistics_of(counts) == Statistics((0.2, 0.5, 0.0), (1.0, 0.5, 1.0))


def test_whole_numbers_are_exact_where_floats_would_not_be() -> None:
    """A picture a hair from constant, as large as many data sets together."""
    counts = np.zeros((1, 256), np.int64)
    counts[0, 254], counts[0, 255] = 1, 10**15
    mean, std = statistics_of(counts)
    assert mean[0] == (255 * 10**15 + 254) / (255 * (10**15 + 1))
    assert std[0] == pytest.approx(10**-7.5 / 255, rel=1e-9)


def test_a_picture_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    root = band_set(tmp_path / "a", "bands: [0, 1, 2, 4]", pairs=3)
    dataset = load_dataset("folder", root, "train")
    Image.new("RGB", (41, 31)).save(root / "train" / "images" / "1.tif")
    with pytest.raises(DataError, match=r"1\.tif: has 3 bands"):
        count_values(dataset, range(3), workers=2)
