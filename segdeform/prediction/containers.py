"""What the container of a video says of itself, so that one that was cut short is known as such.

OpenCV ends a video where its bytes end, as if that were all of it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from segdeform.errors import DataError

_MOST_BOXES = 100_000  # looked at in a file
_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid", b"moof", b"sidx"}
_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_OTHERS = (b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3", b"\x30\x26\xb2\x75")  # MPEG, MPEG, ASF


def opencv_path(path: Path) -> str:
    """Returns what OpenCV is given for a path: it ends the process over a name of other bytes.

    What is not absolute begins with ./ so that FFmpeg takes no folder called "http:" for an
    address. Raises DataError.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{path}: its name is no valid UTF-8: rename it") from error
    return os.path.join(".", path)  # noqa: PTH118, Path drops the dot


def is_container(path: Path) -> bool:
    """Tells by its first bytes whether a file is a video of a kind that is read.

    Nothing else is given to the decoder, which would take a list of addresses for a video, too.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if head[:4] == b"RIFF":
        return head[8:12] in (b"AVI ", b"AVIX")
    return head[:4] in (_EBML, *_OTHERS) or head[4:8] in _BOXES


def told_end(path: Path) -> int | None:
    """Returns the byte at which a container says that it ends; None where it does not say."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        if head[:4] == b"RIFF":
            return _riff_end(file, size)
        if head[:4] == _EBML:
            return _segment_end(file)
        if head[4:8] in _BOXES:
            ends = [end for kind, _, end in _boxes(file, 0, size) if kind in _BOXES]
            return max(ends, default=None)
    return None


def trimmed_to(path: Path) -> float | None:
    """Returns how many seconds of pictures an MP4 says are shown; None where it does not say.

    Telephones cut a video by a list of what is shown, and leave the frames where they are.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        for kind, start, end in _boxes(file, 0, size):
            if kind == b"moov":
                return _shown_seconds(file, start, min(end, size))
    return None


def _shown_seconds(file: BinaryIO, start: int, end: int) -> float | None:
    scale, tracks = 0, []
    for kind, inner, stop in _boxes(file, start, end):
        if kind == b"mvhd":
            scale = _field(file, inner, ">I", 12, 20)
        if kind == b"trak":
            tracks.append((inner, min(stop, end)))
    for inner, stop in tracks:
        duration, is_video = 0, False
        for kind, place, last in _boxes(file, inner, stop):
            if kind == b"tkhd":
                duration = _field(file, place, ">I", 20, 28, ">Q")
            if kind == b"mdia":
                for name, at, _ in _boxes(file, place, min(last, stop)):
                    if name == b"hdlr":
                        file.seek(at + 8)
                        is_video = file.read(4) == b"vide"
        if is_video and scale and duration:
            return duration / scale
    return None


def _field(
    file: BinaryIO, box: int, kind: str, place: int, later: int, later_kind: str = ""
) -> int:
    """Reads a number of a box, which lies elsewhere in its second version."""
    file.seek(box)
    content = file.read(later + 8)
    if content[:1] == b"\1":
        kind, place = later_kind or kind, later
    try:
        return int(struct.unpack_from(kind, content, place)[0])
    except struct.error:
        return 0


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yields (kind, begin of the content, end) of the boxes of an MP4, as they say."""
    for _ in range(_MOST_BOXES):
        file.seek(start)
        head = file.read(16)
        if len(head) < 8 or start >= end:
            return
        size, kind = struct.unpack_from(">I4s", head)
        inner = 8
        if size == 1 and len(head) == 16:
            size, inner = struct.unpack_from(">Q", head, 8)[0], 16
        if size == 0:  # up to the end
            size = end - start
        if size < inner:
            return
        yield kind, start + inner, start + size
        start += size


def _riff_end(file: BinaryIO, size: int) -> int | None:
    """Follows the parts of an AVI, of which each may have at most 4 GiB."""
    start = 0
    for _ in range(_MOST_BOXES):
        file.seek(start)
        head = file.read(8)
        if len(head) < 8 or head[:4] != b"RIFF":
            return start or None
        length = int.from_bytes(head[4:], "little")
        if length in (0, 2**32 - 1):  # of a recorder that was never stopped
            return None
        start += 8 + length + length % 2
        if start >= size:
            return start
    return None


def _segment_end(file: BinaryIO) -> int | None:
    """Finds the one large element of a Matroska file, which says how long it is."""
    start = 0
    for _ in range(8):
        file.seek(start)
        head = file.read(16)
        if len(head) < 6:
            return None
        kind_length = 9 - head[0].bit_length()
        kind, rest = head[:kind_length], head[kind_length:]
        if not rest or rest[0] == 0 or kind_length > 4:
            return None
        length = 9 - rest[0].bit_length()
        value = int.from_bytes(rest[:length], "big") & ((1 << (7 * length)) - 1)
        if value == (1 << (7 * length)) - 1:  # unknown, as of a stream
            return None
        start += kind_length + length + value
        if kind == _SEGMENT:
            return start
    return None


def missing_bytes(path: Path) -> int:
    """Counts the bytes that a container says it has, and has not."""
    return max(0, (told_end(path) or 0) - path.stat().st_size)
