"""Reads the masks of SBD, each one field of a struct in a MATLAB file.

SciPy reads these files too, but a damaged one can crash its compiled reader and the process with
it; here a wrong byte ends in an error. The format is MathWorks' "MAT-File Format", level 5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from segdeform.data.image_io import UInt8
from segdeform.errors import DataError, UnsafeInputError

_HEADER = 128  # bytes: a text, the version, the order of bytes
_LITTLE_ENDIAN = b"IM"
_MAX_FILE, _MAX_UNPACKED = 1 << 20, 1 << 26  # bytes; SBD's largest have a twentieth of these
_INT8, _UINT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 2, 5, 6, 14, 15  # kinds of elements
_STRUCT, _BYTES = 2, 9  # classes of arrays


class _FormatError(Exception):
    """What the file holds is not what SBD's masks hold."""


def read_sbd_mask(path: Path, classes: int = 21) -> UInt8:
    """Reads GTcls.Segmentation, labels from 0 to classes - 1, uint8 [H, W].

    Raises DataError naming a file that is missing, damaged or holds something else, and
    UnsafeInputError for one far too large.
    """
    try:
        if path.stat().st_size > _MAX_FILE:
            raise UnsafeInputError(f"{path}: {path.stat().st_size} bytes are no mask of SBD")
        labels = _segmentation(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    except (_FormatError, struct.error, zlib.error, ValueError) as error:
        raise DataError(f"{path}: is no mask of SBD: {error}") from error
    if labels.size == 0 or labels.max() >= classes:
        raise DataError(f"{path}: holds labels outside 0 to {classes - 1}")
    return labels


def _segmentation(content: bytes) -> UInt8:
    if content[_HEADER - 2 : _HEADER] != _LITTLE_ENDIAN:
        raise _FormatError("not a MATLAB file of level 5")
    for kind, element in _elements(content[_HEADER:], aligned=False):
        matrix = element
        if kind == _COMPRESSED:
            ((kind, matrix),) = _elements(_unpack(element))
        if kind == _MATRIX:
            array_class, shape, name, parts = _matrix(matrix)
            if name == b"GTcls" and array_class == _STRUCT and shape == (1, 1):
                return _byte_matrix(_field(parts, b"Segmentation"))
    raise _FormatError("it holds no struct GTcls")


def _unpack(data: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(data, _MAX_UNPACKED)
    if not unpacker.eof:
        raise _FormatError("the packed data end early or are too large")
    return content


def _elements(data: bytes, aligned: bool = True) -> Iterator[tuple[int, bytes]]:
    """Yields (kind, bytes) of each element; each begins at a multiple of 8 bytes if `aligned`."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from("<II", data, place)
        if kind >> 16:  # four bytes at most, in the place of the size
            kind, size, start, end = kind & 0xFFFF, kind >> 16, place + 4, place + 8
            if size > 4:
                raise _FormatError("a short element is too long")
        else:
            start = place + 8
            end = start + size + (-size % 8 if aligned else 0)
        if start + size > len(data):
            raise _FormatError("it ends early")
        yield kind, data[start : start + size]
        place = end


def _matrix(data: bytes) -> tuple[int, tuple[int, ...], bytes, list[tuple[int, bytes]]]:
    """Returns class, shape, name and the further elements of an array."""
    head, *parts = _elements(data)
    if len(parts) < 2 or [head[0], parts[0][0], parts[1][0]] != [_UINT32, _INT32, _INT8]:
        raise _FormatError("an array lacks its shape or name")
    (flags,) = struct.unpack_from("<I", head[1])
    shape = tuple(value for (value,) in struct.iter_unpack("<i", parts[0][1]))
    return flags & 0xFF, shape, parts[1][1], parts[2:]


def _field(parts: list[tuple[int, bytes]], wanted: bytes) -> bytes:
    """Returns the array in a field of a struct of one element."""
    if len(parts) < 2 or parts[0][0] != _INT32 or parts[1][0] != _INT8:
        raise _FormatError("a struct lacks its fields")
    (width,) = struct.unpack("<i", parts[0][1])
    if width < 1:
        raise _FormatError(f"names of {width} bytes")
    names = parts[1][1]
    fields = [names[place : place + width].rstrip(b"\0") for place in range(0, len(names), width)]
    for name, (kind, data) in zip(fields, parts[2:], strict=False):
        if name == wanted and kind == _MATRIX:
            return data
    raise _FormatError(f"it has no field {wanted.decode()}")


def _byte_matrix(data: bytes) -> UInt8:
    array_class, shape, _, parts = _matrix(data)
    if array_class != _BYTES or len(shape) != 2 or not parts or parts[0][0] != _UINT8:
        raise _FormatError("Segmentation is no matrix of bytes")
    height, width = shape
    if min(shape) < 0 or height * width != len(parts[0][1]):
        raise _FormatError("Segmentation has not the size it claims")
    # MATLAB stores column by column.
    return np.ascontiguousarray(np.frombuffer(parts[0][1], np.uint8).reshape(width, height).T)
