"""Decoded pairs in one folder: what a cache of a split consists of.

images.u8 holds all pictures, [H, W, C] each, one after the other; labels.u8 their classes, [H, W],
or labels.u16 where they are more than 255; index.json says which is which.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segdeform.data.image_io import UInt8
from segdeform.data.label_files import IndexValues
from segdeform.errors import DataError

IMAGES, INDEX = "images.u8", "index.json"
_MEND = "remove it, or write it anew: segdeform prepare NAME --output ROOT --cache"


class Stored(NamedTuple):
    """One pair in the cache."""

    height: int  # pixels
    width: int
    digest: str  # by which the check knows the same picture again, cached or not
    sha256: str  # of the picture's bytes, the labels' and the digest


@dataclass(frozen=True)
class Cache:
    """The arrays of one split, opened when first read, in every process for itself.

    They are read, not mapped: a file that is cut short while it is mapped ends the process.
    """

    folder: Path
    pairs: tuple[Stored, ...]
    channels: int = 3
    wide: bool = False  # labels of 16 bits

    @cached_property
    def _starts(self) -> list[int]:
        """Where each pair begins, in pixels, and where the last one ends."""
        return [0, *accumulate(pair.height * pair.width for pair in self.pairs)]

    @cached_property
    def _files(self) -> tuple[FileIO, FileIO]:
        files = []
        kind = label_dtype(self.wide)
        for name, size in ((IMAGES, self.channels), (labels_name(self.wide), kind.itemsize)):
            try:
                files.append(FileIO(self.folder / name))
            except OSError as error:
                raise DataError(f"{self.folder}: cannot be read ({error}); {_MEND}") from error
            if os.fstat(files[-1].fileno()).st_size != size * self._starts[-1]:
                raise DataError(f"{self.folder}: has not the size it should have; {_MEND}")
        return files[0], files[1]

    def read(self, index: int) -> tuple[UInt8, IndexValues]:
        """Returns a picture [H, W, C] and its labels [H, W].

        Raises DataError when the files are missing, of another size, or cut short meanwhile.
        """
        height, width, *_ = self.pairs[index]
        start, (images, labels) = self._starts[index], self._files
        image = np.empty((height, width, self.channels), np.uint8)
        truth = np.empty((height, width), label_dtype(self.wide))
        self._fill(image, images, self.channels * start)
        self._fill(truth, labels, truth.itemsize * start)
        return image, truth

    def _fill(self, pixels: IndexValues, file: FileIO, start: int) -> None:
        try:
            count = os.preadv(file.fileno(), [pixels.data], start)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be read ({error}); {_MEND}") from error
        if count != pixels.nbytes:
            raise DataError(f"{self.folder}: was cut short while it was used; {_MEND}")

    def read_checked(self, index: int) -> tuple[UInt8, IndexValues]:
        """Does what `read` does; raises DataError, too, unless the bytes have their SHA-256."""
        pair, (image, labels) = self.pairs[index], self.read(index)
        if pair_sha256(image, labels, pair.digest) != pair.sha256:
            raise self.damaged(index)
        return image, labels

    def damaged(self, index: int) -> DataError:
        """Returns the error for a pair that is not as it was written."""
        return DataError(f"{self.folder}: picture {index} of the cache is damaged; {_MEND}")

    def __getstate__(self) -> dict[str, Any]:
        """Pickles paths and sizes, not the pictures."""
        names = ("folder", "pairs", "channels", "wide")
        return {name: getattr(self, name) for name in names}


def open_cache(folder: Path, count: int, channels: int = 3, *, wide: bool = False) -> Cache:
    """Reads the index of a cache that should hold `count` pairs. Raises DataError."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        pairs = tuple(Stored(*pair) for pair in index["pairs"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{folder / INDEX}: damaged; remove the cache") from error
    if len(pairs) != count or not all(is_sound(pair) for pair in pairs):
        raise DataError(f"{folder / INDEX}: damaged; remove the cache")
    return Cache(folder, pairs, channels, wide)


def labels_name(wide: bool) -> str:
    """Returns the name of the file that holds the labels."""
    return "labels.u16" if wide else "labels.u8"


def label_dtype(wide: bool) -> np.dtype[np.uint8 | np.uint16]:
    """Returns what the labels are, in the file and in memory."""
    return np.dtype(np.uint16 if wide else np.uint8)


def pair_sha256(image: UInt8, labels: IndexValues, digest: str) -> str:
    """Returns the sum of a picture's bytes, its labels' and its digest."""
    total = hashlib.sha256(image.data)
    total.update(labels.data)
    total.update(digest.encode())
    return total.hexdigest()


def is_sound(pair: Stored) -> bool:
    """Says whether a pair that was read from a file is one: sides and sums of the right types."""
    sides = (pair.height, pair.width)
    texts = all(isinstance(text, str) for text in (pair.digest, pair.sha256))
    return all(type(side) is int and side > 0 for side in sides) and texts
