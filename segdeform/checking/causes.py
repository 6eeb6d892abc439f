"""Guesses the one reason why the values of all masks do not fit the classes.

A guess is an offer to renumber every mask, so that it needs the evidence of the whole data set:
one stray value, or any sign against it, leaves the masks to be judged one by one.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from segdeform.data.dataset import IGNORE, Dataset

_SHOWN_PAIRS = 8  # of a mapping of more classes than fit on a line


@dataclass(frozen=True)
class Cause:
    """Why the values do not fit, and the mapping to classes that would make them."""

    kind: str  # of finding
    text: str
    mapping: dict[int, int]  # mask value -> class or IGNORE

    @property
    def fix(self) -> str:
        """The line for the data YAML."""
        parts = [f"{value}: {label}" for value, label in self.mapping.items()]
        if len(parts) > IGNORE:
            parts[_SHOWN_PAIRS:-1] = ["..."]
        pairs = ", ".join(parts)
        return f"write label_mapping: {{{pairs}}} into the data YAML"


def find_cause(dataset: Dataset, masks: Sequence[Set[int]]) -> Cause | None:
    """Looks at the values that each mask of all splits holds; None where they tell no story."""
    masks = [values for values in masks if values]
    if dataset.label_map is not None or not masks:
        return None
    return _binary(dataset, masks) or _label_ids(dataset, masks) or _off_by_one(dataset, masks)


def _binary(dataset: Dataset, masks: Sequence[Set[int]]) -> Cause | None:
    used = set().union(*masks)
    white = max(used)
    if len(dataset.classes) != 2 or used != {0, white} or white < 2:
        return None
    # 255 is what black and white means, however rare the white; of other values, one can stray.
    if white != IGNORE and (white in dataset.void or not _in_most(masks, {white})):
        return None
    ignored = (
        f", and {white} is ignored; if it means" if white in dataset.void else ": binary masks;"
    )
    meaning = " the second class" if white in dataset.void else " white is the second class"
    return Cause("binary", f"all masks hold only 0 and {white}{ignored}{meaning}", {0: 0, white: 1})


def _label_ids(dataset: Dataset, masks: Sequence[Set[int]]) -> Cause | None:
    from segdeform.data.cityscapes_labels import CITYSCAPES_CLASSES, CITYSCAPES_LABELS, HIGHEST_ID

    used = set().union(*masks)
    if dataset.classes != tuple(label.name for label in CITYSCAPES_CLASSES):
        return None
    if max(used) > HIGHEST_ID:  # 255, too: label ids have others for what is ignored
        return None
    # Most label ids above 18 are classes, and few below the first class, 7, are drawn often. Of
    # train ids, the lowest are the commonest classes, and those above 18 are strays.
    outside = {value for value in used - dataset.void if value >= len(CITYSCAPES_CLASSES)}
    low = {value for value in used if value < CITYSCAPES_CLASSES[0].id}
    if len(outside) <= max(1, len(low)) or not _in_most(masks, outside):
        return None
    mapping = {
        label.id: label.train_id if 0 <= label.train_id < IGNORE else IGNORE
        for label in CITYSCAPES_LABELS
        if label.id >= 0
    }
    text = f"the masks hold values up to {max(outside)}: Cityscapes' labelIds in place of trainIds"
    return Cause("label-ids", text, mapping)


def _off_by_one(dataset: Dataset, masks: Sequence[Set[int]]) -> Cause | None:
    count = len(dataset.classes)
    labels = set().union(*masks) - dataset.void
    if count < 2 or 0 in labels or max(labels, default=0) != count or not _in_most(masks, {count}):
        return None
    text = f"the masks hold {min(labels)} to {count} and never 0: the classes are counted from 1"
    return Cause("off-by-one", text, {value: value - 1 for value in range(1, count + 1)})


def _in_most(masks: Sequence[Set[int]], values: Set[int]) -> bool:
    """Whether more than half of the masks hold one of the values: strays are in few."""
    return 2 * sum(not values.isdisjoint(mask) for mask in masks) > len(masks)
