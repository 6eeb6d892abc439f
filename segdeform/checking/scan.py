"""Reads all pairs of data sets in threads that never keep the program from ending."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np

from segdeform.checking.facts import Facts, index_facts, mask_facts, picture_facts
from segdeform.checking.remembered import FactCache
from segdeform.data.dataset import Dataset
from segdeform.data.decoded import Cache
from segdeform.errors import DataError
from segdeform.machine.cpu import available_cores

_PATIENCE = 300.0  # seconds without a single file read
_LAST_FILE = 30.0  # seconds for all files that are being read when one cannot be


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
    return min(16, available_cores() + 1)


def _read_pair(dataset: Dataset, cache: FactCache, index: int) -> PairFacts:
    if dataset.cache is not None:
        return _decoded_pair(dataset, dataset.cache, index)
    sample = dataset.samples[index]
    picture = facts_of_picture(dataset, cache, index)
    if sample.mask is None:
        return PairFacts(picture, None)
    decode = dataset.decode_mask
    role = f"mask {decode.__module__}.{decode.__qualname__}"
    return PairFacts(picture, cache.facts(role, sample.mask, partial(mask_facts, decode=decode)))


def facts_of_picture(dataset: Dataset, cache: FactCache, index: int) -> Facts:
    """Returns the facts of a picture as the data set reads it. Raises ResourceError."""
    path, bands = dataset.samples[index].image, dataset.bands
    if bands is None:
        return cache.facts("picture", path, picture_facts)
    return cache.facts(f"picture of {bands}", path, partial(picture_facts, bands=bands))


def _decoded_pair(dataset: Dataset, decoded: Cache, index: int) -> PairFacts:
    """Returns the facts of a pair that was read before, and is trained on in its decoded form.

    Raises DataError where the decoded form is damaged.
    """
    _, labels = decoded.read_checked(index)
    height, width = labels.shape
    digest = decoded.pairs[index].digest  # that of `picture_facts`
    mask = index_facts(labels)
    # Facts speak of the file's values: any that means the label will do.
    values = {
        int(np.flatnonzero(dataset.lookup == label)[0]): found
        for label, found in mask.values.items()
    }
    return PairFacts(Facts(height, width, digest=digest), replace(mask, values=values))


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

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, count))]
    for thread in threads:
        thread.start()
    try:
        for _ in range(count):
            try:
                index, result = results.get(timeout=_PATIENCE)
            except queue.Empty:
                raise DataError(
                    f"no file could be read for {_PATIENCE:.0f} seconds: does the drive answer?"
                ) from None
            if isinstance(result, BaseException):
                stop.set()
                deadline = time.monotonic() + _LAST_FILE
                for thread in threads:  # whoever handles the error may remove what they read
                    thread.join(max(0.0, deadline - time.monotonic()))
                raise result
            yield index, result
    finally:
        stop.set()
