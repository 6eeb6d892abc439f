"""One process at a time in a run folder: an advisory lock that the kernel frees when we die."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segdeform.errors import RunLockedError, UsageError
from segdeform.files.atomic import remove_temporaries

_TRIES = 100  # to open a file that others remove
_PATIENCE = 30.0  # seconds that one of several processes gives the first one to begin

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


@contextmanager
def shared_lock(
    folder: Path, first: Callable[[], None], last: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Holds FOLDER/.lock side by side with others that share it, against who wants it alone.

    Where nobody holds it, `first` is called before anybody else is let in. The last one to leave
    removes the lock file, after `last` where its body did not fail, alone again. Raises as
    `run_lock`, `first` and `last` do.
    """
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            descriptor = _open_locked(folder)
            first()
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            break
        except RunLockedError:  # those who share it have begun, or do so now
            try:
                descriptor = _open_locked(folder, fcntl.LOCK_SH)
                break
            except RunLockedError:
                if time.monotonic() > deadline:
                    raise
        except OSError as error:
            raise UsageError(
                f"{folder} cannot be written to ({error.strerror}): choose another --output"
            ) from error
        time.sleep(0.05)
    _held.add(descriptor)
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        try:
            if _is_last(descriptor):
                try:
                    if succeeded:
                        last()
                finally:
                    with suppress(OSError):
                        (folder / ".lock").unlink()
        finally:
            _held.discard(descriptor)
            os.close(descriptor)


def _is_last(descriptor: int) -> bool:
    """Takes a shared lock alone, unless others still hold it."""
    try:
        # Given up first: of two that leave at once, one has to get it.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _open_locked(folder: Path, kind: int = fcntl.LOCK_EX) -> int:
    """Returns the open, locked file; one that its holder removes meanwhile is opened anew."""
    path = folder / ".lock"
    for _ in range(_TRIES):
        folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                _acquire(descriptor, folder, kind)
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    if kind == fcntl.LOCK_EX:
                        # Only for the messages of others; who has work to write meets the full
                        # disk there, and says so.
                        with suppress(OSError):
                            os.ftruncate(descriptor, 0)
                            os.pwrite(descriptor, json.dumps(_identity()).encode(), 0)
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    raise RunLockedError(f"{folder} is in use by others, one after the other: wait for them")


def _acquire(descriptor: int, folder: Path, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
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
