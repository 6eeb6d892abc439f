"""Finds the pictures that annotation files name, among those that there are and nowhere else.

Names in such files are those of another place: with folders that are not here, absolute, of
Windows, with the address of a server. Only their ends are compared with the pictures' paths; no
path of a file is ever opened.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from segdeform.data.image_io import PICTURE_SUFFIXES
from segdeform.data.layout import files_by_name, spelt
from segdeform.errors import DataError
from segdeform.preparing.polygons.annotation import AnnotatedPicture

_NO_NAME = re.compile(r"[^-\w.]")


def match_pictures(
    annotated: Sequence[AnnotatedPicture], images: Path
) -> tuple[dict[Path, AnnotatedPicture], list[AnnotatedPicture], list[Path]]:
    """Returns what is said of each picture, what is said of none, and the pictures left over.

    The longest common end of the paths decides; where only that differs, the suffix does not.
    Raises DataError where a name may mean several pictures, or a picture is described twice.
    """
    pictures = _pictures(images)
    finder = _Finder(images, pictures)
    best: dict[Path, tuple[int, AnnotatedPicture]] = {}
    nowhere: list[AnnotatedPicture] = []
    for entry in annotated:
        found = finder.find(entry)
        if found is None:
            nowhere.append(entry)
            continue
        path, common = found
        before = best.get(path)
        if before and before[0] == common:
            raise DataError(
                f"{entry.source}: {entry.item} and {_other(before[1], entry)} are both of {path}"
            )
        if before and before[0] > common:
            nowhere.append(entry)
            continue
        if before:
            nowhere.append(before[1])
        best[path] = (common, entry)
    rest = [path for path in pictures if path not in best]
    return {path: entry for path, (_, entry) in best.items()}, nowhere, rest


def _pictures(images: Path) -> list[Path]:
    """Lists the pictures below a folder; raises DataError for two that would have one mask."""
    found = files_by_name(images, PICTURE_SUFFIXES)
    if not found:
        raise DataError(f"{images}: holds no picture")
    for first, *others in found.values():
        if others:
            raise DataError(f"{others[0]}: has the same name as {first}; rename one of them")
    return [paths[0] for paths in found.values()]


def _other(one: AnnotatedPicture, entry: AnnotatedPicture) -> str:
    return one.item if one.source == entry.source else f"{one.source}: {one.item}"


class _Finder:
    """The pictures by their last part, as spelt, without suffix, and as servers spell it."""

    def __init__(self, images: Path, pictures: Sequence[Path]) -> None:
        self._images = images.absolute().parts
        self._parts: dict[Path, tuple[str, ...]] = {}
        self._by: tuple[dict[str, list[Path]], ...] = ({}, {}, {})
        for path in pictures:
            inside = PurePosixPath(spelt(path.relative_to(images).as_posix()))
            self._parts[path] = (*(spelt(part) for part in self._images), *inside.parts)
            for table, key in zip(self._by, _keys(inside.name, is_file=True), strict=True):
                table.setdefault(key, []).append(path)

    def find(self, entry: AnnotatedPicture) -> tuple[Path, int] | None:
        """Returns the picture that is meant, and how many last parts of its path are the same."""
        for table, level in zip(self._by, range(3), strict=True):
            for name in entry.names:
                parts = PurePosixPath(spelt(name.replace("\\", "/"))).parts
                if not parts:
                    continue
                options = table.get(_keys(parts[-1], is_file=False)[level], [])
                if options:
                    return self._nearest(options, parts, entry)
        return None

    def _nearest(
        self, options: Sequence[Path], parts: Sequence[str], entry: AnnotatedPicture
    ) -> tuple[Path, int]:
        common = [_common_end(self._parts[path][:-1], parts[:-1]) for path in options]
        most = max(common)
        first, *others = (p for p, count in zip(options, common, strict=True) if count == most)
        if others:
            raise DataError(
                f"{entry.source}: {entry.item} may mean {first} or {others[0]}; write its folder "
                "into the file, or give one of their folders as --images"
            )
        return first, most


def _keys(name: str, *, is_file: bool) -> tuple[str, str, str]:
    """Returns a name for the three tables; in a file, a name may have no suffix at all."""
    suffix = PurePosixPath(name).suffix.lower()
    stem = PurePosixPath(name).stem if is_file or suffix in PICTURE_SUFFIXES else name
    return name, stem, _NO_NAME.sub("", stem.replace(" ", "_"))


def _common_end(first: Sequence[str], second: Sequence[str]) -> int:
    count = 0
    while count < min(len(first), len(second)) and first[-1 - count] == second[-1 - count]:
        count += 1
    return count
