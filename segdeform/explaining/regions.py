"""Places of a picture worth a look: the middles of its largest predicted regions."""

from __future__ import annotations

import cv2
import numpy as np

from segdeform.data.dataset import Labels


def region_centres(
    labels: Labels,  # [H, W]
    count: int,
) -> list[tuple[int, int]]:
    """Finds the innermost pixel (y, x) of the largest region of each class, largest regions first.

    Regions are 8-connected; the innermost pixel is the one farthest from the region's border, so it
    lies in the region also where the centre of gravity does not.
    """
    found: list[tuple[int, tuple[int, int]]] = []
    for value in np.unique(labels):
        _, parts, stats, _ = cv2.connectedComponentsWithStats((labels == value).astype(np.uint8))
        largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
        inside = np.pad(parts == largest, 1).astype(np.uint8)  # the picture's edge is a border too
        distance = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
        found.append((int(stats[largest, cv2.CC_STAT_AREA]), (int(y), int(x))))
    found.sort(reverse=True)
    return [centre for _, centre in found[:count]]
