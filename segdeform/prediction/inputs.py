"""Which pictures a prediction is asked for, and what each output is called."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from segdeform.data.image_io import PICTURE_SUFFIXES
from segdeform.errors import DataError, UsageError


class Found(NamedTuple):
    """The pictures to predict, and what else lay in the folders."""

    pictures: list[tuple[Path, str]]  # source, output name: relative, '/' between, no suffix
    skipped: list[Path]  # files of other kinds, hidden ones and linked folders


def find_images(inputs: Sequence[Path], exclude: Iterable[Path] = ()) -> Found:
    """Lists the pictures among files and folders (recursive), in a fixed order, each once.

    In a folder a picture is what has the suffix of one; hidden entries are left out, and so are
    links to folders, which can run in circles. A file that is named itself is always taken.
    Paths below `exclude` are passed over.

    Outputs are named after the path below the folder, without suffix. Where there are several
    inputs, folders' own names come first. Names that would be equal, upper and lower case taken as
    one, keep their suffix where it tells them apart (`a.jpg`, `a.png`); else the later ones end in
    -2, -3, ... Raises UsageError for an input that does not exist.
    """
    for path in inputs:
        if not os.path.lexists(path):
            raise UsageError(f"{path}: no such file or folder")
    excluded = {_identity(path) for path in exclude}
    prefixes = _prefixes(inputs)
    listed: dict[Path, tuple[Path, Path]] = {}  # absolute path -> source, relative name
    skipped = []
    for source, prefix in zip(inputs, prefixes, strict=True):
        if not source.is_dir():
            listed.setdefault(_identity(source), (source, Path(source.name)))
            continue
        for path in _walk(source, excluded):
            if path.name.startswith(".") or path.suffix.lower() not in PICTURE_SUFFIXES:
                skipped.append(path)
            else:
                name = Path(prefix, path.relative_to(source))
                listed.setdefault(_identity(path), (path, name))
    sources = [source for source, _ in listed.values()]
    names = _distinct([name for _, name in listed.values()])
    return Found(list(zip(sources, names, strict=True)), skipped)


def _walk(folder: Path, excluded: set[Path]) -> Iterator[Path]:
    """Yields all that a folder holds but folders; of hidden and linked folders only the name."""

    def unreadable(error: OSError) -> NoReturn:
        raise DataError(f"{error.filename}: cannot be listed: {error.strerror}") from error

    for root, folders, files in os.walk(folder, onerror=unreadable):
        here = Path(root)
        real = here.resolve()
        if not excluded.isdisjoint([real, *real.parents]):
            folders.clear()
            continue
        closed = {name for name in folders if name.startswith(".") or (here / name).is_symlink()}
        folders[:] = sorted(set(folders) - closed)
        for name in sorted([*files, *closed]):
            if real / name not in excluded:
                yield here / name


def _identity(path: Path) -> Path:
    """Returns the absolute path of an entry itself, not of what it links to."""
    return path.parent.resolve() / path.name


def _prefixes(inputs: Sequence[Path]) -> list[str]:
    """Gives each folder the name that its outputs lie under; the only input needs none."""
    if len(inputs) == 1:
        return [""]
    folders = [Path(path.resolve().name) for path in inputs if path.is_dir()]
    names = iter(_distinct(folders, keep_suffix=True))
    return [next(names) if path.is_dir() else "" for path in inputs]


def _distinct(paths: Sequence[Path], keep_suffix: bool = False) -> list[str]:
    """Names outputs so that no two are equal, even on a disk that ignores case."""
    full = [path.as_posix() for path in paths]
    stems = full if keep_suffix else [path.with_suffix("").as_posix() for path in paths]
    full_count, stem_count = (Counter(map(_folded, names)) for names in (full, stems))
    taken: set[str] = set()
    names = []
    for stem, whole in zip(stems, full, strict=True):
        suffix_tells = stem_count[_folded(stem)] > 1 and full_count[_folded(whole)] == 1
        wanted = whole if suffix_tells else stem
        name, number = wanted, 1
        while _folded(name) in taken:
            number += 1
            name = f"{wanted}-{number}"
        taken.add(_folded(name))
        names.append(name)
    return names


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
