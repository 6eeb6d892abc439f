"""Writes a split as decoded bytes, for training to read; see `segdeform.data.cache`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from segdeform.callbacks import Progress
from segdeform.checking.remembered import FactCache, cache_path
from segdeform.checking.scan import facts_of_picture
from segdeform.data.cache import VERSION, cache_folder
from segdeform.data.dataset import Dataset, Labels, read_pair
from segdeform.data.decoded import (
    IMAGES,
    INDEX,
    Stored,
    is_sound,
    label_dtype,
    labels_name,
    open_cache,
    pair_sha256,
)
from segdeform.data.image_io import UInt8, image_size
from segdeform.errors import DataError
from segdeform.files.atomic import sync, write_error, write_json
from segdeform.files.lock import run_lock
from segdeform.files.space import require_space

_JOURNAL = "written.jsonl"  # the pairs that the arrays hold so far


def write_cache(
    dataset: Dataset,
    workers: int = 2,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Writes the cache of a split unless it is there, undamaged; returns its folder.

    The folder appears when all is written; an interrupted call is continued by the next. Caches of
    former files of the split go. `progress` hears (done, all) pictures, read again or written.
    Raises DataError for pictures that cannot be used, ResourceError or UsageError where the cache
    cannot be written.
    """
    folder = cache_folder(dataset)
    if folder.is_dir() and _is_intact(folder, dataset, progress):
        return folder
    with run_lock(folder.parent):
        partial = folder.with_name(f".{folder.name}.partial")
        try:
            if folder.is_dir():
                shutil.rmtree(folder)
            partial.mkdir(parents=True, exist_ok=True)
            pairs = _write_pairs(dataset, partial, workers, progress)
            write_json(partial / INDEX, {"version": VERSION, "pairs": pairs})
            (partial / _JOURNAL).unlink()
            partial.rename(folder)
            for old in (*folder.parent.glob(f"{dataset.split}-*"), *_partials(dataset, folder)):
                if old != folder:
                    shutil.rmtree(old)
        except OSError as error:
            raise write_error(folder, error) from error
    return folder


def _is_intact(folder: Path, dataset: Dataset, progress: Progress) -> bool:
    count = len(dataset)
    try:
        cache = open_cache(folder, count, dataset.channels, wide=dataset.wide)
        for index in range(count):
            cache.read_checked(index)
            progress(index + 1, count)
    except DataError:
        return False
    return True


def _partials(dataset: Dataset, folder: Path) -> Iterator[Path]:
    return folder.parent.glob(f".{dataset.split}-*.partial")


def _write_pairs(dataset: Dataset, partial: Path, workers: int, progress: Progress) -> list[Stored]:
    """Appends the pairs that the arrays do not hold yet; returns all of them."""
    facts = FactCache(cache_path(dataset.root))
    channels, label_bytes = dataset.channels, label_dtype(dataset.wide).itemsize
    pairs = _written(partial, channels, dataset.wide)
    pixels = sum(pair.height * pair.width for pair in pairs)
    need = (channels + label_bytes) * sum(
        height * width for height, width in _sizes(dataset, len(pairs), workers)
    )
    require_space(partial, need)
    with (
        (partial / IMAGES).open("ab") as images,
        (partial / labels_name(dataset.wide)).open("ab") as labels,
        (partial / _JOURNAL).open("a", encoding="utf-8") as journal,
        ThreadPoolExecutor(workers) as pool,
    ):
        images.truncate(channels * pixels)
        labels.truncate(label_bytes * pixels)
        # A few at a time: decoded pictures are large.
        for first in range(len(pairs), len(dataset), 2 * workers):
            indices = range(first, min(first + 2 * workers, len(dataset)))
            decoded = list(pool.map(lambda index: _decode(dataset, facts, index), indices))
            for image, truth, _ in decoded:
                images.write(image.data)
                labels.write(truth.data)
            _sync(images, labels)  # the journal speaks of what is on the disk
            for _, _, pair in decoded:
                pairs.append(pair)
                journal.write(json.dumps(pair) + "\n")
                journal.flush()
                progress(len(pairs), len(dataset))
    return pairs


def _decode(dataset: Dataset, facts: FactCache, index: int) -> tuple[UInt8, Labels, Stored]:
    image, labels = read_pair(dataset, index)
    height, width = labels.shape
    # Known already where the data set has just been checked.
    digest = facts_of_picture(dataset, facts, index).digest
    return image, labels, Stored(height, width, digest, pair_sha256(image, labels, digest))


def _written(partial: Path, channels: int, wide: bool) -> list[Stored]:
    """Returns what an interrupted call has written, and cuts its journal to that.

    The last line may be half a line, and after a power loss the arrays may hold less than it says.
    """
    journal, pairs = partial / _JOURNAL, []
    with suppress(FileNotFoundError, ValueError, TypeError):
        for line in journal.read_text(encoding="utf-8").splitlines():
            pairs.append(Stored(*json.loads(line)))
    pairs = pairs[: _count_whole(partial, pairs, channels, wide)]
    journal.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs), encoding="utf-8")
    return pairs


def _count_whole(partial: Path, pairs: Sequence[Stored], channels: int, wide: bool) -> int:
    """Counts the pairs before the first one that the arrays do not hold as it was written."""
    count = 0
    with (
        suppress(FileNotFoundError),
        (partial / IMAGES).open("rb") as images,
        (partial / labels_name(wide)).open("rb") as labels,
    ):
        for pair in takewhile(is_sound, pairs):
            pixels = pair.height * pair.width
            image = np.fromfile(images, np.uint8, channels * pixels)
            truth = np.fromfile(labels, label_dtype(wide), pixels)
            if pair_sha256(image, truth, pair.digest) != pair.sha256:
                break
            count += 1
    return count


def _sizes(dataset: Dataset, first: int, workers: int) -> list[tuple[int, int]]:
    with ThreadPoolExecutor(workers) as pool:
        paths = [sample.image for sample in dataset.samples[first:]]
        return list(pool.map(image_size, paths))


def _sync(*files: BinaryIO) -> None:
    for file in files:
        file.flush()
        sync(Path(file.name))
