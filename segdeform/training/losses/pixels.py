"""Losses that are means over pixels: what is summed of a pixel does not depend on the others.

Each returns a sum over the pixels that it is given, divided by the weight of all pixels of the
whole batch. That weight follows from the labels alone, so that shares of a batch can be computed
one after the other, or by several processes, and add up.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segdeform.data.dataset import ignore_label
from segdeform.machine.processes import ALONE, Processes


def cross_entropy(
    logits: Tensor,  # [N, K, H, W] float32
    labels: Tensor,  # [N, H, W] int64, class indices or what is ignored beside K classes
    class_weights: Tensor | None = None,  # [K] float32
    label_smoothing: float = 0.0,
    peers: Processes = ALONE,
    *,
    whole: Tensor | None = None,  # [] weight of the whole batch; None: of these pixels, all shares
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
    if whole is None:
        whole = peers.total(
            label_weight(labels, logits.shape[1], class_weights, label_smoothing).sum()
        )
    return divided(total, whole)


def focal(
    logits: Tensor,  # [N, K, H, W] float32
    labels: Tensor,  # [N, H, W] int64, class indices or what is ignored beside K classes
    class_weights: Tensor | None,  # [K] float32
    gamma: float,
    whole: Tensor,  # [] weight of the whole batch
) -> Tensor:
    """Averages (1 - p)^gamma times the cross entropy, p: the true class's probability.

    Lin et al. 2017, of a softmax. The mean is by the class weights, so that gamma = 0 is the cross
    entropy.
    """
    ignore = ignore_label(logits.shape[1])
    costs = F.cross_entropy(logits, labels, ignore_index=ignore, reduction="none")  # [N, H, W]
    # Of an ignored pixel p is 1 here, whose power has no gradient, not even of gamma below 1.
    missed = -torch.expm1(-costs.clamp_min(torch.finfo(costs.dtype).tiny))
    weight = label_weight(labels, logits.shape[1], class_weights)
    return divided((weight * missed.pow(gamma) * costs).sum(), whole)


def boundary(
    logits: Tensor,  # [N, K, H, W] float32
    labels: Tensor,  # [N, H, W] int64, class indices or what is ignored beside K classes
    class_weights: Tensor | None,  # [K] float32
    near: Tensor,  # [N, H, W] float32, as `boundary_weight` returns it
    whole: Tensor,  # [] weight of the whole batch
) -> Tensor:
    """Averages the cross entropy with more weight near the boundaries between classes.

    The idea of U-Net's weight map (Ronneberger et al. 2015, equation 2), here a band of one weight.
    """
    ignore = ignore_label(logits.shape[1])
    costs = F.cross_entropy(logits, labels, ignore_index=ignore, reduction="none")
    weight = label_weight(labels, logits.shape[1], class_weights)
    return divided((weight * near * costs).sum(), whole)


def boundary_weight(
    labels: Tensor,  # [N, H, W] int64, class indices or what is ignored
    classes: int,
    width: int,  # pixels
    strength: float,
) -> Tensor:  # [N, H, W] float32
    """Returns 1 + strength where another class lies within `width` pixels (a square), else 1.

    What is ignored is no other class.
    """
    labelled = labels != ignore_label(classes)
    highest = labels.where(labelled, -1).to(torch.float32).unsqueeze(1)  # exact below 2^24
    lowest = labels.where(labelled, classes).to(torch.float32).unsqueeze(1)
    size = 2 * width + 1
    highest = F.max_pool2d(highest, size, stride=1, padding=width)
    lowest = -F.max_pool2d(-lowest, size, stride=1, padding=width)
    return 1 + strength * (highest > lowest).squeeze(1).to(torch.float32)


def label_weight(
    labels: Tensor,  # [N, H, W] int64, class indices or what is ignored beside K classes
    classes: int,
    class_weights: Tensor | None,  # [K] float32
    smoothing: float = 0.0,
) -> Tensor:  # [N, H, W] bool or float32
    """Returns what the target of each pixel weighs; an ignored one nothing."""
    labelled = labels != ignore_label(classes)
    if class_weights is None:
        return labelled
    of_label = (1 - smoothing) * class_weights + smoothing * class_weights.mean()  # [K]
    return torch.where(labelled, of_label[torch.where(labelled, labels, 0)], 0.0)


def divided(total: Tensor, weight: Tensor) -> Tensor:
    """Divides, with 0 / 0 = 0 and a gradient of 0 there."""
    return total / torch.where(weight == 0, torch.ones_like(weight), weight)
