"""What a label map says in numbers: pixels, shares and confidence, of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeform.results.overlay import Labels

_ROWS = 256  # rows counted at a time, so that little memory is needed


def class_pixels(labels: Labels, count: int) -> NDArray[np.int64]:  # [K]
    """Counts the pixels of every class."""
    found = np.zeros(count, np.int64)
    for top in range(0, len(labels), _ROWS):
        found += np.bincount(labels[top : top + _ROWS].ravel(), minlength=count)
    return found


def class_facts(
    labels: Labels,  # [H, W]
    classes: Sequence[str],
    confidence: NDArray[np.uint8] | None = None,  # [H, W] 255 * the probability of the label
) -> dict[str, Any]:
    """Returns JSON values: every class that occurs, and the mean confidence where it is known."""
    pixels = class_pixels(labels, len(classes))
    sums = np.zeros(len(classes))
    if confidence is not None:
        for top in range(0, len(labels), _ROWS):
            part, weights = (values[top : top + _ROWS].ravel() for values in (labels, confidence))
            sums += np.bincount(part, weights, len(classes))
    found = []
    for index in np.flatnonzero(pixels).tolist():
        entry = {
            "class": classes[index],
            "class_index": index,
            "pixels": int(pixels[index]),
            "share": int(pixels[index]) / labels.size,
        }
        if confidence is not None:
            entry["mean_confidence"] = float(sums[index]) / int(pixels[index]) / 255
        found.append(entry)
    facts: dict[str, Any] = {"size": list(labels.shape), "classes": found}
    if confidence is not None:
        facts["mean_confidence"] = float(sums.sum()) / labels.size / 255
    return facts
