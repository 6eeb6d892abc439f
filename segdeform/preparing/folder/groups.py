"""Which pictures must stay in one split: groups by a pattern, and neighbouring frames of videos.

Numbered names alone prove no video: people number whatever they collect. Runs of numbers are looked
into, and are a video where neighbours look much more alike than pictures far apart.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from segdeform.data.dataset import Sample
from segdeform.data.image_io import deep_samples, opened
from segdeform.errors import DataError, ResourceError, UnsafeInputError, UsageError

_NUMBERED = re.compile(r"(.*?)(\d{1,12})")
_FEWEST = 12  # pictures of a run that may be a video
_GAP = 5  # times the usual distance of two numbers ends a run
_LOOKED_AT = 24  # neighbours of a run whose pictures are compared
_ALIKE = 0.6  # of the difference of pictures far apart: neighbours of a video differ less
_SMALL = 24  # pixels, side of what is compared


@dataclass(frozen=True)
class Groups:
    """The groups of pictures, by index, and what is to be told of them."""

    members: tuple[tuple[int, ...], ...]
    told: tuple[str, ...] = ()


def groups_by_pattern(names: Sequence[str], pattern: str) -> Groups:
    """Groups names by a regular expression: its first group, else the whole match.

    A name that it does not match is a group of its own. Raises UsageError for a pattern that is
    none, matches nothing, or makes one group of all.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise UsageError(f"--group-by {pattern}: no regular expression: {error}") from error
    found: dict[tuple[bool, str], list[int]] = {}
    for index, name in enumerate(names):
        match = compiled.search(name)
        # A first group that took no part in the match says nothing.
        key = match and ((match[1] if compiled.groups else None) or match[0])
        found.setdefault((match is not None, name if key is None else key), []).append(index)
    matched = [key for key in found if key[0]]
    if not matched:
        raise UsageError(f"--group-by {pattern}: matches no name, such as {names[0]}")
    if len(found) == 1:
        raise UsageError(
            f"--group-by {pattern}: makes one group of all {len(names)} pictures, of "
            f"'{matched[0][1]}'; no split can part it"
        )
    alone = sum(len(group) for key, group in found.items() if not key[0])
    sizes = sorted(len(found[key]) for key in matched)
    told = (
        f"{len(matched)} groups by --group-by {pattern}, of {sizes[0]} to {sizes[-1]} pictures"
        + (f"; {alone} names do not match it and stand alone" if alone else "")
    )
    return Groups(tuple(tuple(group) for group in found.values()), (told,))


def with_copies_together(groups: Groups, digests: Sequence[str], fewest: int) -> Groups:
    """Joins the groups that hold the same picture, where `fewest` groups are left.

    In two splits, a score would be too good.
    """
    group_of = {index: number for number, group in enumerate(groups.members) for index in group}
    first: dict[str, int] = {}
    joined = list(range(len(groups.members)))  # group -> an earlier one that it belongs to

    def root(number: int) -> int:
        while joined[number] != number:
            number = joined[number]
        return number

    copies = 0
    for index, digest in enumerate(digests):
        before = first.setdefault(digest, index)
        if before != index:
            copies += 1
            low, high = sorted((root(group_of[before]), root(group_of[index])))
            joined[high] = low
    members: dict[int, list[int]] = {}
    for number, group in enumerate(groups.members):
        members.setdefault(root(number), []).extend(group)
    if not copies or len(members) < fewest:
        return groups
    told = f"{copies} pictures are copies of others, and stay in one split with them"
    return Groups(tuple(map(tuple, members.values())), (*groups.told, told))


def groups_of_frames(
    samples: Sequence[Sample], blocks: int, progress: Callable[[int, int], None]
) -> Groups:
    """Groups the frames of videos into contiguous blocks, `blocks` for each video.

    `progress` hears of the runs that are looked into.
    """
    runs = _runs([sample.name for sample in samples])
    told, blocked = [], []
    for done, (name, run) in enumerate(runs, start=1):
        near, far = _differences([samples[index].image for index in run])
        progress(done, len(runs))
        if not near < _ALIKE * far:
            continue
        parts = max(2, min(blocks, len(run) // 2))
        ends = [round(len(run) * part / parts) for part in range(parts + 1)]
        blocked += [tuple(run[a:b]) for a, b in pairwise(ends)]
        told.append(f"{name}* ({len(run)}: {near:.0f} and {far:.0f})")
    in_blocks = {index for block in blocked for index in block}
    alone = [(index,) for index in range(len(samples)) if index not in in_blocks]
    if not told:
        return Groups(tuple(alone))
    shown = ", ".join(told[:4]) + (f" and {len(told) - 4} more" if len(told) > 4 else "")
    text = (
        f"{len(told)} series of numbered pictures look like video (grey levels by which neighbours "
        f"differ, and pictures far apart): {shown}; split in blocks, as neighbours in train and "
        "val make the score too good; --group-by PATTERN decides otherwise, '.*' for each alone"
    )
    return Groups((*blocked, *alone), (text,))


def _runs(names: Sequence[str]) -> list[tuple[str, list[int]]]:
    """Returns the dense runs of names that differ by a number at their end, in its order."""
    series: dict[str, list[tuple[int, int]]] = {}
    for index, name in enumerate(names):
        if match := _NUMBERED.fullmatch(name):
            series.setdefault(match[1], []).append((int(match[2]), index))
    runs = []
    for prefix, entries in sorted(series.items()):
        entries.sort()
        numbers = np.array([number for number, _ in entries])
        gaps = np.diff(numbers)
        if not gaps.size:
            continue
        limit = _GAP * max(1.0, float(np.median(gaps)))
        cuts = [0, *(int(cut) + 1 for cut in np.flatnonzero(gaps > limit)), len(entries)]
        for start, end in pairwise(cuts):
            if end - start >= _FEWEST:
                runs.append((prefix, [index for _, index in entries[start:end]]))
    return runs


def _differences(paths: Sequence[Path]) -> tuple[float, float]:
    """Returns the median difference of neighbours, and of pictures a third of the run apart.

    Mean absolute grey levels of small pictures; (inf, 0) where they cannot be read.
    """
    count, third = len(paths), max(2, len(paths) // 3)
    starts = np.unique(np.linspace(0, count - 2, min(_LOOKED_AT, count - 1)).astype(int))
    known: dict[int, npt.NDArray[np.float32] | None] = {}

    def small(index: int) -> npt.NDArray[np.float32] | None:
        if index not in known:
            known[index] = _thumbnail(paths[index])
        return known[index]

    near: list[float] = []
    far: list[float] = []
    for start in starts.tolist():
        other = start + third if start + third < count else start - third
        for distance, into in ((start + 1, near), (other, far)):
            one, two = small(start), small(distance)
            if one is not None and two is not None:
                into.append(float(np.abs(one - two).mean()))
    return (float(np.median(near)), float(np.median(far))) if near and far else (np.inf, 0.0)


def _stretched(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float32]:
    """Shrinks a picture of more than 8 bits, its highest value white: few files use all of them."""
    grey = values.astype(np.float32).reshape(*values.shape[:2], -1).mean(axis=2)
    grey = np.nan_to_num(grey, nan=0.0, posinf=0.0, neginf=0.0)
    small = cv2.resize(grey, (_SMALL, _SMALL), interpolation=cv2.INTER_AREA)
    return np.asarray(small * (255 / max(float(small.max()), 1e-9)), np.float32)


def _thumbnail(path: Path) -> npt.NDArray[np.float32] | None:
    try:
        with opened(path) as image:
            samples = deep_samples(image, path)
            if samples is not None:
                return _stretched(samples.values)
            image.draft("L", (4 * _SMALL, 4 * _SMALL))
            grey = image.convert("L").resize((_SMALL, _SMALL), Image.Resampling.BOX)
            return np.asarray(grey, np.float32)
    except (DataError, UnsafeInputError, ResourceError):
        return None
