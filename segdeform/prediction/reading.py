"""A picture of a prediction, read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from segdeform.checking.facts import picture_facts
from segdeform.data.frames import Frames
from segdeform.data.georeference import Georeference, georeference
from segdeform.data.image_io import (
    count_frames,
    image_size,
    orientation,
    pixels_of,
    upright_size,
)
from segdeform.data.rasters import PartOfRaster, Raster
from segdeform.data.tiff_windows import TiffRaster
from segdeform.errors import PartialFailureError, SegdeformError
from segdeform.prediction.job import Job, Task
from segdeform.prediction.records import InputFile, input_file
from segdeform.segmenter import Segmenter

_DARK = 64  # of 255; a quarter of the range, as 14 bits use of 16
_CUT_OUT = 2**24  # pixels, up to which a part of a picture is an array
_LOOKS, _LOOK = 8, 128  # of a giant, so many squares of so many pixels across and down


class Seen(NamedTuple):
    """What was read of a picture."""

    image: Raster | None  # [H, W, C]; None: too large to be read beside others
    frames: int
    input: InputFile
    note: str = ""  # what a person should know of it
    place: Georeference | None = None  # on a map


_TOO_LARGE = Seen(None, 1, InputFile(0, 0, ""))


def read_picture(job: Job, task: Task, limit: int | None = None) -> Seen:
    """Reads a picture, unless it has more pixels than `limit`. Raises PartialFailureError."""
    path, segmenter = task.path, job.segmenter
    with failures_told(path):
        height, width = image_size(path)
        if limit is not None and height * width > limit:
            return _TOO_LARGE
        # With all frames asked for, it is read so where no others can be had, whatever it tells.
        frames = 1 if job.every_frame else count_frames(path, segmenter.bands)
        file = input_file(path)
        image, place = segmenter.open(path, job.output)
        return Seen(image, frames, file, _too_dark(path, image, segmenter), place)


def read_page(
    job: Job, task: Task, frames: Frames, file: InputFile, limit: int | None = None
) -> Seen:
    """Reads a frame of an open picture as `read_picture` does a picture."""
    path, segmenter = task.path, job.segmenter
    with failures_told(path), frames.at(task.frame or 0) as image:
        size = upright_size(image)
        if limit is not None and size[0] * size[1] > limit:
            return Seen(None, frames.count, file)
        place = georeference(image, path, orientation(image), size)
        pixels = pixels_of(image, path, segmenter.value_range, segmenter.bands)
        return Seen(pixels, frames.count, file, place=place)


def cut_out(job: Job, task: Task, seen: Seen | None) -> Seen | None:
    """Returns the part of a picture that is asked for. Raises PartialFailureError."""
    if job.window is None or seen is None or seen.image is None:
        return seen
    with failures_told(task.path):
        image: Raster = PartOfRaster(seen.image, *job.window)
        if job.window.height * job.window.width <= _CUT_OUT:
            image = image[:, :]
    place = seen.place and seen.place.of_part(job.window.top, job.window.left)
    return seen._replace(image=image, place=place)


@contextmanager
def failures_told(path: Path) -> Iterator[None]:
    """Raises PartialFailureError for what a picture's file lacks, inside the block."""
    try:
        yield
    except SegdeformError as error:
        raise failure_of(path, error) from error
    except OSError as error:
        raise PartialFailureError(f"cannot be read: {error.strerror}") from error


def _too_dark(source: Path, image: Raster, segmenter: Segmenter) -> str:
    """Says where a picture of more than 8 bits uses so little of its range that it is nearly black.

    Then its white is most likely another, as of cameras with 12 bits.
    """
    deep = isinstance(image, np.ndarray) or (isinstance(image, TiffRaster) and image.is_deep)
    if segmenter.value_range is not None or not deep or _brightest(image) >= _DARK:
        return ""
    if not isinstance(image, np.ndarray):
        return "is nearly black where it was looked at: --value-range 0,WHITE"
    facts = picture_facts(source, segmenter.bands)
    if not facts.spans or not facts.white:
        return ""
    top = max(high for _, high in facts.spans)
    white = (1 << int(top).bit_length()) - 1
    return f"holds values up to {top:g} of {facts.white}: --value-range 0,{white} if that is white"


def _brightest(image: Raster) -> int:
    """Returns the highest value of a picture; of a giant, of some places."""
    if isinstance(image, np.ndarray):
        return int(image.max())
    rows, columns = (
        np.linspace(0, max(0, side - _LOOK), _LOOKS).astype(int) for side in image.shape[:2]
    )
    parts = (image[y : y + _LOOK, x : x + _LOOK] for y in rows for x in columns)
    return max(int(part.max()) for part in parts)


def failure_of(source: Path, error: SegdeformError) -> PartialFailureError:
    """Makes one line of an error, without the picture's path, which stands beside it."""
    return PartialFailureError(" ".join(str(error).split()).removeprefix(f"{source}: "))
