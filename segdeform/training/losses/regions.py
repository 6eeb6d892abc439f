"""Losses of how well regions overlap: they see all pixels of the whole batch together.

Both are means over the classes that occur in the labels of the whole batch, by the class weights.
Of several processes each returns a share of the value, and the whole gradient of its own scores.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from segdeform.data.dataset import ignore_label
from segdeform.machine.processes import ALONE, Processes
from segdeform.training.losses.pixels import divided


def dice(
    logits: Tensor,  # [N, K, H, W] float32
    labels: Tensor,  # [N, H, W] int64, class indices or what is ignored beside K classes
    class_weights: Tensor | None = None,  # [K] float32
    peers: Processes = ALONE,
) -> Tensor:
    """Returns the mean of 1 - 2 |P and T| / (|P| + |T|) (Milletari et al. 2016, without squares).

    |P and T| and |P| are sums of probabilities over all labelled pixels, |T| counts pixels.
    """
    classes = logits.shape[1]
    labelled, truth = _truth(labels, classes)
    probabilities = logits.softmax(1)
    found = (probabilities * labelled.unsqueeze(1)).sum((0, 2, 3))  # [K]
    right = probabilities.gather(1, truth.unsqueeze(1)).squeeze(1) * labelled  # [N, H, W]
    zeros = torch.zeros(classes, dtype=torch.float64, device=logits.device)
    common = zeros.index_add(0, truth.flatten(), right.flatten().double()).to(logits.dtype)
    there = peers.total(_counts(truth, labelled, classes)).to(logits.dtype)
    common, found = _of_all(common, peers), _of_all(found, peers)
    costs = 1 - divided(2 * common, found + there)
    return _shared(_mean(costs, there > 0, class_weights), peers)


def lovasz(
    logits: Tensor,  # [N, K, H, W] float32
    labels: Tensor,  # [N, H, W] int64, class indices or what is ignored beside K classes
    class_weights: Tensor | None = None,  # [K] float32
    peers: Processes = ALONE,
) -> Tensor:
    """Returns the Lovász-softmax loss (Berman et al. 2018), the convex closure of 1 - IoU.

    The errors of a class at all pixels of the whole batch are sorted together. Processes exchange
    them, as many of each.
    """
    classes = logits.shape[1]
    labelled, truth = _truth(labels, classes)
    present = peers.total(_counts(truth, labelled, classes)) > 0
    probabilities = logits.softmax(1).unbind(1)  # whose gradient is put together once
    # Of no score at all: a batch without a label has a gradient, too, which is 0.
    costs = logits.new_zeros(classes) + logits[:0].sum()
    for k in present.nonzero().flatten().tolist():
        right = (truth == k) & labelled
        errors = (right.to(logits.dtype) - probabilities[k]).abs().flatten()
        # Ignored pixels come last, where they change nothing.
        sortable = errors.detach().where(labelled.flatten(), -1.0)
        factors = _lovasz_factors(sortable, right.flatten(), peers)
        costs = costs.index_add(
            0, torch.tensor([k], device=costs.device), (errors * factors).sum()[None]
        )
    return _mean(costs, present, class_weights)


def _lovasz_factors(
    errors: Tensor,  # [P] float32 of this process
    right: Tensor,  # [P] bool, pixels of the class
    peers: Processes,
) -> Tensor:  # [P] float32
    """Returns the gradient of the Jaccard loss's extension at the errors (algorithm 1)."""
    everywhere = peers.side_by_side(torch.stack((errors, right.to(errors.dtype))))  # [2, P of all]
    order = _descending(everywhere[0])
    ahead = everywhere[1][order].double().cumsum(0)  # pixels of the class so far
    places = torch.arange(1, len(order) + 1, dtype=ahead.dtype, device=ahead.device)
    # 1 - IoU where the pixels so far are wrong and the others right.
    losses = places / (ahead[-1] + places - ahead)
    factors = torch.empty_like(everywhere[0])
    factors[order] = losses.diff(prepend=losses.new_zeros(1)).to(factors.dtype)
    count = len(errors)
    mine = factors[peers.rank * count : (peers.rank + 1) * count]
    return mine.where(errors >= 0, 0.0)


def _descending(values: Tensor) -> Tensor:  # [P] float32, 0 or above or -1 -> [P] int64
    """Returns the places of the values in falling order, equal ones by their place."""
    if values.device.type != "cpu" or values.dtype != torch.float32:
        return values.argsort(descending=True, stable=True)
    # One number holds value and place: NumPy sorts such numbers 20 times faster than torch.
    bits = values.numpy().view(np.int32).astype(np.int64)
    falling = np.where(bits < 0, 2**31 - 1, 2**31 - 1 - bits)
    keys = np.sort(falling << 32 | np.arange(len(bits)))
    return torch.from_numpy(keys & 0xFFFFFFFF)


def _truth(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Returns which pixels are labelled, bool, and their classes, 0 elsewhere; both [N, H, W]."""
    labelled = labels != ignore_label(classes)
    return labelled, torch.where(labelled, labels, 0)


def _counts(truth: Tensor, labelled: Tensor, classes: int) -> Tensor:
    """Counts the labelled pixels of each class, [K] float64."""
    zeros = torch.zeros(classes, dtype=torch.float64, device=truth.device)
    return zeros.index_add(0, truth.flatten(), labelled.flatten().double())


def _of_all(own: Tensor, peers: Processes) -> Tensor:
    """Returns the sum over all processes, whose gradient goes into the own part."""
    return own + (peers.total(own) - own.detach())


def _mean(costs: Tensor, present: Tensor, class_weights: Tensor | None) -> Tensor:
    weights = present.to(costs.dtype)
    if class_weights is not None:
        weights = weights * class_weights
    return divided((costs * weights).sum(), weights.sum())


def _shared(whole: Tensor, peers: Processes) -> Tensor:
    """Parts a value that every process has, and leaves the gradient of each as it is."""
    return whole - whole.detach() * (1 - 1 / peers.size)
