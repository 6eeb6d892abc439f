"""The pictures that an exported network is compared on: generated, given, and a data set's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from segdeform.data.dataset import Labels, read_pair
from segdeform.errors import UsageError
from segdeform.evaluation.split import load_split, refuse_other_classes
from segdeform.prediction.inputs import find_images
from segdeform.segmenter import Segmenter

# Sides of the generated pictures, pixels: odd, prime, wide, high; two at a time.
SIZES = ((61, 43), (97, 128), (40, 203), (129, 97))
_MOST = 20  # pictures of those that there are, spread over them
_LARGEST = 2048  # pixels, a side; of larger pictures the middle is compared


class Picture(NamedTuple):
    """One or more pictures of one size to compare on."""

    name: str
    pixels: NDArray[np.uint8]  # [N, H, W, C]
    truth: Labels | None = None  # [N, H, W], where there are masks


class Split(NamedTuple):
    """A part of a data set, whose masks give both networks a score."""

    kind: str | None  # None: the one trained on
    data: Path | None  # its root; None: by the environment, for cityscapes
    name: str


def generated(channels: int) -> list[Picture]:
    """Makes pictures of several odd sizes, smooth with edges and noise, the same every time."""
    random = torch.Generator().manual_seed(0)
    pictures = []
    for height, width in SIZES:
        coarse = torch.rand(2, channels, 5, 7, generator=random)
        smooth = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
        patches = torch.rand(2, channels, 9, 8, generator=random)
        edges = F.interpolate(patches, (height, width), mode="nearest")
        noise = torch.rand(2, channels, height, width, generator=random)
        mixed = (0.5 * smooth + 0.4 * edges + 0.1 * noise).clamp(0, 1)
        pixels = (255 * mixed).to(torch.uint8).permute(0, 2, 3, 1).contiguous()
        pictures.append(Picture(f"generated {height}x{width}", pixels.numpy()))
    return pictures


def given(segmenter: Segmenter, paths: Sequence[Path]) -> list[Picture]:
    """Reads some of the pictures that paths name, spread over them.

    Raises:
        UsageError: there are none.
        DataError: one cannot be read.
    """
    if not paths:
        return []
    found = find_images(list(paths)).pictures
    if not found:
        raise UsageError(f"--check {paths[0]}: no pictures there")
    sources = [found[index][0] for index in _spread(len(found))]
    return [Picture(str(path), _middle(segmenter.read(path))[None]) for path in sources]


def of_split(segmenter: Segmenter, split: Split) -> list[Picture]:
    """Reads some of the pictures of a data set and their masks, spread over them.

    Raises:
        UsageError: nobody says of what kind the data set is, or where.
        DataError: it is not what it should be, has other classes, or a file cannot be read.
    """
    dataset = load_split(segmenter, split.kind, split.data, split.name)
    refuse_other_classes(segmenter.classes, dataset)
    pictures = []
    for index in _spread(len(dataset)):
        image, labels = read_pair(dataset, index)
        name = str(dataset.samples[index].image)
        pictures.append(Picture(name, _middle(image)[None], _middle(labels)[None]))
    return pictures


def _spread(count: int) -> range:
    return range(0, count, max(1, count // _MOST))[:_MOST]


def _middle(pixels: NDArray[Any]) -> NDArray[Any]:  # [H, W, ...]: at most _LARGEST on a side
    top, left = (max(0, side - _LARGEST) // 2 for side in pixels.shape[:2])
    return pixels[top : top + _LARGEST, left : left + _LARGEST]
