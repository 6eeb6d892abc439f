"""Looks whether the disk has room before anything large is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from segdeform.errors import ResourceError

_RESERVE = 64 << 20  # bytes that are left alone


def require_space(folder: Path, need: int) -> None:
    """Raises ResourceError unless the disk of a folder, existing or not, has `need` bytes free."""
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if need and need + _RESERVE > free:
        raise ResourceError(
            f"{folder}: needs {size_text(need)} of disk, {size_text(free)} are free; free some "
            "space and run again, what is done is kept"
        )


def size_text(size: float) -> str:
    """Returns a number of bytes as people read it: 812 bytes, 3.4 MB, 1.9 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.0f} {unit}" if size >= 10 or unit == "bytes" else f"{size:.1f} {unit}"
