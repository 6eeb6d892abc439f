"""Decoded pairs in one folder: what a cache of a split consists of.

images.u8 holds all pictures, [H, W, C] each, one after the other; labels.u8 their classes, [H, W];
index.json says which is which.
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
from segdeform.errors import DataError

IMAGES, LABELS, INDEX = "images.u8", "labels.u8", "index.json"
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

    @cached_property
    def _starts(self) -> list[int]:
        """Where each pair begins, in pixels, and where the last one ends."""
        return [0, *accumulate(pair.height * pair.width for pair in self.pairs)]

    @cached_property
    def _files(self) -> tuple[FileIO, FileIO]:
        files = []
        for name, channels in ((IMAGES, self.channels), (LABELS, 1)):
            try:
                files.append(FileIO(self.folder / name))
            except OSError as error:
                raise DataError(f"{self.folder}: cannot be read ({error}); {_MEND}") from error
            if os.fstat(files[-1].fileno()).st_size != channels * self._starts[-1]:
                raise DataError(f"{self.folder}: has not the size it should have; {_MEND}")
        return files[0], files[1]

    def read(self, index: int) -> tuple[UInt8, UInt8]:
        """Returns a picture [H, W, C] and its labels [H, W].

        Raises DataError when the files are missing, of another size, or cut short meanwhile.
        """
        height, width, *_ = self.pairs[index]
        start, (images, labels) = self._starts[index], self._files
        return (
            self._read(images, self.channels * start, (height, width, self.channels)),
            self._read(labels, start, (height, width)),
        )

    def _read(self, file: FileIO, start: int, shape: tuple[int, ...]) -> UInt8:
        pixels = np.empty(shape, np.uint8)
        try:
            count = os.preadv(file.fileno(), [pixels.data], start)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be read ({error}); {_MEND}") from error
        if count != pixels.nbytes:
            raise DataError(f"{self.folder}: was cut short while it was used; {_MEND}")
        return pixels

    def read_checked(self, index: int) -> tuple[UInt8, UInt8]:
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
        return {"folder": self.folder, "pairs": self.pairs, "channels": self.channels}


def open_cache(folder: Path, count: int, channels: int = 3) -> Cache:
    """Reads the index of a cache that should hold `count` pairs. Raises DataError."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        pairs = tuple(Stored(*pair) for pair in index["pairs"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{folder / INDEX}: damaged; remove the cache") from error
    if len(pairs) != count or not all(is_sound(pair) for pair in pairs):
        raise DataError(f"{folder / INDEX}: damaged; remove the cache")
    return Cache(folder, pairs, channels)


def pair_sha256(image: UInt8, labels: UInt8, digest: str) -> str:
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
