"""Cityscapes' 35 labels, taken from the official scripts, and the way between their two numberings.

A label has an id (0 to 33, and -1 for licence plates, which are never drawn), the number in
*_labelIds.png and in what the evaluation server takes; and a train id, 0 to 18 for the 19 classes
that are trained and scored.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from cityscapesscripts.helpers import labels as official

from segdeform.data.dataset import IGNORE, Labels
from segdeform.data.image_io import UInt8


class CityscapesLabel(NamedTuple):
    """One label of the official table."""

    name: str
    id: int
    train_id: int  # 0 to 18, or 255 (and -1 for id -1): not trained on, not scored
    category: str
    color: tuple[int, int, int]  # RGB


CITYSCAPES_LABELS = tuple(
    CityscapesLabel(label.name, label.id, label.trainId, label.category, label.color)
    for label in official.labels
)
CITYSCAPES_CLASSES = tuple(  # by train id
    sorted(
        (label for label in CITYSCAPES_LABELS if 0 <= label.train_id < IGNORE),
        key=lambda label: label.train_id,
    )
)
HIGHEST_ID = max(label.id for label in CITYSCAPES_LABELS)

_TRAIN_IDS = np.full(HIGHEST_ID + 1, IGNORE, np.uint8)
_LABEL_IDS = np.zeros(IGNORE + 1, np.uint8)  # 0, unlabeled, for IGNORE
for _label in CITYSCAPES_CLASSES:
    _TRAIN_IDS[_label.id] = _label.train_id
    _LABEL_IDS[_label.train_id] = _label.id


def label_ids_to_train_ids(mask: UInt8) -> UInt8:
    """Maps ids 0 to 33, uint8 [H, W], to train ids, 0 to 18 and 255; raises ValueError for more."""
    if mask.max(initial=0) > HIGHEST_ID:
        raise ValueError(f"no Cityscapes label has the id {mask.max()}")
    return _TRAIN_IDS[mask]


def train_ids_to_label_ids(mask: Labels) -> UInt8:
    """Maps train ids, uint8 [H, W], to ids as the server takes them; 255 becomes 0, unlabeled.

    Raises ValueError for values from 19 to 254.
    """
    if (wrong := mask[(mask >= len(CITYSCAPES_CLASSES)) & (mask != IGNORE)]).size:
        raise ValueError(f"no Cityscapes class has the train id {wrong[0]}")
    return _LABEL_IDS[mask]
