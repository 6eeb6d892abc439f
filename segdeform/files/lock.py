"""One process at a time in a run folder: an advisory lock that the kernel frees when we die."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segdeform.errors import RunLockedError, UsageError
from segdeform.files.atomic import remove_temporaries

_TRIES = 100  # to open a file that others remove

_held: set[int] = set()


def _close_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


# What a library forks would keep the lock for as long as it lives.
os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds FOLDER/.lock while the body runs; makes the folder if need be.

    The temporary files of a holder that was killed go first. In the end the lock file goes, and of
    the folders that were made here those in which nothing was left.

    Raises:
        RunLockedError: another process holds it; the message names the process.
        UsageError: the folder cannot be written to.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        descriptor = _open_locked(folder)
    except OSError as error:
        _remove_empty(missing)
        raise UsageError(
            f"{folder} cannot be written to ({error.strerror}): choose another --output"
        ) from error
    try:
        _held.add(descriptor)
        remove_temporaries(folder)
        yield
    finally:
        _held.discard(descriptor)
        with suppress(OSError):
            (folder / ".lock").unlink()  # still held: nobody can have locked it in between
        os.close(descriptor)
        _remove_empty(missing)


def _open_locked(folder: Path) -> int:
    """Returns the open, locked file; one that its holder removes meanwhile is opened anew."""
    path = folder / ".lock"
    for _ in range(_TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _acquire(descriptor, folder)
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, json.dumps(_identity()).encode(), 0)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    raise RunLockedError(f"{folder} is in use by others, one after the other: wait for them")


def _acquire(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = _described(os.pread(descriptor, 1000, 0))
        raise RunLockedError(
            f"{folder} is in use by {owner}: wait for it or choose another --output"
        ) from error


def _remove_empty(folders: Iterable[Path]) -> None:
    """Removes folders, the innermost first, up to one that holds something."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _identity() -> dict[str, str | int]:
    boot_id = Path("/proc/sys/kernel/random/boot_id")
    boot = boot_id.read_text().strip() if boot_id.exists() else ""
    return {"pid": os.getpid(), "host": socket.gethostname(), "boot_id": boot}


def _described(content: bytes) -> str:
    """Words what the holder of a lock wrote of itself; it may have had no time to do so."""
    try:
        owner = json.loads(content)
        host = "this machine" if owner["host"] == socket.gethostname() else f"host {owner['host']}"
        return f"process {int(owner['pid'])} on {host}"
    except (ValueError, TypeError, LookupError):
        return "another process"
