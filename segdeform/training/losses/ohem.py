"""Online hard example mining: the mean over the hardest pixels of the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

from segdeform.data.dataset import ignore_label
from segdeform.machine.processes import ALONE, Processes
from segdeform.training.losses.pixels import cross_entropy

_HALF = 2**16  # values of half the bits of a float32


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
