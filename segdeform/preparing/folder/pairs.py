"""Pairs pictures with masks as people name them: alike, with a suffix or prefix, or by a list.

A rule takes the name of a picture and that of a mask to what both have in common. Several rules are
tried, and the one that pairs most pictures is taken, and told.
"""

from __future__ import annotations

import csv
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from segdeform.data.dataset import Sample
from segdeform.data.file_lists import name_below
from segdeform.data.image_io import LOSSY_SUFFIXES, MASK_SUFFIXES, PICTURE_SUFFIXES
from segdeform.data.layout import files_by_name, spelt
from segdeform.data.unread import unread_below
from segdeform.errors import DataError, UsageError

# What marks masks in their names begins or ends at one of these.
_AFTER = re.compile(r"[ _.-](?=.*[^\W\d_]).*")
_BEFORE = re.compile(r".*[^\W\d_].*[ _.-]")
_STARTS = (re.compile(r"^[^_. -]+[_. -]"), re.compile(r"^\D+"))
_ENDS = (re.compile(r"[_. -][^_. -]+$"), re.compile(r"\D+$"))
_PLACEHOLDER = "NAME"


@dataclass(frozen=True)
class Pairing:
    """Pairs of picture and mask, what is left over, and the rule that made them."""

    samples: tuple[Sample, ...]  # in the order of their names
    rule: str  # "" where names are the same
    without_mask: tuple[Path, ...] = ()
    without_picture: tuple[Path, ...] = ()
    double: tuple[Path, ...] = ()  # files of a name that another one has


@dataclass(frozen=True)
class _Rule:
    """What is taken off the names of pictures and masks before they are compared."""

    text: str
    picture: tuple[str, str] = ("", "")  # prefix, suffix
    mask: tuple[str, str] = ("", "")
    base: bool = False  # whether folders do not count
    fold: bool = False  # whether capital letters do not count

    @property
    def plain(self) -> bool:
        """Whether the text is what --mask-name takes."""
        return not (self.base or self.fold or any(self.picture)) and any(self.mask)

    def key(self, name: str, affixes: tuple[str, str]) -> str | None:
        folder, _, base = name.rpartition("/")
        prefix, suffix = affixes
        if not (base.startswith(prefix) and base.endswith(suffix)):
            return None
        if len(base) <= len(prefix) + len(suffix):
            return None
        base = base[len(prefix) : len(base) - len(suffix)]
        key = base if self.base or not folder else f"{folder}/{base}"
        return key.casefold() if self.fold else key


def pair_files(images: Path, masks: Path, pattern: str | None = None) -> Pairing:
    """Pairs the pictures below IMAGES with the masks below MASKS; both may be one folder.

    `pattern` says what masks are called: NAME_mask, mask_NAME. Raises DataError where nothing is a
    pair, or two rules make as many pairs; UsageError for a pattern without NAME.
    """
    pictures, labels, same = _found(images, masks)
    if not pictures:
        raise DataError("; ".join([f"{images}: holds no picture", *unread_below(images)]))
    if not labels:
        raise DataError(f"{masks}: holds no mask ({', '.join(sorted(MASK_SUFFIXES))})")
    rules = [_given(pattern)] if pattern is not None else [*_rules(pictures, labels, same)]
    pairs = [_pairs(rule, pictures, labels, same) for rule in rules]
    best = max(range(len(rules)), key=lambda index: len(pairs[index]), default=None)
    if best is None or not pairs[best]:
        raise DataError(_nothing(images, masks, pictures, labels, pattern))
    rule = rules[best]
    for other, found in zip(rules, pairs, strict=True):
        plain = rule.text and other.plain and rule.plain
        if plain and len(found) == len(pairs[best]) and found != pairs[best]:
            raise DataError(
                f"{masks}: {len(found)} masks are called {rule.text}, and as many {other.text}: "
                f"give --mask-name {rule.text} or --mask-name {other.text}"
            )
    return _paired(rule, pictures, labels, same)


def _found(images: Path, masks: Path) -> tuple[dict[str, list[Path]], dict[str, list[Path]], bool]:
    """Returns the pictures and masks by name, and whether a file may be either.

    A folder inside the other is not part of it. Where JPEGs and files of the same names without
    loss lie in one folder, the JPEGs are the pictures.
    """
    pictures = files_by_name(images, PICTURE_SUFFIXES)
    labels = files_by_name(masks, MASK_SUFFIXES | LOSSY_SUFFIXES)
    inner, outer = masks.resolve(), images.resolve()
    if inner == outer:
        lossy = files_by_name(images, LOSSY_SUFFIXES)
        drawn = files_by_name(masks, MASK_SUFFIXES)
        return (pictures, labels, True) if lossy.keys().isdisjoint(drawn) else (lossy, drawn, False)
    if inner.is_relative_to(outer):
        pictures = _outside(pictures, masks)
    elif outer.is_relative_to(inner):
        labels = _outside(labels, images)
    return pictures, labels, False


def _outside(files: dict[str, list[Path]], folder: Path) -> dict[str, list[Path]]:
    within = folder.resolve()
    kept = {
        name: [path for path in paths if not path.resolve().is_relative_to(within)]
        for name, paths in files.items()
    }
    return {name: paths for name, paths in kept.items() if paths}


def _given(pattern: str) -> _Rule:
    prefix, placeholder, suffix = pattern.partition(_PLACEHOLDER)
    if not placeholder or not (prefix or suffix):
        raise UsageError(f"--mask-name {pattern}: say where the picture's name stands: NAME_mask")
    return _Rule(pattern, mask=(spelt(prefix), spelt(suffix)))


def _rules(pictures: Collection[str], masks: Collection[str], same: bool) -> Iterator[_Rule]:
    """Yields the rules that the names themselves suggest, the plainest first."""
    affixes: list[tuple[str, tuple[str, str], tuple[str, str]]] = []
    for prefix, suffix in _affixes(pictures, masks):
        affixes.append((f"{prefix}{_PLACEHOLDER}{suffix}", ("", ""), (prefix, suffix)))
    if not same:
        affixes.insert(0, ("", ("", ""), ("", "")))
        ends = _common_ends(pictures), _common_ends(masks)
        for which in ((0, 1), (1,), (0,)):
            picture, mask = (tuple(e[i] if i in which else "" for i in (0, 1)) for e in ends)
            if any(picture):
                drawn, shown = (f"{a}{_PLACEHOLDER}{b}" for a, b in (mask, picture))
                text = f"{drawn} for {shown}"
                affixes.append((text, (picture[0], picture[1]), (mask[0], mask[1])))
    for base, fold in ((False, False), (True, False), (False, True), (True, True)):
        for text, picture, mask in affixes:
            told = [text or "by name"] if base or fold or not text else [text]
            told += ["in whatever folder"] if base else []
            told += ["capital letters or not"] if fold else []
            yield _Rule(", ".join(told) if text or base or fold else "", picture, mask, base, fold)


def _affixes(pictures: Collection[str], masks: Collection[str]) -> list[tuple[str, str]]:
    """Returns what masks' names have before or after a picture's, the most frequent first."""
    known = {name.rpartition("/")[2] for name in pictures}
    found: Counter[tuple[str, str]] = Counter()
    for name in masks:
        base = name.rpartition("/")[2]
        for end in range(1, len(base)):
            if base[:end] in known and _AFTER.fullmatch(base[end:]):
                found["", base[end:]] += 1
            if base[end:] in known and _BEFORE.fullmatch(base[:end]):
                found[base[:end], ""] += 1
    return [affix for affix, _ in found.most_common(8)]


def _common_ends(names: Collection[str]) -> tuple[str, str]:
    """Returns what most names begin and end with: a word, or all before and after their numbers."""
    bases = [name.rpartition("/")[2] for name in names]
    return _commonest(_STARTS, bases), _commonest(_ENDS, bases)


def _commonest(patterns: Sequence[re.Pattern[str]], bases: Sequence[str]) -> str:
    found: Counter[str] = Counter()
    for base in bases:
        parts = {match[0] for pattern in patterns if (match := pattern.search(base))}
        found.update(part for part in parts if len(part) < len(base))
    part, count = max(found.items(), key=lambda entry: (entry[1], len(entry[0])), default=("", 0))
    return part if count > 1 and 2 * count > len(bases) else ""


def _keys(rule: _Rule, names: Collection[str], affixes: tuple[str, str]) -> dict[str, list[str]]:
    keys: dict[str, list[str]] = {}
    for name in names:
        key = rule.key(name, affixes)
        if key is not None:
            keys.setdefault(key, []).append(name)
    return keys


def _matched(
    rule: _Rule, pictures: Collection[str], masks: Collection[str], same: bool
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Returns the names of pictures and masks by what they have in common."""
    labels = _keys(rule, masks, rule.mask)
    shown = _keys(rule, pictures, rule.picture)
    if same:  # a mask is no picture, whatever has it for a mask
        marked = {name for key, names in labels.items() if key in shown for name in names}
        shown = _keys(rule, [name for name in pictures if name not in marked], rule.picture)
    return shown, labels


def _pairs(
    rule: _Rule, pictures: Collection[str], masks: Collection[str], same: bool
) -> dict[str, str]:
    """Returns the mask of each picture that a rule gives exactly one."""
    shown, labels = _matched(rule, pictures, masks, same)
    return {
        names[0]: labels[key][0]
        for key, names in shown.items()
        if len(names) == 1 and len(labels.get(key, ())) == 1
    }


def _paired(
    rule: _Rule, pictures: dict[str, list[Path]], masks: dict[str, list[Path]], same: bool
) -> Pairing:
    shown, labels = _matched(rule, pictures, masks, same)
    samples: list[Sample] = []
    double: list[Path] = []
    compared = {name for names in shown.values() for name in names}
    others = [] if same else [name for name in pictures if name not in compared]
    bare = [path for name in others for path in pictures[name]]
    for key, names in sorted(shown.items()):
        shots = [path for name in names for path in pictures[name]]
        drawn = [path for name in labels.get(key, ()) for path in masks[name]]
        if not drawn:
            bare += shots
        elif len(shots) > 1 or len(drawn) > 1:
            double += [*shots, *drawn]
        else:
            samples.append(Sample(names[0], shots[0], drawn[0]))
    used = {sample.mask for sample in samples} | set(double)
    used |= {path for names in shown.values() for name in names for path in pictures[name]}
    rest = sorted(path for paths in masks.values() for path in paths if path not in used)
    samples.sort(key=lambda sample: sample.name)
    return Pairing(tuple(samples), rule.text, tuple(sorted(bare)), tuple(rest), tuple(double))


def _nothing(
    images: Path,
    masks: Path,
    pictures: Collection[str],
    labels: Collection[str],
    pattern: str | None,
) -> str:
    shown = ", ".join(sorted(pictures)[:3])
    drawn = ", ".join(sorted(labels)[:3])
    asked = f" called {pattern}" if pattern else ""
    return (
        f"no mask{asked} has a picture's name: {images} holds {shown}, {masks} holds {drawn}; say "
        "how masks are called: --mask-name NAME_mask, or give a list of pairs: --pairs FILE"
    )


def read_pairs_file(path: Path, images: Path | None, masks: Path | None) -> Pairing:
    """Reads a list of pairs, CSV or TSV: a picture and its mask a line, a heading or not.

    Files are looked for in IMAGES and MASKS, then beside the list. Raises DataError.
    """
    samples: dict[str, Sample] = {}
    lost: list[str] = []
    base = images or path.parent
    rows = _rows(path)
    for number, (shown, drawn) in rows:
        picture = _existing(shown, images, path)
        mask = _existing(drawn, masks, path)
        if picture is None and mask is None and number == rows[0][0]:
            continue  # a heading
        if picture is None or mask is None:
            lost.append(f"line {number}: {shown if picture is None else drawn}")
            continue
        name = name_below(picture.with_suffix(""), base)
        if name in samples:
            raise DataError(f"{path}: line {number}: the picture {shown} is given twice")
        samples[name] = Sample(name, picture, mask)
    if lost:
        raise DataError(
            f"{path}: {len(lost)} of {len(rows)} lines name a file that is not there "
            f"({'; '.join(lost[:3])}); paths begin at --images and --masks, or beside the list"
        )
    ordered = tuple(samples[name] for name in sorted(samples))
    return Pairing(ordered, f"the list {path}", *_unlisted(ordered, images, masks))


def _rows(path: Path) -> list[tuple[int, tuple[str, str]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: the list of pairs cannot be read: {reason}") from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    mark = next((mark for mark in "\t;," if mark in first), ",")
    rows = []
    for number, cells in enumerate(_cells(text, mark, path), start=1):
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            continue
        if len(cells) != 2 or not all(cells):
            raise DataError(f"{path}: line {number} is not a picture and its mask: {cells}")
        rows.append((number, (cells[0], cells[1])))
    if not rows:
        raise DataError(f"{path}: lists no pair")
    return rows


def _cells(text: str, mark: str, path: Path) -> list[list[str]]:
    try:
        return list(csv.reader(text.splitlines(), delimiter=mark))
    except csv.Error as error:
        raise DataError(f"{path}: the list of pairs cannot be read: {error}") from error


def _existing(text: str, folder: Path | None, listing: Path) -> Path | None:
    places = [*([folder / text] if folder else []), listing.parent / text]
    return next((place for place in places if place.is_file()), None)


def _unlisted(
    samples: Sequence[Sample], images: Path | None, masks: Path | None
) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """Returns the pictures and masks in the folders that the list does not name."""
    left: list[tuple[Path, ...]] = []
    used = {os.path.abspath(path) for sample in samples  # noqa: PTH100
            for path in (sample.image, sample.mask or sample.image)}  # fmt: skip
    for folder, suffixes in ((images, PICTURE_SUFFIXES), (masks, MASK_SUFFIXES)):
        files = files_by_name(folder, suffixes) if folder else {}
        paths = (path for found in files.values() for path in found)
        left.append(tuple(p for p in paths if os.path.abspath(p) not in used))  # noqa: PTH100
    return left[0], left[1]
