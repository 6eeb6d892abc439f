"""TIFFs written by hand, byte by byte as their specification (6.0) says: any bands, any layout."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

NONE, DEFLATE, PACKBITS = 1, 8, 32773
GREY, RGB = 1, 2


def write_tiff(
    path: Path,
    values: npt.NDArray[Any],  # [H, W, bands]
    *,
    photometric: int,
    extra: tuple[int, ...] | None = None,  # the tag ExtraSamples; None: it is left out
    planes: bool = False,  # each band by itself
    big_endian: bool = False,
    compression: int = NONE,
    predictor: bool = False,  # differences of neighbours, before the compression
    rows: int = 3,  # a strip; with `tile`, of a tile as well
    tile: int = 0,  # width of a tile; 0: strips
    turn: int | None = None,  # the tag Orientation
    more: dict[int, int] | None = None,  # further tags, unsigned longs
) -> None:
    """Writes one page; what a reader must give back is values[..., :3]."""
    end = ">" if big_endian else "<"
    height, width, bands = values.shape
    parts = [values[..., band, None] for band in range(bands)] if planes else [values]
    blocks = [
        _packed(block, end, compression, predictor)
        for part in parts
        for block in _blocks(part, rows, tile)
    ]
    body, offsets, at = b"", [], 8
    for block in blocks:
        offsets.append(at + len(body))
        body += block + b"\0" * (len(block) % 2)
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    tags: dict[int, tuple[int, list[int]]] = {  # number -> type (3: short, 4: long), values
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [8 * values.dtype.itemsize] * bands),
        259: (3, [compression]),
        262: (3, [photometric]),
        277: (3, [bands]),
        284: (3, [2 if planes else 1]),
        317: (3, [2 if predictor else 1]),
        339: (3, [kind] * bands),
    }
    lengths = [len(block) for block in blocks]
    if tile:
        tags |= {322: (4, [tile]), 323: (4, [rows]), 324: (4, offsets), 325: (4, lengths)}
    else:
        tags |= {273: (4, offsets), 278: (4, [rows]), 279: (4, lengths)}
    if extra is not None:
        tags[338] = (3, list(extra))
    if turn is not None:
        tags[274] = (3, [turn])
    tags |= {number: (4, [value]) for number, value in (more or {}).items()}
    path.write_bytes(_file(end, body, tags))


def _file(end: str, body: bytes, tags: dict[int, tuple[int, list[int]]]) -> bytes:
    directory = 8 + len(body)
    extra_at = directory + 2 + 12 * len(tags) + 4
    entries, extra = b"", b""
    for number, (kind, numbers) in sorted(tags.items()):
        packed = struct.pack(f"{end}{len(numbers)}{'H' if kind == 3 else 'I'}", *numbers)
        if len(packed) > 4:
            place = struct.pack(f"{end}I", extra_at + len(extra))
            extra += packed + b"\0" * (len(packed) % 2)
        else:
            place = packed.ljust(4, b"\0")
        entries += struct.pack(f"{end}HHI", number, kind, len(numbers)) + place
    head = (b"MM" if end == ">" else b"II") + struct.pack(f"{end}HI", 42, directory)
    count = struct.pack(f"{end}H", len(tags))
    return head + body + count + entries + struct.pack(f"{end}I", 0) + extra


def _blocks(part: npt.NDArray[Any], rows: int, tile: int) -> list[npt.NDArray[Any]]:
    height, width = part.shape[:2]
    if not tile:
        return [part[top : top + rows] for top in range(0, height, rows)]
    padded = np.pad(part, ((0, -height % rows), (0, -width % tile), (0, 0)), mode="edge")
    return [
        padded[top : top + rows, left : left + tile]
        for top in range(0, height, rows)
        for left in range(0, width, tile)
    ]


def _packed(block: npt.NDArray[Any], end: str, compression: int, predictor: bool) -> bytes:
    if predictor:
        block = np.concatenate([block[:, :1], block[:, 1:] - block[:, :-1]], axis=1)
    content = block.astype(block.dtype.newbyteorder(end)).tobytes()
    if compression == DEFLATE:
        return zlib.compress(content)
    if compression == PACKBITS:  # nothing but literal runs, each of at most 128 bytes
        runs = (content[start : start + 128] for start in range(0, len(content), 128))
        return b"".join(bytes([len(run) - 1]) + run for run in runs)
    return content
