"""Deals groups of pictures out to splits: by shares, with every class in every split if possible.

Iterative stratification (Sechidis et al. 2011, On the stratification of multi-label data) by
pixels: the rarest class is dealt first, each group to the split that lacks most of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from segdeform.errors import UsageError


@dataclass(frozen=True)
class Deal:
    """The split of each group, and the classes that a split had to go without."""

    parts: tuple[int, ...]  # index of the split of each group
    lacking: tuple[tuple[int, int, int], ...]  # class, split, groups that hold the class


def deal(
    keys: Sequence[str],  # of each group, unique: nothing else orders them
    sizes: Sequence[int],  # pictures of each group
    pixels: npt.NDArray[np.int64],  # [groups, K]
    shares: Sequence[float],  # of each split, together 1
    seed: int,
) -> Deal:
    """Deals groups to splits; the same for the same set of keys, in whatever order they come.

    Raises UsageError where there are fewer groups than splits.
    """
    count, parts = len(keys), len(shares)
    refuse_few(count, parts)
    order = sorted(range(count), key=lambda group: _mixed(seed, keys[group]))
    number = np.asarray(sizes, np.float64)
    share = np.asarray(shares, np.float64)
    room = share * number.sum()  # pictures still to come to each split
    need = share[:, None] * pixels.sum(axis=0)[None, :].astype(np.float64)  # [parts, K]
    dealt = np.full(count, -1)
    holds = pixels > 0
    covered = np.zeros((parts, pixels.shape[1]), np.bool_)

    def give(group: int, part: int) -> None:
        dealt[group] = part
        covered[part] |= holds[group]
        room[part] -= number[group]
        need[part] -= pixels[group]

    for index in _rarest_first(holds):
        left = [group for group in order if dealt[group] < 0 and holds[group, index]]
        # Large amounts first, as the last ones have to even out; only roughly, for the seed's sake.
        left.sort(key=lambda group: -int(pixels[group, index]).bit_length())
        for position, group in enumerate(left):
            without = np.flatnonzero(~covered[:, index])
            if len(without) and len(left) - position <= len(without):
                give(group, int(without[0]))
            else:
                give(group, _neediest(need[:, index] / share, room, number[group]))
    for group in order:
        if dealt[group] < 0:
            give(group, int(np.argmax(room)))
    _fill_empty(dealt, order, parts, number)
    lacking = [
        (index, part, int(holds[:, index].sum()))
        for index in range(pixels.shape[1])
        for part in range(parts)
        if holds[:, index].any() and not holds[dealt == part, index].any()
    ]
    return Deal(tuple(int(part) for part in dealt), tuple(lacking))


def refuse_few(groups: int, splits: int) -> None:
    """Raises UsageError where there are fewer groups than splits."""
    if groups < splits:
        raise UsageError(
            f"{groups} pictures, or groups that stay together, cannot be dealt to {splits} splits"
        )


def _rarest_first(holds: npt.NDArray[np.bool_]) -> list[int]:
    groups = holds.sum(axis=0)
    # What every group holds needs no care.
    return [int(index) for index in np.argsort(groups, kind="stable") if groups[index]]


def _neediest(need: npt.NDArray[np.float64], room: npt.NDArray[np.float64], size: float) -> int:
    """Returns the split that lacks most of a class, of those with room for a group."""
    fits = room >= min(size, room.max()) - 0.5
    return int(np.argmax(np.where(fits, need, -np.inf)))


def _fill_empty(
    dealt: npt.NDArray[np.int64], order: Sequence[int], parts: int, number: npt.NDArray[np.float64]
) -> None:
    """Gives a split that got nothing the smallest group of the fullest one."""
    for part in range(parts):
        if not (dealt == part).any():
            counts = [(dealt == other).sum() for other in range(parts)]
            donor = int(np.argmax(counts))
            group = min((g for g in order if dealt[g] == donor), key=lambda g: number[g])
            dealt[group] = part


def _mixed(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}:{key}".encode(errors="surrogatepass")).digest()


def told_lacking(
    deal: Deal, classes: Sequence[str], splits: Sequence[str], what: Mapping[bool, str]
) -> list[str]:
    """Words which class could not be in which split."""
    lines: dict[int, tuple[list[str], int]] = {}
    for index, part, groups in deal.lacking:
        lines.setdefault(index, ([], groups))[0].append(splits[part])
    return [
        f"class {index} ({classes[index]}) is not in {', '.join(names)}: only {groups} "
        f"{what[groups == 1]} hold{'s' if groups == 1 else ''} it"
        for index, (names, groups) in lines.items()
    ]
