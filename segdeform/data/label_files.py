"""Label maps written strip by strip or tile by tile: they may be larger than memory.

PNG by its specification (https://www.w3.org/TR/png-3/), TIFF by tifffile.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import tifffile

from segdeform.data.georeference import Georeference
from segdeform.files.atomic import atomic_path

IndexValues = npt.NDArray[np.uint8 | np.uint16]
Palette = Sequence[tuple[int, int, int]]

PNG_GREY, PNG_PALETTE, PNG_RGBA = 0, 3, 6  # of the specification
_STRIP = 1 << 20  # bytes compressed at a time
_TILE = 512  # pixels, side of a TIFF's tiles
_CLASSIC = 1 << 31  # bytes not compressed, beyond which a TIFF is a BigTIFF; the format's end is 4G
_BEYOND_CLASSES = 224  # grey of the indices that no class has, 255 (ignore) among them


def index_colours(palette: Palette) -> npt.NDArray[np.uint8]:  # [256, 3]
    """Returns the colours of an 8-bit label map's values, those of no class in a pale grey."""
    colours = np.full((256, 3), _BEYOND_CLASSES, np.uint8)
    colours[: len(palette)] = np.array(palette, np.uint8).reshape(-1, 3)
    return colours


def write_index_tiff(
    path: Path, labels: IndexValues, palette: Palette, place: Georeference | None = None
) -> None:
    """Writes labels [H, W] as a tiled, deflate-compressed TIFF, with its place on the map.

    uint8 is a palette TIFF, uint16 a grey one of 16 bits; one that may pass 4 GB is a BigTIFF. The
    file appears whole or not at all. Raises ResourceError or UsageError when it cannot be written.
    """
    eight = labels.dtype == np.uint8
    colours = index_colours(palette).T.astype(np.uint16) * 257 if eight else None
    with (
        atomic_path(path) as temporary,
        tifffile.TiffWriter(temporary, bigtiff=labels.nbytes > _CLASSIC) as file,
    ):
        file.write(
            _tiles(labels),
            shape=labels.shape,
            dtype=labels.dtype,
            tile=(_TILE, _TILE),
            compression="zlib",
            photometric="palette" if eight else "minisblack",
            colormap=colours,
            extratags=() if place is None else place.tags(),
            metadata=None,
            software=False,
            maxworkers=1,
        )


def _tiles(labels: IndexValues) -> Iterator[IndexValues]:
    height, width = labels.shape
    for top in range(0, height, _TILE):
        for left in range(0, width, _TILE):
            part = labels[top : top + _TILE, left : left + _TILE]
            tile = np.zeros((_TILE, _TILE), labels.dtype)
            tile[: part.shape[0], : part.shape[1]] = part
            yield tile


def write_index_png_rows(path: Path, labels: IndexValues, palette: Palette) -> None:
    """Writes labels [H, W] as `image_io.write_index_png` does, a few rows at a time.

    Its pixels are the same, its bytes are not. Raises as that does.
    """
    rows = max(1, math.ceil(_STRIP / labels[:1].nbytes))
    strips = (labels[top : top + rows] for top in range(0, len(labels), rows))
    if labels.dtype == np.uint8:
        colours = index_colours(palette).tobytes()
        write_png_rows(path, labels.shape, PNG_PALETTE, 8, strips, colours)
    else:
        write_png_rows(path, labels.shape, PNG_GREY, 16, strips)


def write_png_rows(
    path: Path,
    size: tuple[int, ...],  # (H, W)
    colours: int,  # PNG_GREY, PNG_PALETTE or PNG_RGBA
    bits: int,  # 8 or 16
    strips: Iterable[IndexValues],  # [h, W] or [h, W, C], from the top down
    palette: bytes = b"",  # RGB, for PNG_PALETTE
) -> None:
    """Writes a PNG of which only a strip is in memory; it appears whole or not at all.

    Raises ResourceError or UsageError when it cannot be written.
    """
    head = struct.pack(">IIBBBBB", size[1], size[0], bits, colours, 0, 0, 0)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        _write_chunk(file, b"IHDR", head)
        _write_chunk(file, b"PLTE", palette)
        packer = zlib.compressobj()
        for strip in strips:
            _write_chunk(file, b"IDAT", packer.compress(_lines(strip).data))
        _write_chunk(file, b"IDAT", packer.flush())
        _write_chunk(file, b"IEND", b"", empty=True)


def _lines(strip: IndexValues) -> npt.NDArray[np.uint8]:
    """Returns rows as a PNG holds them: each begins with its filter, 0 for none."""
    values = np.ascontiguousarray(strip, strip.dtype.newbyteorder(">")).view(np.uint8)
    return np.pad(values.reshape(len(strip), -1), ((0, 0), (1, 0)))


def _write_chunk(file: BinaryIO, kind: bytes, content: bytes, empty: bool = False) -> None:
    if content or empty:  # the packer gives nothing for a while, then much
        file.write(struct.pack(">I", len(content)) + kind + content)
        file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))
