"""Where archives are unpacked before their files get their final names."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

from segdeform.callbacks import Steps
from segdeform.errors import UsageError
from segdeform.files.atomic import write_error
from segdeform.files.lock import run_lock
from segdeform.preparing.archives import Entry, unpack

ARCHIVES = "archives"  # below the data set's root: what was downloaded


@contextmanager
def staging_folder(root: Path) -> Iterator[Path]:
    """Lends a folder below ROOT to one process; it goes when all went well.

    What an interrupted run leaves there is what the next one need not unpack again.
    Raises RunLockedError when another process prepares ROOT, UsageError when it cannot be written.
    """
    folder = root / ".segdeform-unpacking"
    if folder.is_symlink():
        raise UsageError(f"{folder}: is a link; remove it")
    with run_lock(folder):
        try:
            yield folder
            shutil.rmtree(folder)
        finally:
            if folder.is_dir() and [path.name for path in folder.iterdir()] == [".lock"]:
                shutil.rmtree(folder)


def unpack_lacking(
    archive: Path,
    entries: Sequence[Entry],
    staging: Path,
    goal: Path,
    place: Callable[[PurePosixPath], PurePosixPath | None],
    progress: Steps,
) -> Path:
    """Unpacks what GOAL lacks into a folder of STAGING that belongs to this archive; returns it.

    `place` gives an entry's path below GOAL, or None; `progress` hears of "unpacking NAME".
    """
    folder = staging / f"{archive.name}-{archive.stat().st_size}"
    lacking = [
        entry for entry in entries if (path := place(entry.path)) and not (goal / path).is_file()
    ]
    shown = partial(progress, f"unpacking {archive.name}")
    unpack(lacking, archive, folder, place=place, progress=shown)
    return folder


def publish(folder: Path, goal: Path) -> None:
    """Moves FOLDER, if there is one, to GOAL; where GOAL exists, what it lacks is moved into it.

    Raises UsageError where both hold different files of one name; nothing is overwritten.
    """
    try:
        if folder.exists():
            _move(folder, goal)
    except OSError as error:
        raise write_error(goal, error) from error


def _move(path: Path, goal: Path) -> None:
    if not goal.exists():
        goal.parent.mkdir(parents=True, exist_ok=True)
        path.rename(goal)
    elif path.is_dir() and goal.is_dir():
        for child in sorted(path.iterdir()):
            _move(child, goal / child.name)
        path.rmdir()
    elif path.is_file() and goal.is_file() and path.stat().st_size == goal.stat().st_size:
        path.unlink()
    else:
        raise UsageError(f"{goal}: is there already and differs from the archive's; remove it")
