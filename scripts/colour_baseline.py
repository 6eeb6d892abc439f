"""Scores a classifier that sees nothing but the colour of single pixels.

It learns the most frequent class of each of 32 x 32 x 32 colours on the training split: what it
reaches on the validation split can be had without looking at any outline.

    python scripts/colour_baseline.py shapes ROOT
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segdeform.data import IGNORE, Dataset, load_dataset, read_pair
from segdeform.evaluation.confusion import scores

_BITS = 5
_COLOURS = 1 << 3 * _BITS


def main() -> None:
    """Prints one line with the mIoU of the colour classifier."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="camvid, voc, folder or shapes")
    parser.add_argument("root", type=Path)
    arguments = parser.parse_args()
    train = load_dataset(arguments.name, arguments.root, "train")
    val = load_dataset(arguments.name, arguments.root, "val")
    miou = colour_miou(train, val)
    print(f"single pixel colours on {arguments.name} val: mIoU {miou:.4f}")


def colour_miou(train: Dataset, val: Dataset) -> float:
    """Returns the mIoU on `val` of the most frequent class of each colour in `train`.

    A colour that `train` lacks counts as the most frequent class of all.
    """
    seen = _colour_counts(train)
    prediction = np.where(seen.sum(axis=1) > 0, seen.argmax(axis=1), seen.sum(axis=0).argmax())
    classes = len(train.classes)
    confusion = np.zeros((classes, classes), np.int64)  # rows truth, columns prediction
    np.add.at(confusion.T, prediction, _colour_counts(val))
    return scores(confusion).miou  # the very function that scores the network


def _colour_counts(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Counts the labelled pixels by colour and class, [32768, K]."""
    classes = len(dataset.classes)
    counts = np.zeros(_COLOURS * classes, np.int64)
    for index in range(len(dataset)):
        image, labels = read_pair(dataset, index)
        red, green, blue = (image.astype(np.int64) >> 8 - _BITS).transpose(2, 0, 1)
        cells = ((red << 2 * _BITS | green << _BITS | blue) * classes + labels)[labels != IGNORE]
        counts += np.bincount(cells, minlength=len(counts))
    return counts.reshape(_COLOURS, classes)


if __name__ == "__main__":
    main()
