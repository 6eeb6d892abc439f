"""The training loss: one of several kinds, or a sum of them.

A batch without one labelled pixel costs 0 and has gradient 0, never NaN. Of several processes each
computes its share of the loss of their whole batch: what they return adds up to what one process
with all the pictures would return. The same holds for parts of a batch, where the loss is a mean
over pixels (see `needs_whole_batch`).
"""

from __future__ import annotations

from torch import Tensor

from segdeform.config.train import TrainConfig
from segdeform.machine.processes import ALONE, Processes
from segdeform.training.losses.ohem import ohem
from segdeform.training.losses.pixels import (
    boundary,
    boundary_weight,
    cross_entropy,
    focal,
    label_weight,
)
from segdeform.training.losses.regions import dice, lovasz

_OF_REGIONS = frozenset({"ohem", "dice", "lovasz"})


def needs_whole_batch(train: TrainConfig) -> bool:
    """Tells whether the loss is no sum over pixels: parts of a batch do not add up to it."""
    return not _OF_REGIONS.isdisjoint(train.losses)


def denominators(
    labels: Tensor,  # [N, H, W] int64, of this process's part of the whole batch
    classes: int,
    train: TrainConfig,
    class_weights: Tensor | None,  # [K] float32
    peers: Processes = ALONE,
) -> dict[str, Tensor]:
    """Returns what each mean over pixels is divided by: the weight of the whole batch, [] each."""
    smoothed = label_weight(labels, classes, class_weights, train.label_smoothing)
    weights = {"cross_entropy": smoothed}
    if "focal" in train.losses:
        weights["focal"] = label_weight(labels, classes, class_weights)
    if "boundary" in train.losses:
        near = boundary_weight(labels, classes, train.boundary_width, train.boundary_strength)
        weights["boundary"] = label_weight(labels, classes, class_weights) * near
    return {name: peers.total(weight.sum()) for name, weight in weights.items()}


def segmentation_loss(
    logits: Tensor,  # [N, K, H, W] float32
    auxiliary: Tensor | None,  # [N, K, H, W] float32
    labels: Tensor,  # [N, H, W] int64, class indices or what is ignored beside K classes
    train: TrainConfig,
    class_weights: Tensor | None,  # [K] float32
    peers: Processes = ALONE,
    whole: dict[str, Tensor] | None = None,  # denominators, where this is a part of the batch
) -> Tensor:
    """Computes the training loss: the chosen sum, plus the auxiliary head's cross entropy."""
    if whole is None:
        whole = denominators(labels, logits.shape[1], train, class_weights, peers)
    loss = logits.new_zeros(())
    for name, weight in train.losses.items():
        value = _one_loss(name, logits, labels, train, class_weights, peers, whole)
        loss = value if weight == 1 and len(train.losses) == 1 else loss + weight * value
    if auxiliary is None:
        return loss
    side = cross_entropy(
        auxiliary, labels, class_weights, train.label_smoothing, whole=whole["cross_entropy"]
    )
    return loss + train.auxiliary_weight * side


def _one_loss(
    name: str,
    logits: Tensor,
    labels: Tensor,
    train: TrainConfig,
    class_weights: Tensor | None,
    peers: Processes,
    whole: dict[str, Tensor],
) -> Tensor:
    """Computes the loss of a name of train.loss."""
    smoothing = train.label_smoothing
    match name:
        case "cross_entropy":
            return cross_entropy(logits, labels, class_weights, smoothing, whole=whole[name])
        case "ohem":
            return ohem(
                logits,
                labels,
                class_weights,
                smoothing,
                peers,
                keep=train.ohem_keep,
                threshold=train.ohem_threshold,
            )
        case "focal":
            return focal(logits, labels, class_weights, train.focal_gamma, whole[name])
        case "boundary":
            near = boundary_weight(
                labels, logits.shape[1], train.boundary_width, train.boundary_strength
            )
            return boundary(logits, labels, class_weights, near, whole[name])
        case "dice":
            return dice(logits, labels, class_weights, peers)
        case _:
            return lovasz(logits, labels, class_weights, peers)


__all__ = ["cross_entropy", "denominators", "needs_whole_batch", "ohem", "segmentation_loss"]
