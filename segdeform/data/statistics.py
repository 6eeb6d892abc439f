"""Mean and standard deviation of the channels of a split's pictures, counted exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from segdeform.data.dataset import Dataset, read_picture
from segdeform.data.image_io import UInt8

Counts = npt.NDArray[np.int64]  # [C, 256] pixels of each channel that have each value


class Statistics(NamedTuple):
    """One number a channel, of values 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


def count_values(
    dataset: Dataset,
    indices: Iterable[int],
    workers: int,
    progress: Callable[[int], None] = lambda done: None,
) -> Counts:
    """Counts the values of pictures as they are trained on, upright and whole, masks not regarded.

    `progress` hears how many are done. Raises what reading a picture raises.
    """
    counts = np.zeros((dataset.channels, 256), np.int64)
    indices, done = list(indices), 0
    with ThreadPoolExecutor(workers) as pool:
        # A few at a time: an error, or Ctrl-C, waits for these.
        for first in range(0, len(indices), 2 * workers):
            part = indices[first : first + 2 * workers]
            for found in pool.map(lambda index: _counts(_picture(dataset, index)), part):
                counts += found
            done += len(part)
            progress(done)
    return counts


def statistics_of(counts: Counts) -> Statistics:
    """Computes mean and standard deviation from whole numbers: only the last step rounds.

    A channel that has one value only has the deviation 1, by which dividing changes nothing.
    """
    mean, std = [], []
    for channel in counts.tolist():
        pixels = sum(channel)
        total = sum(value * count for value, count in enumerate(channel))
        squares = sum(value * value * count for value, count in enumerate(channel))
        mean.append(total / (255 * pixels) if pixels else 0.0)
        spread = pixels * squares - total * total  # pixels^2 times the variance
        std.append(math.sqrt(spread / pixels**2) / 255 if spread else 1.0)
    return Statistics(tuple(mean), tuple(std))


def _picture(dataset: Dataset, index: int) -> UInt8:
    if dataset.cache is not None:
        return dataset.cache.read(index)[0]
    return read_picture(dataset, index)


def _counts(picture: UInt8) -> Counts:
    planes = picture.reshape(-1, picture.shape[2]).T
    return np.stack([np.bincount(plane, minlength=256) for plane in planes])
