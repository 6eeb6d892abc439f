"""Finds pictures and masks in folders and pairs them by name."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from segdeform.data.dataset import Sample
from segdeform.data.image_io import MASK_SUFFIXES, PICTURE_SUFFIXES
from segdeform.errors import DataError, UnsafeInputError


def read_names(path: Path) -> list[str]:
    """Reads a split list: one name a line, relative and without suffix; blank lines do not count.

    Raises DataError when it cannot be read, is empty or holds a name twice, UnsafeInputError for a
    name that leads out of the folder.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the list of pictures cannot be read: {error}") from error
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{path}: lists no picture")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DataError(f"{path}: lists '{name}' twice")
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UnsafeInputError(f"{path}: the name '{name}' leads out of the data set")
        if not name.isprintable():
            raise DataError(f"{path}: the name {name!a} holds control characters")
        seen.add(name)
    return names


def files_by_name(folder: Path, suffixes: Iterable[str]) -> dict[str, Path]:
    """Returns the files below a folder by relative name without suffix, sorted; dot files left out.

    Raises DataError when the folder cannot be read or two files have the same name.
    """
    suffixes = frozenset(suffixes)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found: dict[str, Path] = {}
    try:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
    for path in paths:
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts):
            continue
        name = relative.with_suffix("").as_posix()
        if name in found:
            raise DataError(f"{path}: has the same name as {found[name]}; rename one of them")
        found[name] = path
    return found


def pair_folders(images: Path, masks: Path, names: Iterable[str] | None = None) -> list[Sample]:
    """Pairs pictures with masks of the same relative name; `names` selects and orders them.

    Raises DataError for a picture without a mask, a name without a picture, and for no picture.
    """
    pictures = files_by_name(images, PICTURE_SUFFIXES)
    labels = files_by_name(masks, MASK_SUFFIXES)
    samples = []
    for name in pictures if names is None else names:
        if name not in pictures:
            raise DataError(f"{images / name}.*: the picture is listed but missing")
        if name not in labels:
            raise DataError(f"{masks / name}.png: the mask of {pictures[name]} is missing")
        samples.append(Sample(name, pictures[name], labels[name]))
    if not samples:
        raise DataError(f"{images}: holds no picture")
    return samples
