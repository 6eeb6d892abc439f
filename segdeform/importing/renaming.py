"""From others' names of tensors to ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from segdeform.config.schema import IMAGENET_MEAN, IMAGENET_STD, ModelConfig
from segdeform.errors import ModelError

# Blocks of a ResNet's four stages, and whether they are bottlenecks of three convolutions.
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
}
_EPS = 1e-5  # of BatchNorm, of torchvision's heads and mmsegmentation's


class Translated(NamedTuple):
    """A network in our words."""

    origin: str  # what it was recognised as
    model: ModelConfig
    tensors: dict[str, Tensor]  # by our keys
    classes: tuple[str, ...] | None  # None: the file does not say
    palette: tuple[tuple[int, int, int], ...] | None
    licence: str
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    notes: tuple[str, ...] = ()  # what a user should know


def renamed(
    tensors: Mapping[str, Tensor],
    rules: Sequence[tuple[str, str | None]],
    source: Path,
) -> dict[str, Tensor]:
    """Renames tensors by the first rule whose pattern is at a name's beginning; None drops it.

    Counters of batches, which files older than them lack, become zero where they are missing.

    Raises:
        ModelError: no rule knows a name.
    """
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        for pattern, ours in rules:
            if match := re.match(pattern, name):
                if ours is not None:
                    found[match.expand(ours) + name[match.end() :]] = tensor
                break
        else:
            unknown.append(name)
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise ModelError(f"{source} is no network known here: {', '.join(unknown[:3])}{more}")
    for name in list(found):
        if name.endswith(".running_var"):
            counter = name.replace("running_var", "num_batches_tracked")
            found.setdefault(counter, torch.tensor(0))
    return found


def fold_pooled_norm(tensors: dict[str, Tensor], conv: str, norm: str, source: Path) -> None:
    """Turns the pooled branch's convolution and BatchNorm into our convolution with a bias.

    Ours has no BatchNorm there. `conv` and `norm` are the names before ".weight", in `tensors`.

    Raises:
        ModelError: one of the five tensors is missing or of another shape.
    """
    names = [f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    missing = [name for name in (f"{conv}.weight", *names) if name not in tensors]
    if missing:
        raise ModelError(f"{source} does not fit: it lacks {', '.join(missing)}")
    weight = tensors[f"{conv}.weight"].double()
    scale, shift, mean, variance = (tensors.pop(name).double() for name in names)
    tensors.pop(f"{norm}.num_batches_tracked", None)
    shapes = {tuple(value.shape) for value in (scale, shift, mean, variance)}
    if weight.dim() != 4 or shapes != {(weight.shape[0],)}:
        raise ModelError(f"{source} does not fit: {conv} and {norm} are of different shapes")
    factor = scale / (variance + _EPS).sqrt()
    tensors[f"{conv}.weight"] = (weight * factor[:, None, None, None]).float()
    tensors[f"{conv}.bias"] = (shift - mean * factor).float()


def resnet_of(tensors: Mapping[str, Tensor], source: Path) -> str:
    """Tells which ResNet has these tensors, named backbone.layerN.M.*. Raises ModelError."""
    blocks: dict[str, set[str]] = {str(stage): set() for stage in range(1, 5)}
    for name in tensors:
        if match := re.match(r"backbone\.layer([1-4])\.(\d+)\.", name):
            blocks[match[1]].add(match[2])
    counts = tuple(len(found) for found in blocks.values())
    bottlenecks = "backbone.layer1.0.conv3.weight" in tensors
    if (counts, bottlenecks) not in RESNETS:
        kind = "bottlenecks" if bottlenecks else "blocks"
        raise ModelError(
            f"{source} has a backbone that is not known here: a ResNet of {list(counts)} {kind}. "
            f"Known: {', '.join(RESNETS.values())}"
        )
    return RESNETS[counts, bottlenecks]


def size_of(tensors: Mapping[str, Tensor], name: str, axis: int, source: Path) -> int:
    """Returns the length of a tensor's axis; raises ModelError where there is none."""
    if name not in tensors or tensors[name].dim() <= axis:
        raise ModelError(f"{source} does not fit: {name} is missing or has no axis {axis}")
    return tensors[name].shape[axis]
