"""Pictures of one size that follow each other go through the network together, where it pays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from segdeform.inference import coarse_together
from segdeform.machine.stopwatch import Clock
from segdeform.prediction.profile import LABELLING
from segdeform.prediction.reading import Seen
from segdeform.results.maps import Coarse
from segdeform.segmenter import Segmenter

Item = TypeVar("Item")
Read = Future[Seen | None]  # done, or failed

# Pictures at most, and pixels of all. On CPU four pictures of 256x256 take 0.8 of the time, and
# from 512x512 on nothing is gained; a GPU is idle with one small picture.
_ON_CPU, _ON_GPU = (4, 2**18), (8, 2**21)


def at_once(segmenter: Segmenter, size: tuple[int, int]) -> int:
    """Returns how many pictures of (H, W) pixels the network should see at once."""
    if segmenter.compiled:  # for one picture of a size
        return 1
    most, pixels = _ON_CPU if segmenter.device.type == "cpu" else _ON_GPU
    return max(1, min(most, pixels // (size[0] * size[1])))


def grouped(
    readings: Iterable[tuple[Item, Read]], most: Callable[[tuple[int, int]], int]
) -> Iterator[list[tuple[Item, Read]]]:
    """Yields neighbours of one size together, `most(size)` of them, in their order.

    What failed, is no picture, or was not read because it is a giant, comes alone.
    """
    group: list[tuple[Item, Read]] = []
    common: tuple[int, int] | None = None
    for item, reading in readings:
        size = _size(reading)
        if group and size != common:
            yield group
            group = []
        group.append((item, reading))
        common = size
        if size is None or len(group) >= most(size):
            yield group
            group = []
    if group:
        yield group


def _size(reading: Read) -> tuple[int, int] | None:
    seen = None if reading.exception() is not None else reading.result()
    if seen is None or seen.image is None:
        return None
    return seen.image.shape[0], seen.image.shape[1]


def seen_together(
    readings: Iterable[tuple[Item, Read]], segmenter: Segmenter, clock: Clock
) -> Iterator[tuple[Item, Read, Coarse | None]]:
    """Yields what was read, in order, with what the network says of it where others were with it.

    With None the network has not been asked.
    """
    for group in grouped(readings, partial(at_once, segmenter)):
        said: list[Coarse | None] = [None]
        if len(group) > 1:
            with clock(LABELLING):
                said = _coarse(segmenter, [reading for _, reading in group])
        while group:  # nothing is held while the next ones are waited for
            yield *group.pop(0), said.pop(0)


def _coarse(segmenter: Segmenter, readings: Iterable[Read]) -> list[Coarse | None]:
    seen = [reading.result() for reading in readings]
    images = [each.image for each in seen if each is not None and each.image is not None]
    return coarse_together(segmenter.model, images, segmenter.options, segmenter.device)
