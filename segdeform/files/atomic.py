"""Files that are either whole or not there: temporary name, fsync, rename.

A reader, a kill or a full disk never meets half a file under its final name, and what stood there
before stays until the new file is complete.
"""

from __future__ import annotations

import ctypes
import errno
import json
import math
import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from segdeform.errors import EXHAUSTED, ResourceError, SegdeformError, UsageError

_RESOURCE_ERRORS = EXHAUSTED | {errno.EIO}
_TEMPORARY = re.compile(r"\.segdeform-[0-9a-f]{16}\.tmp(\..*)?")
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # of Linux, linux/fcntl.h and linux/fs.h


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Lends a temporary path in the folder of `path` and renames it to `path` on success.

    The folder is made when missing. The temporary name is hidden and keeps the suffix, by which
    writers choose the format; on any failure the temporary file is removed.
    Raises ResourceError (disk, quota, file handles) or UsageError (permission, not a folder).
    """
    temporary = temporary_path(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            put(temporary, path)
        except OSError as error:
            raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def temporary_path(path: Path) -> Path:
    """Returns a hidden name beside `path`, by which a killed writer's file is known."""
    return path.with_name(f".segdeform-{secrets.token_hex(8)}.tmp{path.suffix}")


def put(temporary: Path, path: Path) -> None:
    """Moves a whole file to its name, in one step that survives a crash. Raises OSError."""
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def is_temporary(name: str) -> bool:
    """Tells whether a file of this name is what a killed writer left."""
    return _TEMPORARY.fullmatch(name) is not None


def remove_temporaries(folder: Path) -> None:
    """Deletes what killed writers left in a folder that nobody writes into now."""
    for path in folder.glob(".segdeform-*.tmp*"):
        if is_temporary(path.name):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Writes a file atomically; raises ResourceError or UsageError as `atomic_path` does."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically, newlines as they are.

    File names that are no UTF-8 hold lone surrogates; they become \\udcXX, which JSON reads back.
    """
    write_bytes(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON atomically; NaN and infinities raise ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def json_number(value: float) -> float | None:
    """Returns a number as JSON has it: None for NaN and infinities."""
    return float(value) if math.isfinite(value) else None


def write_error(path: Path, error: OSError) -> SegdeformError:
    """Turns a failure to write `path` into the one-line error that the user reads."""
    reason = error.strerror or str(error)
    if error.errno in _RESOURCE_ERRORS:
        return ResourceError(f"{path}: cannot be written: {reason}. Free some space and run again.")
    return UsageError(f"{path}: cannot be written: {reason}. Choose another output folder.")


def exchange(first: Path, second: Path) -> bool:
    """Swaps two folders, in one step that a kill finds done or not begun.

    Returns False where the system or the drive has no such step; raises OSError.
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    names = (_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second))
    if library.renameat2(*names, ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(second))


def sync(path: Path) -> None:
    """Waits until a file's contents, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
