"""What is known of every pixel: made of coarse scores, a few rows at a time.

The scores of all classes at all pixels, K * H * W numbers, are held at no time; what is asked for
lies in memory where it is small and in an unnamed temporary file where it is not.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from cuda_ops.labels import BYTE_CLASSES, enlarged_labels
from segdeform.files.atomic import write_error
from segdeform.windows import Window

IN_MEMORY = 2**26  # bytes of one array, beyond which it lies in a file
_PART = 2**23  # bytes of float32 scores that are held at a time
_PLANES = 2**26  # bytes of coarse scores that are labelled at a time


class Coarse(NamedTuple):
    """Scores of a part of a picture, one a square of `stride` pixels: its maps are made of them."""

    scores: Tensor  # [1, K, h, w] float32
    stride: int
    window: Window  # of the picture, pixels, that they answer for
    above: int = 0  # pixels of the scores above the window
    left: int = 0  # and on its left
    probabilities: bool = False  # the scores are probabilities; else a softmax makes such of them


@dataclass(frozen=True)
class Maps:
    """What a network says of every pixel; an array beyond `IN_MEMORY` bytes is an np.memmap.

    A memmap's file has no name and goes with the last that refers to it: read it in strips of rows.
    """

    labels: NDArray[Any]  # [H, W] uint8; of more than 255 classes uint16
    confidence: NDArray[np.uint8] | None = None  # [H, W] round(255 * top probability)
    probabilities: NDArray[np.float16] | None = None  # [K, H, W]
    coarse: Coarse | None = None  # what the others can still be made of


def new_map(shape: tuple[int, ...], dtype: DTypeLike, scratch: Path | None) -> NDArray[Any]:
    """Returns an array to be filled, beyond `IN_MEMORY` bytes as a memmap below `scratch`.

    The system removes the file however the process ends. Raises ResourceError where the disk is
    full, UsageError where `scratch` cannot be written.
    """
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    if scratch is None or size <= IN_MEMORY:
        return np.empty(shape, dtype)
    try:
        with TemporaryFile(dir=scratch) as file:
            # Taken now: a disk that fills up under a memmap kills the process.
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError as error:
        raise write_error(scratch, error) from error


def release_pages(array: NDArray[Any]) -> None:
    """Has the system count a memmap's pages no more as memory of the process; others stay.

    Nothing is lost: they are in the file, and read from there, or from the system's own cache.
    """
    mapped = array.base
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


class MapWriter:
    """Fills the maps of a picture piece by piece; the first tells how many classes there are."""

    def __init__(
        self, size: tuple[int, int], confidence: bool, probabilities: bool, scratch: Path | None
    ) -> None:
        self._size, self._scratch = size, scratch
        self._wanted = confidence, probabilities
        self._maps: Maps | None = None

    def add(self, coarse: Coarse) -> None:
        """Fills in what a piece of the picture answers for."""
        if self._maps is None:
            self._maps = self._empty(coarse.scores.shape[1])
        maps, (top, left, height, width) = self._maps, coarse.window
        rows, columns = slice(top, top + height), slice(left, left + width)
        write_labels(coarse, maps.labels[rows, columns])
        if maps.confidence is not None:
            write_confidence(coarse, maps.confidence[rows, columns])
        if maps.probabilities is not None:
            write_probabilities(coarse, maps.probabilities[:, rows, columns])
        for array in (maps.labels, maps.confidence, maps.probabilities):
            if array is not None:
                release_pages(array)

    def _empty(self, classes: int) -> Maps:
        confidence, probabilities = self._wanted
        label = np.uint8 if classes <= BYTE_CLASSES else np.uint16
        size, scratch = self._size, self._scratch
        return Maps(
            new_map(size, label, scratch),
            new_map(size, np.uint8, scratch) if confidence else None,
            new_map((classes, *size), np.float16, scratch) if probabilities else None,
        )

    def finish(self) -> Maps:
        """Returns the maps."""
        assert self._maps is not None
        return self._maps


@torch.inference_mode()
def confidence_of(coarse: Coarse, scratch: Path | None = None) -> NDArray[np.uint8]:  # [H, W]
    """Computes round(255 * top probability) of every pixel. Raises as `new_map` does."""
    found = new_map(coarse.window[2:], np.uint8, scratch)
    write_confidence(coarse, found)
    return found


@torch.inference_mode()
def probabilities_of(coarse: Coarse, scratch: Path | None = None) -> NDArray[np.float16]:
    """Computes the probability of every class at every pixel, [K, H, W]. Raises as `new_map`."""
    found = new_map((coarse.scores.shape[1], *coarse.window[2:]), np.float16, scratch)
    write_probabilities(coarse, found)
    return found


def write_labels(coarse: Coarse, out: NDArray[Any]) -> None:  # [H, W] of the window
    """Gives every pixel the class with the highest score; of equal ones the lowest."""
    scores, stride = coarse.scores, coarse.stride
    row = 4 * scores.shape[1] * scores.shape[3]
    for part in _parts(coarse, max(1, _PLANES // row), scores.shape[3]):
        cut, above, left = _with_neighbours(scores, part)
        size = (cut.shape[2] * stride, cut.shape[3] * stride)
        large = enlarged_labels(cut, stride, size)[0, above * stride :, left * stride :]
        _put(coarse, part, large, out)


def write_confidence(coarse: Coarse, out: NDArray[np.uint8]) -> None:  # [H, W] of the window
    """Writes round(255 * the probability of the likeliest class)."""
    for part, scores in _enlarged_parts(coarse):
        if coarse.probabilities:
            top = scores.amax(0)
        else:
            top = scores.sub_(scores.amax(0)).exp_().sum(0).reciprocal_()
        _put(coarse, part, top.mul_(255).round_().to(torch.uint8), out)


def write_probabilities(coarse: Coarse, out: NDArray[np.float16]) -> None:  # [K, H, W]
    """Writes the probability of every class."""
    for part, scores in _enlarged_parts(coarse):
        shares = scores if coarse.probabilities else scores.softmax(0)
        _put(coarse, part, shares.to(torch.float16), out)


def enlarged(coarse: Coarse) -> Tensor:  # [K, H, W] float32
    """Returns the scores of all pixels of the window."""
    top, left, (_, _, height, width) = coarse.above, coarse.left, coarse.window
    whole = Window(0, 0, coarse.scores.shape[2], coarse.scores.shape[3])
    return _enlarged(coarse, whole)[:, top : top + height, left : left + width]


def _enlarged_parts(coarse: Coarse) -> Iterator[tuple[Window, Tensor]]:
    """Yields parts of the scores, in squares of `stride` pixels, and what they are at pixels."""
    square = 4 * coarse.scores.shape[1] * coarse.stride**2
    columns = max(1, min(coarse.scores.shape[3], _PART // square))
    for part in _parts(coarse, max(1, _PART // (square * columns)), columns):
        yield part, _enlarged(coarse, part)


def _parts(coarse: Coarse, rows: int, columns: int) -> Iterator[Window]:
    """Cuts the squares that the window has pixels of into parts of at most rows x columns."""
    stride, (_, _, height, width) = coarse.stride, coarse.window
    first_row, first_column = coarse.above // stride, coarse.left // stride
    last_row = -(-(coarse.above + height) // stride)
    last_column = -(-(coarse.left + width) // stride)
    for top in range(first_row, last_row, rows):
        for left in range(first_column, last_column, columns):
            yield Window(top, left, min(rows, last_row - top), min(columns, last_column - left))


def _with_neighbours(scores: Tensor, part: Window) -> tuple[Tensor, int, int]:
    """Cuts out a part and the scores around it, by which it is enlarged as within the whole.

    Returns also how many rows were added above and how many columns on the left.
    """
    above, left = min(1, part.top), min(1, part.left)
    rows = slice(part.top - above, part.top + part.height + 1)
    columns = slice(part.left - left, part.left + part.width + 1)
    return scores[:, :, rows, columns], above, left


def _enlarged(coarse: Coarse, part: Window) -> Tensor:  # [K, height * stride, width * stride]
    stride = coarse.stride
    cut, above, left = _with_neighbours(coarse.scores.float(), part)
    # The same bits as `models.resizing.enlarge` gives.
    size = (cut.shape[2] * stride, cut.shape[3] * stride)
    large = F.interpolate(cut, size, mode="bilinear", align_corners=False)[0]
    rows = slice(above * stride, (above + part.height) * stride)
    return large[:, rows, left * stride : (left + part.width) * stride]


def _put(coarse: Coarse, part: Window, values: Tensor, out: NDArray[Any]) -> None:
    """Copies pixels of a part, [..., h, w], to where they lie in the window, [..., H, W]."""
    stride, (_, _, height, width) = coarse.stride, coarse.window
    top, left = part.top * stride - coarse.above, part.left * stride - coarse.left
    rows = slice(max(0, top), min(height, top + part.height * stride))
    columns = slice(max(0, left), min(width, left + part.width * stride))
    values = values[..., rows.start - top : rows.stop - top, columns.start - left :]
    values = values[..., : columns.stop - columns.start]
    out[..., rows, columns] = values.cpu().numpy()
