"""Where inference calls the network: whole, or its backbone and its head one after the other."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segdeform.errors import NotFiniteError
from segdeform.models.deeplab import DeepLab
from segdeform.models.grids import Whole
from segdeform.models.heads import Head


def coarse_scores(
    model: nn.Module,
    images: Tensor,  # [N, C, H, W] float32, 0..1
) -> tuple[Tensor, int]:  # [N, K, ceil(H / stride), ceil(W / stride)] float32, their stride
    """Computes the scores of pictures. Raises NotFiniteError for NaN and infinity."""
    images = images.contiguous(memory_format=torch.channels_last)
    size = (images.shape[2], images.shape[3])
    if isinstance(model, DeepLab):
        scores = model.maps(images)
        stride = model.map_stride(scores, size)
    else:
        scores, stride = model(images).logits.float(), 1
    refuse_not_finite(scores)
    return scores, stride


def kept_features(
    model: DeepLab,  # with a `Head`
    images: Tensor,  # [N, C, H, W] float32, 0..1
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Computes what the head keeps of the backbone's features, and the last of these themselves."""
    assert isinstance(model.head, Head)
    features = model.features(images.contiguous(memory_format=torch.channels_last))
    return model.head.keep(features), features.high


def decoded_scores(
    model: DeepLab,  # with a `Head`
    kept: tuple[Tensor, ...],
    whole: Whole | None,  # the picture, where what was kept is of a part
) -> Tensor:  # [N, K, h, w] float32
    """Computes scores of what was kept. Raises NotFiniteError for NaN and infinity."""
    assert isinstance(model.head, Head)
    scores = model.head.decode(kept, whole).float()
    refuse_not_finite(scores)
    return scores


def refuse_not_finite(scores: Tensor) -> None:  # [N, K, h, w]
    """Raises NotFiniteError for scores that are no numbers."""
    # In the order of memory: across it the same takes twenty times as long.
    if scores.is_contiguous(memory_format=torch.channels_last):
        scores = scores.permute(0, 2, 3, 1)
    if not all(torch.isfinite(extreme) for extreme in scores.aminmax()):
        raise NotFiniteError(
            "the network's output holds NaN or infinity: train again with a lower "
            "train.lr, or use an earlier checkpoint"
        )
