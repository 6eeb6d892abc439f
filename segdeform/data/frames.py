"""The frames or pages of one picture file, read one after the other from a file that stays open."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import ImageFile, TiffImagePlugin

from segdeform.data.bands import (
    BandsFile,
    frame_count,
    holds_bands,
    picture_pages,
    whole_planes,
)
from segdeform.data.channels import Bands
from segdeform.data.depth import ValueRange
from segdeform.data.image_io import (
    DAMAGE,
    UInt8,
    identified,
    open_file,
    pixels_of,
    read_image,
    refuse_size,
    told_failures,
)

_EACH_ALONE = ("TIFF", "MPO")  # formats whose pictures do not rest on those before


def read_frame(
    path: Path, frame: int, value_range: ValueRange | None = None, bands: Bands | None = None
) -> UInt8:
    """Reads one frame or page, from 0; the rules and the errors are those of `read_image`."""
    if frame == 0:
        return read_image(path, value_range, bands)
    with Frames(path, bands).at(frame) as image:
        return pixels_of(image, path, value_range, bands)


class Frames:
    """The pictures that a file holds, numbered from 0, each decoded when it is asked for.

    In their order each costs its own decoding; an animation starts anew for an earlier one.
    Several threads may ask. Close it in the end.
    """

    def __init__(self, path: Path, bands: Bands | None = None) -> None:
        """Counts the pictures: with `bands`, pages that are channels are one together.

        Raises DataError, UnsafeInputError or ResourceError as `read_image` does.
        """
        self.path, self._lock = path, threading.Lock()
        self._bands: BandsFile | None = None
        self._grouped, self._pages = False, [0]
        with told_failures(path):
            self._file = open_file(path)
        try:
            with told_failures(path):
                self._image = identified(path, self._file)
                self.alone = self._image.format in _EACH_ALONE
                self.count = self._count(bands)
        except BaseException:
            self._file.close()
            raise

    def _count(self, bands: Bands | None) -> int:
        if not isinstance(self._image, TiffImagePlugin.TiffImageFile | BandsFile):
            return max(1, frame_count(self._image))
        opened = self._opened_bands()
        if opened is None:
            return 1
        if bands is not None and opened.channels:
            self._grouped = True
            return max(1, opened.groups)
        self._pages = picture_pages(opened.page.parent)
        return max(len(self._pages), whole_planes(opened.page))

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()

    @contextmanager
    def at(self, frame: int) -> Iterator[ImageFile.ImageFile]:
        """Lends a picture, not decoded yet; failures inside the block count as its.

        Raises as `read_image` does.
        """
        with self._lock, told_failures(self.path):
            image = self._turned(frame)
            refuse_size(image, self.path)
            yield image

    def _turned(self, frame: int) -> ImageFile.ImageFile:
        if not isinstance(self._image, TiffImagePlugin.TiffImageFile | BandsFile):
            if frame < self._image.tell():  # Pillow goes back in an APNG only to lose its way
                self._file.seek(0)
                self._image = identified(self.path, self._file)
            if self._image.format == "PNG":  # whose frames rest on those before as decoded
                for before in range(self._image.tell(), frame):
                    self._image.seek(before)
                    self._image.load()
            self._image.seek(frame)
            return self._image
        if self._grouped:
            bands = self._known_bands()
            bands.seek_group(frame)
            return bands
        if len(self._pages) == 1 and frame > 0:
            bands = self._known_bands()
            bands.plane = frame
            bands.refuse_unknown(self.path)
            return bands
        return self._page(self._pages[frame])

    def _page(self, number: int) -> ImageFile.ImageFile:
        """Turns to a page of a TIFF: by Pillow, or by tifffile where it would read it wrong."""
        if isinstance(self._image, TiffImagePlugin.TiffImageFile):
            try:
                self._image.seek(number)
                if not holds_bands(self._image):
                    return self._image
            except (OSError, *DAMAGE):  # layouts that it does not know look like damage, too
                pass
        bands = self._known_bands()
        bands.plane = 0
        bands.seek(number)
        bands.refuse_unknown(self.path)
        return bands

    def _opened_bands(self) -> BandsFile | None:
        """Opens a TIFF by tifffile; None where it cannot."""
        if isinstance(self._image, BandsFile):
            return self._image
        if self._bands is None:
            try:
                self._bands = BandsFile(self._file, str(self.path))
            except (OSError, *DAMAGE):
                return None
        return self._bands

    def _known_bands(self) -> BandsFile:
        bands = self._opened_bands()
        if bands is None:
            raise ValueError("its pages cannot be told apart")
        return bands
