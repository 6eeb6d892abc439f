"""Guesses the one reason why the values of all masks do not fit the classes."""

from __future__ import annotations

from dataclasses import dataclass

from segdeform.data.dataset import IGNORE, Dataset


@dataclass(frozen=True)
class Cause:
    """Why the values do not fit, and the mapping to classes that would make them."""

    kind: str  # of finding
    text: str
    mapping: dict[int, int]  # mask value -> class or IGNORE

    @property
    def fix(self) -> str:
        """The line for the data YAML."""
        pairs = ", ".join(f"{value}: {label}" for value, label in self.mapping.items())
        return f"write label_mapping: {{{pairs}}} into the data YAML, or use --fix"


def find_cause(dataset: Dataset, used: set[int]) -> Cause | None:
    """Looks at all values that the masks of all splits hold; None where they tell no story."""
    if dataset.label_map is not None or not used:
        return None
    return _binary(dataset, used) or _label_ids(dataset, used) or _off_by_one(dataset, used)


def _binary(dataset: Dataset, used: set[int]) -> Cause | None:
    white = max(used)
    two = len(dataset.classes) == 2 and white >= 2 and white not in dataset.void
    if used != {0, IGNORE} and not (two and used == {0, white}):
        return None
    ignored = (
        f", and {white} is ignored; if it means" if white in dataset.void else ": binary masks;"
    )
    meaning = " the second class" if white in dataset.void else " white is the second class"
    return Cause("binary", f"all masks hold only 0 and {white}{ignored}{meaning}", {0: 0, white: 1})


def _label_ids(dataset: Dataset, used: set[int]) -> Cause | None:
    from segdeform.data.cityscapes_labels import CITYSCAPES_CLASSES, CITYSCAPES_LABELS, HIGHEST_ID

    outside = {value for value in used - dataset.void if value >= len(dataset.classes)}
    if len(dataset.classes) != len(CITYSCAPES_CLASSES) or not outside or max(outside) > HIGHEST_ID:
        return None
    mapping = {
        label.id: label.train_id if 0 <= label.train_id < IGNORE else IGNORE
        for label in CITYSCAPES_LABELS
        if label.id >= 0
    }
    text = f"the masks hold values up to {max(outside)}: Cityscapes' labelIds in place of trainIds"
    return Cause("label-ids", text, mapping)


def _off_by_one(dataset: Dataset, used: set[int]) -> Cause | None:
    count = len(dataset.classes)
    labels = used - dataset.void
    if count < 2 or 0 in labels or count not in labels or max(labels) > count:
        return None
    text = f"the masks hold {min(labels)} to {count} and never 0: the classes are counted from 1"
    return Cause("off-by-one", text, {value: value - 1 for value in range(1, count + 1)})
