"""Pixel losses. A batch without one labelled pixel costs 0 and has gradient 0, never NaN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segdeform.config.schema import TrainConfig
from segdeform.data.dataset import IGNORE


def cross_entropy(
    logits: Tensor,  # [N, K, H, W] float32
    labels: Tensor,  # [N, H, W] int64, class indices or IGNORE
    class_weights: Tensor | None = None,  # [K] float32
    label_smoothing: float = 0.0,
) -> Tensor:
    """Averages the cross entropy over labelled pixels, each class of the target by its weight.

    With smoothing e the target of label y is (1 - e) for y plus e / K for every class (Szegedy et
    al. 2016), so that a pixel weighs (1 - e) w[y] + e mean(w).
    """
    total = F.cross_entropy(
        logits,
        labels,
        weight=class_weights,
        ignore_index=IGNORE,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    return _divide(total, _pixel_weights(labels, class_weights, label_smoothing).sum())


def ohem(
    logits: Tensor,  # [N, K, H, W] float32
    labels: Tensor,  # [N, H, W] int64, class indices or IGNORE
    class_weights: Tensor | None = None,  # [K] float32
    label_smoothing: float = 0.0,
    *,
    keep: float,
    threshold: float,
) -> Tensor:
    """Averages the cross entropy over the hard pixels only (Shrivastava et al. 2016).

    Hard are the labelled pixels whose true class has a probability below `threshold`, and in any
    case the `keep` share of the labelled pixels with the lowest ones (all that tie with the last).
    """
    labelled = labels != IGNORE
    with torch.no_grad():
        truth = torch.where(labelled, labels, 0).unsqueeze(1)
        probability = logits.softmax(1).gather(1, truth).squeeze(1)  # [N, H, W]
        ranked = torch.where(labelled, probability, torch.inf).flatten().sort().values
        least = (keep * labelled.sum()).ceil().long()  # a tensor: no wait for the device
        last = ranked[(least - 1).clamp(min=0)]
        hard = labelled & ((probability < threshold) | ((probability <= last) & (least > 0)))
    selected = torch.where(hard, labels, IGNORE)
    return cross_entropy(logits, selected, class_weights, label_smoothing)


def segmentation_loss(
    logits: Tensor,  # [N, K, H, W] float32
    auxiliary: Tensor | None,  # [N, K, H, W] float32
    labels: Tensor,  # [N, H, W] int64, class indices or IGNORE
    train: TrainConfig,
    class_weights: Tensor | None,  # [K] float32
) -> Tensor:
    """Computes the training loss: the chosen loss, plus the auxiliary head's cross entropy."""
    if train.loss == "ohem":
        loss = ohem(
            logits,
            labels,
            class_weights,
            train.label_smoothing,
            keep=train.ohem_keep,
            threshold=train.ohem_threshold,
        )
    else:
        loss = cross_entropy(logits, labels, class_weights, train.label_smoothing)
    if auxiliary is None:
        return loss
    side = cross_entropy(auxiliary, labels, class_weights, train.label_smoothing)
    return loss + train.auxiliary_weight * side


def _pixel_weights(labels: Tensor, class_weights: Tensor | None, smoothing: float) -> Tensor:
    labelled = labels != IGNORE
    if class_weights is None:
        return labelled
    of_label = (1 - smoothing) * class_weights + smoothing * class_weights.mean()  # [K]
    return torch.where(labelled, of_label[torch.where(labelled, labels, 0)], 0.0)


def _divide(total: Tensor, weight: Tensor) -> Tensor:
    """Divides, with 0 / 0 = 0 and a gradient of 0 there."""
    return total / torch.where(weight == 0, torch.ones_like(weight), weight)
