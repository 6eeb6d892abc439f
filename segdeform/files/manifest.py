"""Folders that are complete or absent, and whose every file is checked by its SHA-256.

A kill or a full disk at any moment leaves the previous folder or the new one, never a mixture:
files are written beside the target, synced, the manifest last, and then renamed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from segdeform.errors import ModelError, UsageError
from segdeform.files.atomic import exchange, sync, write_error
from segdeform.files.atomic import write_json as write_json

MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Reads a JSON file of a model or checkpoint folder.

    Raises:
        ModelError: the file is missing, unreadable or not JSON.
    """
    if not path.is_file():
        raise ModelError(f"{path} is missing")
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON ({error}); the file is damaged") from error


def write_manifest(folder: Path) -> None:
    """Syncs every file of a folder and writes manifest.json, last, with their sizes and hashes.

    Folders in it are left alone.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    for path in files:
        sync(path)
    entries = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in files}
    write_json(folder / MANIFEST, {"files": entries})
    sync(folder)


def verify_manifest(folder: Path, required: Iterable[str] = ()) -> dict[str, str]:
    """Checks every file that manifest.json lists and returns {name: SHA-256}.

    Files that the manifest does not list are left alone; name the ones you will read in `required`.

    Raises:
        ModelError: names the first file that is missing, changed or not listed.
    """
    entries = _entries(folder)
    for name in required:
        if name not in entries:
            raise ModelError(f"{folder / MANIFEST} does not list {name}; the folder is incomplete")
    for name, (digest, size) in entries.items():
        path = folder / name
        if not path.is_file():
            raise ModelError(f"{path} is missing, though {MANIFEST} lists it")
        try:
            found = path.stat().st_size
            intact = found == size and sha256(path) == digest
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
        if found != size:
            raise ModelError(f"{path} has {found} bytes, not {size}; the file is damaged")
        if not intact:
            raise ModelError(f"{path} does not match its SHA-256; the file is damaged")
    return {name: digest for name, (digest, _) in entries.items()}


def _entries(folder: Path) -> dict[str, tuple[str, int]]:
    manifest = read_json(folder / MANIFEST)
    malformed = ModelError(f"{folder / MANIFEST} is not a list of files; the file is damaged")
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise malformed
    entries = {}
    for name, entry in files.items():
        plain = name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}
        match entry:
            case {"sha256": str(digest), "bytes": int(size)} if plain:
                entries[name] = (digest, size)
            case _:
                raise malformed
    return entries


@contextmanager
def replacing_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the place of `target`, complete, when the block ends.

    The block writes plain files into it; the manifest is written here. A former `target` stays
    until the new one has been verified, and the two are swapped in one step. Where the drive cannot
    do that, a kill between two renames leaves the former one beside its place: `find_folder` and
    the next writer look there. One writer at a time.

    Raises:
        UsageError: `target` exists and is not a folder that was written this way, or writing there
            is not allowed.
        ResourceError: the disk is full.
    """
    if target.is_symlink():
        target = target.resolve()  # what the link points at is replaced, not the link
    if target.is_dir():
        if any(target.iterdir()) and not (target / MANIFEST).is_file():
            raise UsageError(f"{target} holds other files; choose another output folder")
    elif target.exists():
        raise UsageError(f"{target} is not a folder; choose another output folder")
    new, old = target.with_name(f".{target.name}.new"), _former(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not target.exists():  # killed between the two renames below
            old.rename(target)
        for leftover in (new, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        new.mkdir()
        yield new
        write_manifest(new)
        verify_manifest(new)
        if not target.exists():
            new.rename(target)
        elif not exchange(new, target):
            target.rename(old)
            new.rename(target)
        sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise write_error(target, error) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def find_folder(target: Path) -> Path:
    """Returns where a folder is that `replacing_folder` wrote: at `target`, or, where a kill has
    stopped that half-way, beside it. Whether there is one at all, the caller sees."""
    former = _former(target)
    return former if former.is_dir() and not target.exists() else target


def _former(target: Path) -> Path:
    return target.parent / f".{target.name}.old"  # with_name refuses "."
