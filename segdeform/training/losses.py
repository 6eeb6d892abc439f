"""Pixel losses. A batch without one labelled pixel costs 0 and has gradient 0, never NaN.

Of several processes each computes its share of the loss of their whole batch: what they return adds
up to what one process with all the pictures would return.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segdeform.config.schema import TrainConfig
from segdeform.data.dataset import ignore_label
from segdeform.machine.processes import ALONE, Processes

_HALF = 2**16  # values of half the bits of a float32


def cross_entropy(
    logits: Tensor,  # [N, K, H, W] float32
    labels: Tensor,  # [N, H, W] int64, class indices or what is ignored beside K classes
    class_weights: Tensor | None = None,  # [K] float32
    label_smoothing: float = 0.0,
    peers: Processes = ALONE,
) -> Tensor:
    """Averages the cross entropy over labelled pixels, each class of the target by its weight.

    With smoothing e the target of label y is (1 - e) for y plus e / K for every class (Szegedy et
    al. 2016), so that a pixel weighs (1 - e) w[y] + e mean(w).
    """
    total = F.cross_entropy(
        logits,
        labels,
        weight=class_weights,
        ignore_index=ignore_label(logits.shape[1]),
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    labelled = labels != ignore_label(logits.shape[1])
    weight = _pixel_weights(labels, labelled, class_weights, label_smoothing).sum()
    return _divide(total, peers.total(weight))


def ohem(
    logits: Tensor,  # [N, K, H, W] float32
    labels: Tensor,  # [N, H, W] int64, class indices or what is ignored beside K classes
    class_weights: Tensor | None = None,  # [K] float32
    label_smoothing: float = 0.0,
    peers: Processes = ALONE,
    *,
    keep: float,
    threshold: float,
) -> Tensor:
    """Averages the cross entropy over the hard pixels only (Shrivastava et al. 2016).

    Hard are the labelled pixels whose true class has a probability below `threshold`, and in any
    case the `keep` share of the labelled pixels with the lowest ones (all that tie with the last).
    """
    ignore = ignore_label(logits.shape[1])
    labelled = labels != ignore
    with torch.no_grad():
        truth = torch.where(labelled, labels, 0).unsqueeze(1)
        probability = logits.softmax(1).gather(1, truth).squeeze(1)  # [N, H, W]
        least = (keep * peers.total(labelled.sum())).ceil().long()  # a tensor: no wait for a GPU
        last = _lowest(probability, labelled, least, peers)
        hard = labelled & ((probability < threshold) | ((probability <= last) & (least > 0)))
    selected = torch.where(hard, labels, ignore)
    return cross_entropy(logits, selected, class_weights, label_smoothing, peers)


def segmentation_loss(
    logits: Tensor,  # [N, K, H, W] float32
    auxiliary: Tensor | None,  # [N, K, H, W] float32
    labels: Tensor,  # [N, H, W] int64, class indices or what is ignored beside K classes
    train: TrainConfig,
    class_weights: Tensor | None,  # [K] float32
    peers: Processes = ALONE,
) -> Tensor:
    """Computes the training loss: the chosen loss, plus the auxiliary head's cross entropy."""
    if train.loss == "ohem":
        loss = ohem(
            logits,
            labels,
            class_weights,
            train.label_smoothing,
            peers,
            keep=train.ohem_keep,
            threshold=train.ohem_threshold,
        )
    else:
        loss = cross_entropy(logits, labels, class_weights, train.label_smoothing, peers)
    if auxiliary is None:
        return loss
    side = cross_entropy(auxiliary, labels, class_weights, train.label_smoothing, peers)
    return loss + train.auxiliary_weight * side


def _lowest(
    values: Tensor,  # float32, 0 or above
    counted: Tensor,  # bool, of the same shape
    place: Tensor,  # [] int64, from 1
    peers: Processes,
) -> Tensor:  # [] float32
    """Returns the value at a place in the order of those that count, of all processes together.

    As integers the bits of such numbers have the same order: the bits are found by counting, first
    the upper half and then, among those that share it, the lower. Exact, and without sorting.
    """
    bits = values.flatten().view(torch.int32).long() & 0x7FFFFFFF
    upper, lower, counted = bits // _HALF, bits % _HALF, counted.flatten()
    high, below = _bin_at(upper, counted, place, peers)
    low, _ = _bin_at(lower, counted & (upper == high), place - below, peers)
    return (high * _HALF + low).int().view(torch.float32)


def _bin_at(
    bins: Tensor,  # [M] int64, below _HALF
    counted: Tensor,  # [M] bool
    place: Tensor,  # [] int64, from 1
    peers: Processes,
) -> tuple[Tensor, Tensor]:  # [] int64 each
    """Returns the bin that holds the place in the order of bins, and how many lie in lower ones."""
    counts = torch.zeros(_HALF, dtype=torch.int64, device=bins.device)
    counts = peers.total(counts.scatter_add_(0, bins, counted.long()))
    ends = counts.cumsum(0)
    found = torch.searchsorted(ends, place).clamp(max=_HALF - 1)
    return found, ends[found] - counts[found]


def _pixel_weights(
    labels: Tensor, labelled: Tensor, class_weights: Tensor | None, smoothing: float
) -> Tensor:
    if class_weights is None:
        return labelled
    of_label = (1 - smoothing) * class_weights + smoothing * class_weights.mean()  # [K]
    return torch.where(labelled, of_label[torch.where(labelled, labels, 0)], 0.0)


def _divide(total: Tensor, weight: Tensor) -> Tensor:
    """Divides, with 0 / 0 = 0 and a gradient of 0 there."""
    return total / torch.where(weight == 0, torch.ones_like(weight), weight)
