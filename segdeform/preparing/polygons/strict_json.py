"""Reads JSON and text files that nobody vouches for into checked models, within limits."""

from __future__ import annotations

import codecs
import stat
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from segdeform.errors import EXHAUSTED, DataError, ResourceError, UnsafeInputError

MAX_BYTES = 512 << 20  # COCO's own largest file has 448 MiB

_Read = TypeVar("_Read")


class Model(BaseModel):
    """A part of a file: what is declared is checked, what other tools add is passed over."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False, frozen=True)


def read_bytes(path: Path) -> bytes:
    """Reads a whole annotation file as UTF-8 bytes without a byte order mark.

    Raises DataError (missing, unreadable, UTF-16 that is none) or UnsafeInputError (over 512 MiB).
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: not a regular file")
        if status.st_size > MAX_BYTES:
            raise UnsafeInputError(
                f"{path}: has {status.st_size >> 20} MiB; annotation files have up to "
                f"{MAX_BYTES >> 20}. Split it into several"
            )
        content = path.read_bytes()
    except OSError as error:
        if error.errno in EXHAUSTED:
            raise ResourceError(f"{path}: {error.strerror}") from error
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return content.decode("utf-16").encode()
        except UnicodeError as error:
            raise DataError(f"{path}: is neither UTF-8 nor UTF-16 text") from error
    return content.removeprefix(codecs.BOM_UTF8)


def parse_json(kind: type[_Read] | TypeAdapter[_Read], content: bytes, path: Path) -> _Read:
    """Checks JSON against a model; raises DataError that names the file, the place and the rule."""
    try:
        if isinstance(kind, TypeAdapter):
            return kind.validate_json(content)
        return TypeAdapter(kind).validate_json(content)
    except ValidationError as error:
        raise invalid(error, str(path)) from error


def parse_part(kind: type[_Read], value: Any, where: str) -> _Read:
    """Checks a part that was read already; raises DataError that begins with `where`."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise invalid(error, where) from error


def invalid(error: ValidationError, where: str) -> DataError:
    """Makes one line of what does not fit: the deepest place, as the one that was meant."""
    problem = max(error.errors(include_url=False, include_input=False), key=_depth)
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"])
    text = " ".join(problem["msg"].split())[:200]
    return DataError(f"{where}: {place.lstrip('.')}: {text}" if place else f"{where}: {text}")


def _depth(problem: Any) -> int:
    return len(problem["loc"])
