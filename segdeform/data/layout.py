"""Finds pictures and masks in folders and pairs them by name."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Set
from pathlib import Path, PurePosixPath

from segdeform.data.dataset import ListingProblem, Sample
from segdeform.data.image_io import LOSSY_SUFFIXES, MASK_SUFFIXES, PICTURE_SUFFIXES
from segdeform.data.unread import unread_below
from segdeform.errors import DataError, UnsafeInputError

# What tells masks from pictures in their names, as _mask, -labels or .seg: never a bare number.
_SUFFIX = re.compile(r"[ _.-](?=.*[^\W\d_]).*")


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


def files_by_name(folder: Path, suffixes: Iterable[str]) -> dict[str, list[Path]]:
    """Returns the files below a folder by relative name without suffix, sorted; dot files left out.

    Names are in one spelling: macOS writes letters with accents in two parts, others in one.
    Raises DataError when the folder cannot be read.
    """
    suffixes = frozenset(suffixes)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    found: dict[str, list[Path]] = {}
    try:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror}") from error
    for path in paths:
        relative = path.relative_to(folder)
        if not any(part.startswith(".") for part in relative.parts):
            found.setdefault(spelt(relative.with_suffix("").as_posix()), []).append(path)
    return found


def pair_folders(
    images: Path,
    masks: Path,
    names: Iterable[str] | None = None,
    mask_suffix: str | None = None,
) -> tuple[list[Sample], list[ListingProblem]]:
    """Pairs pictures with masks of the same relative name; `names` selects and orders them.

    `mask_suffix` ends the masks' names (NAME_mask); None: looked for where no name is the same.
    Returns the pairs, and what is missing or there twice. Raises DataError for no picture at all.
    """
    pictures = files_by_name(images, PICTURE_SUFFIXES)
    labels = files_by_name(masks, MASK_SUFFIXES)
    lossy = files_by_name(masks, LOSSY_SUFFIXES)
    samples, problems = [], []
    suffix = mask_suffix
    if suffix is None and (suffix := common_suffix(pictures.keys(), {*labels, *lossy})):
        text = f"{masks}: the masks are called NAME{suffix}"
        problems.append(ListingProblem("mask-suffix", masks, text))
    if suffix:
        if images == masks:  # a mask lies beside its picture, and may have its suffix
            marked = {f"{name}{suffix}" for name in pictures}
            pictures = {name: found for name, found in pictures.items() if name not in marked}
        labels, lossy = _without(suffix, labels), _without(suffix, lossy)
    for name in pictures if names is None else map(spelt, names):
        found = pictures.get(name, []), labels.get(name, []), lossy.get(name, [])
        problem = pairing_problem(name, images, masks, *found)
        if problem:
            problems.append(problem)
        else:
            samples.append(Sample(name, pictures[name][0], labels[name][0]))
    unread = [
        ListingProblem("unread-files", folder, text)
        for folder in dict.fromkeys((images, masks))
        for text in unread_below(folder)
    ]
    if not samples and not problems:
        more = f"; {unread[0].text}" if unread else ""
        raise DataError(f"{images}: holds no picture{more}")
    problems += unread
    if names is None:
        for name in sorted(labels.keys() - pictures.keys()):
            text = f"{labels[name][0]}: a mask without a picture; it is not used"
            problems.append(ListingProblem("orphan-mask", labels[name][0], text))
    return samples, sorted(problems, key=lambda problem: problem.harmless)


def common_suffix(pictures: Set[str], masks: Set[str]) -> str:
    """Returns what every mask's name has after a picture's, as _mask; "" where that is nothing, and
    where a name is the same on both sides."""
    if not pictures.isdisjoint(masks):
        return ""
    found = Counter(
        mask[end:] for mask in masks for end in range(1, len(mask)) if mask[:end] in pictures
    )
    for suffix, _ in found.most_common():
        if _SUFFIX.fullmatch(suffix) and all(mask.endswith(suffix) for mask in masks):
            return suffix
    return ""


def _without(suffix: str, files: dict[str, list[Path]]) -> dict[str, list[Path]]:
    return {
        name.removesuffix(suffix): paths for name, paths in files.items() if name.endswith(suffix)
    }


def spelt(name: str) -> str:
    """Returns a name in the one spelling of its letters that names are compared in."""
    return unicodedata.normalize("NFC", name)


def pairing_problem(
    name: str,
    images: Path,
    masks: Path,
    pictures: list[Path],
    labels: list[Path],
    lossy: list[Path],  # what would be masks, were they not JPEG
) -> ListingProblem | None:
    """Returns what keeps the files of one name from being a pair, None where nothing does."""
    if not pictures:
        path = images / name
        return ListingProblem(
            "missing-picture", path, f"{path}.*: the picture is listed but missing"
        )
    if not labels and lossy:
        text = f"{lossy[0]}: a mask as JPEG or WebP, which may blur labels; export it again as PNG"
        return ListingProblem("jpeg-mask", lossy[0], text)
    if not labels:
        path = masks / f"{name}.png"
        text = f"{path}: the mask of {pictures[0]} is missing"
        return ListingProblem("missing-mask", path, text)
    for first, *others in (pictures, labels):
        if others:
            text = f"{others[0]}: has the same name as {first}; rename one of them"
            return ListingProblem("double", others[0], text)
    return None
