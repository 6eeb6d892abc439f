"""A split as decoded bytes on disk, which training maps into memory: crops without decoding.

ROOT/.segdeform-cache/SPLIT-FINGERPRINT/ holds images.u8 (all pictures, [H, W, 3] each, one after
the other), labels.u8 (their classes, [H, W]) and index.json. These are the very arrays that
`read_pair` gives, so training has the same bits with the cache and without it. The fingerprint is
of paths, sizes and times of all files, and of what decodes them: after any change the cache is not
used any more.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import numpy as np
import PIL
from PIL import features

from segdeform import __version__
from segdeform.atomic import write_error, write_json
from segdeform.data.dataset import Dataset, read_pair
from segdeform.data.image_io import UInt8, image_size
from segdeform.disk import require_space
from segdeform.errors import DataError
from segdeform.lock import run_lock

if TYPE_CHECKING:
    from segdeform.checking.cache import FactCache

_VERSION = 2
_FOLDER = ".segdeform-cache"
_IMAGES, _LABELS, _INDEX, _JOURNAL = "images.u8", "labels.u8", "index.json", "written.jsonl"
_MEND = "remove it, or write it anew: segdeform prepare NAME --output ROOT --cache"


class Stored(NamedTuple):
    """One pair in the cache."""

    height: int  # pixels
    width: int
    digest: str  # by which the check knows the same picture again, cached or not
    sha256: str  # of the picture's bytes, the labels' and the digest


@dataclass(frozen=True)
class Cache:
    """The arrays of one split, mapped when first read, in every process for itself."""

    folder: Path
    pairs: tuple[Stored, ...]

    @cached_property
    def _starts(self) -> list[int]:
        """Where each pair begins, in pixels, and where the last one ends."""
        return [0, *accumulate(pair.height * pair.width for pair in self.pairs)]

    @cached_property
    def _arrays(self) -> tuple[UInt8, UInt8]:
        try:
            images, labels = (
                np.memmap(self.folder / name, np.uint8, "r") for name in (_IMAGES, _LABELS)
            )
        except (OSError, ValueError) as error:
            raise DataError(f"{self.folder}: cannot be read ({error}); {_MEND}") from error
        if (len(images), len(labels)) != (3 * self._starts[-1], self._starts[-1]):
            raise DataError(f"{self.folder}: has not the size it should have; {_MEND}")
        return images, labels

    def read(self, index: int) -> tuple[UInt8, UInt8]:
        """Returns a picture [H, W, 3] and its labels [H, W], read-only views of the mapped files.

        Raises DataError when the files are missing or of another size.
        """
        (height, width, *_), start, end = self.pairs[index], *self._starts[index : index + 2]
        images, labels = self._arrays
        image = images[3 * start : 3 * end].reshape(height, width, 3)
        return np.asarray(image), np.asarray(labels[start:end].reshape(height, width))

    def check(self, index: int) -> None:
        """Raises DataError unless the pair's bytes have the SHA-256 that they were written with."""
        pair = self.pairs[index]
        if _sha256(*self.read(index), pair.digest) != pair.sha256:
            raise DataError(f"{self.folder}: picture {index} of the cache is damaged; {_MEND}")

    def __getstate__(self) -> dict[str, Any]:
        """Pickles paths and sizes, not the pictures."""
        return {"folder": self.folder, "pairs": self.pairs}


def with_cache(dataset: Dataset, tell: Callable[[str], None]) -> Dataset:
    """Returns the data set reading from its cache where there is one that fits the files.

    `tell` hears that it is used, or that it no longer fits. Raises DataError for a damaged cache.
    """
    folder = cache_folder(dataset)
    if not folder.is_dir():
        if any(folder.parent.glob(f"{dataset.split}-*")):
            tell(
                f"the cache of {dataset.split} is of other files than there are now, and not used: "
                "segdeform prepare --cache writes it anew"
            )
        return dataset
    tell(f"{dataset.split}: pictures from {folder}")
    return replace(dataset, cache=_open(folder, len(dataset)))


def write_cache(
    dataset: Dataset,
    workers: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Writes the cache of a split unless it is there, undamaged; returns its folder.

    The folder appears when all is written; an interrupted call is continued by the next. Caches of
    former files of the split go. `progress` hears (done, all) pictures, read again or written.
    Raises DataError for pictures that cannot be used, ResourceError or UsageError where the cache
    cannot be written.
    """
    folder = cache_folder(dataset)
    if folder.is_dir() and _is_intact(folder, len(dataset), progress):
        return folder
    with run_lock(folder.parent):
        partial = folder.with_name(f".{folder.name}.partial")
        try:
            if folder.is_dir():
                shutil.rmtree(folder)
            partial.mkdir(parents=True, exist_ok=True)
            pairs = _write_pairs(dataset, partial, workers, progress)
            write_json(partial / _INDEX, {"version": _VERSION, "pairs": pairs})
            (partial / _JOURNAL).unlink()
            partial.rename(folder)
            for old in (*folder.parent.glob(f"{dataset.split}-*"), *_partials(dataset, folder)):
                if old != folder:
                    shutil.rmtree(old)
        except OSError as error:
            raise write_error(folder, error) from error
    return folder


def cache_folder(dataset: Dataset) -> Path:
    """Returns where the cache of these very files is, or would be. Raises DataError."""
    root = dataset.root if dataset.root.is_dir() else dataset.root.parent
    try:
        files = [
            [
                sample.name,
                *_identity(sample.image, root),
                *(_identity(sample.mask, root) if sample.mask else ()),
            ]
            for sample in dataset.samples
        ]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    what: list[Any] = [
        _VERSION,
        # What else decoding depends on.
        [__version__, PIL.__version__, *map(features.version, ("jpg", "webp", "libtiff"))],
        [dataset.name, dataset.split, dataset.classes],
        [sorted((dataset.label_map or {}).items()), sorted(dataset.void)],
        files,
    ]
    fingerprint = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    return root / _FOLDER / f"{dataset.split}-{fingerprint}"


def _identity(path: Path, root: Path) -> tuple[str, int, int]:
    """Returns path, size and time; the path without ROOT, so that a data set can be moved."""
    status = path.stat()
    place = path.relative_to(root) if path.is_relative_to(root) else path.absolute()
    return str(place), status.st_size, status.st_mtime_ns


def _open(folder: Path, count: int) -> Cache:
    """Reads the index of a cache that should hold `count` pairs. Raises DataError."""
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        pairs = tuple(Stored(*pair) for pair in index["pairs"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{folder / _INDEX}: damaged; remove the cache") from error
    if len(pairs) != count or not all(_is_sound(pair) for pair in pairs):
        raise DataError(f"{folder / _INDEX}: damaged; remove the cache")
    return Cache(folder, pairs)


def _is_intact(folder: Path, count: int, progress: Callable[[int, int], None]) -> bool:
    try:
        cache = _open(folder, count)
        for index in range(count):
            cache.check(index)
            progress(index + 1, count)
    except DataError:
        return False
    return True


def _partials(dataset: Dataset, folder: Path) -> Iterator[Path]:
    return folder.parent.glob(f".{dataset.split}-*.partial")


def _write_pairs(
    dataset: Dataset, partial: Path, workers: int, progress: Callable[[int, int], None]
) -> list[Stored]:
    """Appends the pairs that the arrays do not hold yet; returns all of them."""
    # Not above: the check reads caches, too.
    from segdeform.checking.cache import FactCache, cache_path

    facts = FactCache(cache_path(dataset.root))
    pairs = _written(partial)
    pixels = sum(pair.height * pair.width for pair in pairs)
    need = 4 * sum(height * width for height, width in _sizes(dataset, len(pairs), workers))
    require_space(partial, need)
    with (
        (partial / _IMAGES).open("ab") as images,
        (partial / _LABELS).open("ab") as labels,
        (partial / _JOURNAL).open("a", encoding="utf-8") as journal,
        ThreadPoolExecutor(workers) as pool,
    ):
        images.truncate(3 * pixels)
        labels.truncate(pixels)
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


def _decode(dataset: Dataset, facts: FactCache, index: int) -> tuple[UInt8, UInt8, Stored]:
    from segdeform.checking.facts import picture_facts

    image, labels = read_pair(dataset, index)
    height, width = labels.shape
    # Known already where the data set has just been checked.
    digest = facts.facts("picture", dataset.samples[index].image, picture_facts).digest
    return image, labels, Stored(height, width, digest, _sha256(image, labels, digest))


def _written(partial: Path) -> list[Stored]:
    """Returns what an interrupted call has written, and cuts its journal to that.

    The last line may be half a line, and after a power loss the arrays may hold less than it says.
    """
    journal, pairs = partial / _JOURNAL, []
    with suppress(FileNotFoundError, ValueError, TypeError):
        for line in journal.read_text(encoding="utf-8").splitlines():
            pairs.append(Stored(*json.loads(line)))
    pairs = pairs[: _count_whole(partial, pairs)]
    journal.write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs), encoding="utf-8")
    return pairs


def _count_whole(partial: Path, pairs: Sequence[Stored]) -> int:
    """Counts the pairs before the first one that the arrays do not hold as it was written."""
    try:
        images, labels = (np.memmap(partial / name, np.uint8, "r") for name in (_IMAGES, _LABELS))
    except (FileNotFoundError, ValueError):  # an empty file cannot be mapped
        return 0
    start = count = 0
    for pair in takewhile(_is_sound, pairs):
        end = start + pair.height * pair.width
        image, truth = images[3 * start : 3 * end], labels[start:end]
        if _sha256(image, truth, pair.digest) != pair.sha256:
            break
        start, count = end, count + 1
    return count


def _sizes(dataset: Dataset, first: int, workers: int) -> list[tuple[int, int]]:
    with ThreadPoolExecutor(workers) as pool:
        paths = [sample.image for sample in dataset.samples[first:]]
        return list(pool.map(image_size, paths))


def _sync(*files: BinaryIO) -> None:
    for file in files:
        file.flush()
        os.fsync(file.fileno())


def _sha256(image: UInt8, labels: UInt8, digest: str) -> str:
    total = hashlib.sha256(image.data)
    total.update(labels.data)
    total.update(digest.encode())
    return total.hexdigest()


def _is_sound(pair: Stored) -> bool:
    sides = (pair.height, pair.width)
    texts = all(isinstance(text, str) for text in (pair.digest, pair.sha256))
    return all(type(side) is int and side > 0 for side in sides) and texts
