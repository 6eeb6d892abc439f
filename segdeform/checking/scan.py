"""Reads all pairs of data sets in threads that never keep the program from ending."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from segdeform.checking.cache import FactCache
from segdeform.checking.facts import Facts, mask_facts, picture_facts
from segdeform.data.dataset import Dataset
from segdeform.errors import DataError

_PATIENCE = 300.0  # seconds without a single file read


class PairFacts(NamedTuple):
    """What a picture and its mask hold; None for a sample without a mask."""

    picture: Facts
    mask: Facts | None


def read_pairs(
    dataset: Dataset, cache: FactCache, workers: int, progress: Callable[[int], None]
) -> list[PairFacts]:
    """Returns the facts of every sample, in order; `progress` hears how many are done.

    Raises ResourceError, DataError where no file can be read for 300 seconds.
    """
    facts: list[PairFacts | None] = [None] * len(dataset)
    read = partial(_read_pair, dataset, cache)
    for done, (index, pair) in enumerate(_in_threads(read, len(dataset), workers), start=1):
        facts[index] = pair
        progress(done)
    return [pair for pair in facts if pair is not None]


def default_workers() -> int:
    """Returns how many threads read fastest: Pillow decodes them side by side, Python does not."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(16, (cores or 1) + 1)


def _read_pair(dataset: Dataset, cache: FactCache, index: int) -> PairFacts:
    sample = dataset.samples[index]
    picture = cache.facts("picture", sample.image, picture_facts)
    if sample.mask is None:
        return PairFacts(picture, None)
    decode = dataset.decode_mask
    role = f"mask {decode.__module__}.{decode.__qualname__}"
    return PairFacts(picture, cache.facts(role, sample.mask, partial(mask_facts, decode=decode)))


def _in_threads(
    read: Callable[[int], PairFacts], count: int, workers: int
) -> Iterator[tuple[int, PairFacts]]:
    """Yields (index, read(index)) as they are done, from daemon threads.

    A thread pool's threads are waited for when the program ends, and Ctrl-C would wait with them.
    """
    stop = threading.Event()
    todo = iter(range(count))
    lock = threading.Lock()
    results: queue.SimpleQueue[tuple[int, PairFacts | BaseException]] = queue.SimpleQueue()

    def work() -> None:
        while not stop.is_set():
            with lock:
                index = next(todo, None)
            if index is None:
                return
            try:
                results.put((index, read(index)))
            except BaseException as error:  # raised again by whoever waits
                results.put((index, error))

    for _ in range(min(max(1, workers), count)):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in range(count):
            try:
                index, result = results.get(timeout=_PATIENCE)
            except queue.Empty:
                raise DataError(
                    f"no file could be read for {_PATIENCE:.0f} seconds: does the drive answer?"
                ) from None
            if isinstance(result, BaseException):
                raise result
            yield index, result
    finally:
        stop.set()
