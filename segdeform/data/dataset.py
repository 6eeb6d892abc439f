"""What a data set is: named samples, classes, colours, and the rule from file values to classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segdeform.data.channels import Bands
from segdeform.data.decoded import Cache
from segdeform.data.depth import ValueRange, ranges
from segdeform.data.image_io import UInt8, read_image, read_mask
from segdeform.data.label_files import IndexValues
from segdeform.errors import DataError

Mask = IndexValues  # [H, W] values of a file

Labels = IndexValues  # [H, W] classes, or what is ignored

# The label of pixels that are neither trained on nor scored: of up to 255 classes, whose labels are
# uint8, and of more, whose labels are uint16. There 255 is a class like any other.
IGNORE, WIDE_IGNORE = 255, 65_535
MAX_NARROW, MAX_CLASSES = 255, 65_535
_HARMLESS = {
    *("orphan-mask", "mask-suffix", "moved-folder", "unread-files"),
    *("unused-list", "unused-key", "unused-block"),
}


def ignore_label(classes: int) -> int:
    """Returns the label that is ignored beside this many classes."""
    return IGNORE if classes <= MAX_NARROW else WIDE_IGNORE


def label_type(classes: int) -> np.dtype[np.uint8 | np.uint16]:
    """Returns the type of the labels of this many classes, whose highest value is ignored."""
    return np.dtype(np.uint8 if classes <= MAX_NARROW else np.uint16)


class MissingSplitError(DataError):
    """The data set is there, or seems to be, but not this split of it."""


@dataclass(frozen=True)
class Sample:
    """One picture, with its mask where there is one."""

    name: str  # unique, relative, without suffix, may hold '/'; outputs are named after it
    image: Path
    mask: Path | None


@dataclass(frozen=True)
class ListingProblem:
    """Something that the folders or lists of a split lack, hold twice or hold in vain."""

    kind: str  # of finding: missing-picture, missing-mask, jpeg-mask, double, class-values, ...
    file: Path
    text: str  # one line that names the file

    @property
    def harmless(self) -> bool:
        """Whether the rest can be used as it is."""
        return self.kind in _HARMLESS


@dataclass(frozen=True)
class Dataset:
    """One split of a data set, read in place. Raises DataError for class lists that cannot be."""

    name: str
    split: str
    root: Path
    classes: tuple[str, ...]  # K names
    palette: tuple[tuple[int, int, int], ...]  # K RGB colours
    samples: tuple[Sample, ...]
    label_map: Mapping[int, int] | None = None  # file value -> class or `ignore`; None: identity
    void: frozenset[int] = frozenset({IGNORE})  # file values that mean `ignore`
    cache: Cache | None = None  # where decoded pairs are read from instead of the files
    decode_mask: Callable[[Path], Mask] = read_mask  # mask file -> its values [H, W], picklable
    problems: tuple[ListingProblem, ...] = ()  # of what is not among the samples
    value_range: ValueRange | None = None  # of pictures of more than 8 bits; None: the whole
    bands: Bands | None = None  # of the files, that become the channels; None: read as RGB

    def __post_init__(self) -> None:
        count = len(self.classes)
        if not 1 <= count <= MAX_CLASSES:
            raise DataError(f"{self.root}: {count} classes; from 1 to {MAX_CLASSES} are possible")
        if len(self.palette) != count:
            raise DataError(f"{self.root}: {len(self.palette)} colours for {count} classes")
        if len(set(self.classes)) != count:
            raise DataError(f"{self.root}: a class name is given twice")

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def wide(self) -> bool:
        """Whether labels have 16 bits, since there are more classes than fit into 8."""
        return len(self.classes) > MAX_NARROW

    @property
    def ignore(self) -> int:
        """The label of pixels that are neither trained on nor scored: 255, or 65535."""
        return ignore_label(len(self.classes))

    @property
    def channels(self) -> int:
        """How many channels a picture has as it is read."""
        return 3 if self.bands is None else len(self.bands)

    def as_read_by(self, value_range: ValueRange | None, bands: Bands | None) -> Dataset:
        """Returns the data set as a model reads it: with its range and its bands where it names
        none itself. Raises DataError for another number of channels, or of ranges."""
        known = 3 if bands is None else len(bands)
        if self.bands is not None and len(self.bands) != known:
            raise DataError(
                f"{self.root}: bands: {list(self.bands)} makes pictures of {len(self.bands)} "
                f"channels, and the model knows {known}"
            )
        read = replace(self, value_range=self.value_range or value_range, bands=self.bands or bands)
        if read.value_range and ranges(read.value_range, read.channels) is None:
            raise DataError(
                f"{self.root}: value_range has one range for each of another number of channels "
                f"than {read.channels}, as the model's pictures have"
            )
        return read

    def names_sha256(self) -> str:
        """Returns the SHA-256 of the names of the pictures, in order."""
        names = "".join(f"{sample.name}\n" for sample in self.samples)
        return hashlib.sha256(names.encode(errors="surrogateescape")).hexdigest()

    def without_masks(self) -> Dataset:
        """Returns the pictures alone."""
        bare = tuple(replace(sample, mask=None) for sample in self.samples)
        return replace(self, samples=bare)

    @cached_property
    def lookup(self) -> npt.NDArray[np.int16 | np.int32]:
        """Maps every possible file value, [65536], to a class, to what is ignored, or to -1: not
        allowed."""
        kind: np.dtype[np.int16 | np.int32] = np.dtype(np.int32 if self.wide else np.int16)
        table = np.full(1 << 16, -1, kind)
        if self.label_map is None:
            table[: len(self.classes)] = np.arange(len(self.classes))
        table[list(self.void)] = self.ignore
        for value, label in (self.label_map or {}).items():
            table[value] = label
        return table


def read_pair(dataset: Dataset, index: int) -> tuple[UInt8, Labels]:
    """Reads a picture, uint8 [H, W, 3] RGB or [H, W, C] of its bands, and its labels, uint8 [H, W]
    (uint16 of more than 255 classes), classes or what is ignored.

    Raises DataError naming the file (and value and position of a label outside the classes), or
    the cache that is read instead.
    """
    if dataset.cache is not None:
        return _cached_pair(dataset, dataset.cache, index)
    sample = dataset.samples[index]
    if sample.mask is None:
        raise DataError(f"{sample.image}: has no mask")
    image = read_picture(dataset, index)
    labels = read_labels(dataset, sample.mask)
    if labels.shape != image.shape[:2]:
        (height, width), (rows, columns) = image.shape[:2], labels.shape
        raise DataError(
            f"{sample.mask}: is {rows}x{columns} (HxW), its picture {sample.image} "
            f"is {height}x{width}"
        )
    return image, labels


def read_picture(dataset: Dataset, index: int) -> UInt8:
    """Reads a picture alone, from its file, as `read_image` does with the data set's range and
    bands."""
    return read_image(dataset.samples[index].image, dataset.value_range, dataset.bands)


def _cached_pair(dataset: Dataset, cache: Cache, index: int) -> tuple[UInt8, Labels]:
    image, labels = cache.read(index)
    # What is ignored is the highest value, and wraps to 0: one comparison tells all that is no
    # label.
    if (labels + labels.dtype.type(1)).max() > len(dataset.classes):
        raise cache.damaged(index)
    return image, labels


def read_labels(dataset: Dataset, mask: Path) -> Labels:
    """Reads a mask file as labels uint8 [H, W], uint16 of more than 255 classes: class indices or
    what is ignored. Raises DataError."""
    values = dataset.decode_mask(mask)
    labels = dataset.lookup[values]
    if labels.min() < 0:
        row, column = np.unravel_index(int(np.argmin(labels)), labels.shape)
        allowed = (
            f"0 to {len(dataset.classes) - 1}" if dataset.label_map is None else "label_mapping"
        )
        ignored = ", ".join(map(str, sorted(dataset.void)))
        raise DataError(
            f"{mask}: label {values[row, column]} at row {row}, column {column} is outside the "
            f"{len(dataset.classes)} classes (allowed: {allowed}"
            f"{f'; ignored: {ignored}' if ignored else ''})"
        )
    return labels.astype(label_type(len(dataset.classes)))


def colour_map(count: int) -> tuple[tuple[int, int, int], ...]:
    """Returns the first `count` RGB colours of the PASCAL VOC colour map (bits of the index dealt
    to red, green and blue in turn, from the highest bit of each colour down), which all differ."""
    colours = []
    for index in range(count):
        channels = [0, 0, 0]
        for bit in range(index.bit_length()):
            channels[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
        colours.append((channels[0], channels[1], channels[2]))
    return tuple(colours)
