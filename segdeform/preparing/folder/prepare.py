"""Makes a data set of raw folders: `segdeform prepare folder --images DIR --masks DIR`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segdeform.callbacks import Steps
from segdeform.checking import Report, check, list_splits
from segdeform.data.unread import unread_below
from segdeform.errors import InterruptedByUserError, SegdeformError, UsageError
from segdeform.files.lock import run_lock
from segdeform.preparing.folder.empty import with_background
from segdeform.preparing.folder.groups import (
    Groups,
    groups_by_pattern,
    groups_of_frames,
    with_copies_together,
)
from segdeform.preparing.folder.masks import MASKS, Labelled, MaskSource, find_masks, read_masks
from segdeform.preparing.folder.order import Order
from segdeform.preparing.folder.split import Deal, deal, refuse_few, told_lacking
from segdeform.preparing.folder.write import (
    RECORD,
    publish,
    refuse_output,
    split_names,
    work_room,
    write_set,
)


@dataclass(frozen=True)
class Prepared:
    """What `prepare_folder` found and wrote."""

    root: Path
    record: dict[str, Any]  # prepare.json, without its head
    report: Report
    changed: bool  # False: all of it was there already
    otherwise: tuple[str, ...] = ()  # what an earlier call was asked otherwise

    @property
    def listing(self) -> Path:
        return self.root / RECORD


def prepare_folder(order: Order, progress: Steps = lambda what, done, total: None) -> Prepared:
    """Pairs pictures with masks, splits them, and writes a data YAML and lists of them.

    The sources are only read. The same call writes the same files; `progress` hears (step, done,
    all). Pairs that cannot be used are left out, and listed with the rest in ROOT/prepare.json.

    Raises:
        UsageError: an output in use, a source that is not there, options that contradict.
        DataError: nothing can be paired, masks whose meaning is not certain, a set with errors.
        RunLockedError: another process prepares the same output.
        ResourceError, InterruptedByUserError.
    """
    for path in (order.images, order.masks, order.pairs):
        if path is not None and not path.exists():
            raise UsageError(f"{path}: no such file or folder")
    refuse_output(order)
    root = order.output.resolve()
    room = work_room(root)
    try:
        with run_lock(room):  # another call for ROOT would take away what this one writes
            return _prepared(order, refuse_output(order), root, room / "new", progress)
    finally:
        with suppress(OSError):  # one that a killed call left; others may be at work in it
            room.rmdir()


def _prepared(
    order: Order, otherwise: list[str], root: Path, work: Path, progress: Steps
) -> Prepared:
    try:
        shutil.rmtree(work, ignore_errors=True)
        source = find_masks(order, work, progress)
        labelled = read_masks(order, source, work, progress)
        if order.keep_empty and source.drawn is None and order.images is not None:
            shown = partial(progress, "writing masks")
            bare = source.pairing.without_mask
            labelled = with_background(
                labelled, bare, order.images, work / MASKS, order.workers, shown
            )
        groups = _groups(order, labelled, progress)
        splits, folds, told = _dealt(order, labelled, groups)
        record = _record(order, source, labelled, splits, folds, told)
        write_set(order, labelled, splits, folds, record, work)
        changed = publish(work, root)
        report = _checked(order, splits, progress)
    except KeyboardInterrupt as error:
        raise InterruptedByUserError(
            "interrupted; what was read is remembered, run the same command again"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Prepared(order.output, record, report, changed, tuple(otherwise))


def _groups(order: Order, labelled: Labelled, progress: Steps) -> Groups:
    smallest = min(share for share in (order.split, order.test) if share)
    blocks = max(order.folds, round(1 / max(smallest, 1 / len(labelled.samples))))
    if order.group_by is not None:
        groups = groups_by_pattern([sample.name for sample in labelled.samples], order.group_by)
    else:
        shown = partial(progress, "looking for videos")
        groups = groups_of_frames(labelled.samples, blocks, shown)
    return with_copies_together(groups, labelled.digests, max(3, order.folds))


def _dealt(
    order: Order, labelled: Labelled, groups: Groups
) -> tuple[dict[str, list[int]], list[list[int]], list[str]]:
    """Returns the pairs of each split and fold, and what is to be told of them."""
    names = split_names(bool(order.test))
    shares = [1 - order.split - order.test, order.split, *([order.test] if order.test else [])]
    made = _deal(labelled, groups.members, shares, order.seed)
    told = [*groups.told, *_lacking(made, labelled, names, groups)]
    members = _members(made, groups.members, len(names))
    folds: list[list[int]] = []
    if order.folds:
        kept = [g for g, part in zip(groups.members, made.parts, strict=True) if part < 2]
        refuse_few(len(kept), order.folds)
        dealt = _deal(labelled, kept, [1 / order.folds] * order.folds, order.seed)
        folds = _members(dealt, kept, order.folds)
        called = [f"fold{number + 1}" for number in range(order.folds)]
        told += _lacking(dealt, labelled, called, groups)
    return dict(zip(names, members, strict=True)), folds, told


def _deal(
    labelled: Labelled, members: Sequence[Sequence[int]], shares: Sequence[float], seed: int
) -> Deal:
    # The first name in the order of the alphabet stands for its group.
    keys = [min(labelled.samples[k].name for k in group) for group in members]
    pixels = np.array([labelled.pixels[list(group)].sum(axis=0) for group in members])
    return deal(keys, [len(group) for group in members], pixels, shares, seed)


def _members(made: Deal, groups: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    members: list[list[int]] = [[] for _ in range(count)]
    for group, part in zip(groups, made.parts, strict=True):
        members[part] += group
    return [sorted(part) for part in members]


def _lacking(made: Deal, labelled: Labelled, splits: Sequence[str], groups: Groups) -> list[str]:
    single = all(len(group) == 1 for group in groups.members)
    what = {True: "picture" if single else "group", False: "pictures" if single else "groups"}
    return told_lacking(made, labelled.meaning.names, splits, what)


def _record(
    order: Order,
    source: MaskSource,
    labelled: Labelled,
    splits: Mapping[str, Sequence[int]],
    folds: Sequence[Sequence[int]],
    told: Sequence[str],
) -> dict[str, Any]:
    """Returns what prepare.json says beside the arguments."""
    pairing = source.pairing
    shares = _shares(labelled.pixels)
    used = {sample.image for sample in labelled.samples}
    return {
        "paired_by": pairing.rule or "the same name",
        "pictures": len(pairing.samples) + len(pairing.without_mask),
        "pairs": len(labelled.samples),
        "splits": {split: len(members) for split, members in splits.items()},
        "folds": [len(members) for members in folds],
        "classes": list(labelled.meaning.names),
        "shares": [round(share, 6) for share in shares],
        "guessed": list(labelled.meaning.told),
        "split_by": list(told),
        "unread": unread_below(order.images) if order.images else [],
        "left_out": {
            "pictures without a mask": [
                str(path) for path in pairing.without_mask if path not in used
            ],
            "masks without a picture": [str(path) for path in pairing.without_picture],
            "files of one name": [str(path) for path in pairing.double],
            "pairs that cannot be used": [
                {"file": str(path), "reason": why} for path, why in labelled.bad
            ],
        },
    }


def _shares(pixels: npt.NDArray[np.int64]) -> list[float]:
    counts = pixels.sum(axis=0)
    return [float(share) for share in counts / max(1, int(counts.sum()))]


def _checked(order: Order, splits: Mapping[str, object], progress: Steps) -> Report:
    """Reads the data set as training will. Raises DataError where it has errors."""
    datasets, listing = list_splits("folder", order.output, list(splits))
    shown = partial(progress, "checking")
    report = check(datasets, listing=listing, workers=order.workers, progress=shown)
    try:
        report.refuse_errors()
    except SegdeformError as error:
        raise report.refusal(
            f"{order.output}: written, but not fit for training: {error}"
        ) from None
    return report
