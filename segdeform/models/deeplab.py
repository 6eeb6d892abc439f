"""The whole network: normalisation, backbone, head, enlarging to the input's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segdeform.config.schema import IMAGENET_MEAN, IMAGENET_STD
from segdeform.models.features import Backbone, Features
from segdeform.models.heads import Head
from segdeform.models.resizing import enlarge, stride_of


class Output(NamedTuple):
    """Class scores before softmax, float32, at the size of the input."""

    logits: Tensor  # [N, K, H, W]
    auxiliary: Tensor | None  # [N, K, H, W] of the auxiliary head, in training mode only


class DeepLab(nn.Module):
    """Labels every pixel of pictures of any size, each where it lies.

    Scores are enlarged by their exact stride and cut (`enlarge`), so that sizes which the stride
    does not divide shift nothing.

    Args:
        mean, std: of each of the C channels, which `backbone` takes.
        stride: height of the pictures / height of the head's scores; None: found from the sizes,
            as the power of two that fits.
        auxiliary_stride: the same of the auxiliary head's.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,  # Features -> [N, K, h, w]
        auxiliary_head: nn.Module | None = None,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        *,
        stride: int | None = None,
        auxiliary_stride: int | None = None,
    ) -> None:
        super().__init__()
        self.stride, self.auxiliary_stride = stride, auxiliary_stride
        self.features_dtype: torch.dtype | None = None  # None: that of the pictures
        self.backbone = backbone
        self.head = head
        self.auxiliary_head = auxiliary_head
        # The device is named because these are in no state dict: also a network built on "meta", to
        # be filled from a file, needs their values.
        for name, values in (("mean", mean), ("std", std)):
            buffer = torch.tensor(list(values), dtype=torch.float32, device="cpu")
            self.register_buffer(name, buffer.view(1, -1, 1, 1), persistent=False)

    def maps(self, images: Tensor) -> Tensor:  # [N, C, H, W] -> [N, K, h, w] float32
        """Computes the head's scores, before they are enlarged by `map_stride`."""
        if not isinstance(self.head, Head):
            maps: Tensor = self.head(self.features(images))
            return maps.float()
        kept = self.head.keep(self.features(images))  # the other features are dropped
        return self.head.decode(kept).float()

    def map_stride(self, maps: Tensor, size: torch.Size | tuple[int, int]) -> int:
        """Returns height of the pictures / height of the head's scores, at pictures of (H, W)."""
        return stride_of(maps, size) if self.stride is None else self.stride

    def features(self, images: Tensor) -> Features:  # [N, C, H, W] float, 0..1
        """Computes the backbone's features."""
        normalized = (images - self.mean) / self.std
        if self.features_dtype is not None:
            normalized = normalized.to(self.features_dtype)
        features: Features = self.backbone(normalized)
        return features

    def forward(self, images: Tensor) -> Output | Tensor:  # [N, C, H, W] float, 0..1
        """Returns `Output`; the logits alone where a graph is made of it for evaluation.

        Such a graph (torch.jit.trace, torch.export, ONNX) outlives our classes: it knows tensors.
        """
        size = images.shape[-2:]
        features = self.features(images)
        logits = _scores(self.head(features), self.stride, size)
        traced = torch._C._get_tracing_state() is not None  # torch.jit.trace
        if not self.training and (traced or torch.compiler.is_exporting()):
            return logits
        if self.auxiliary_head is None or not self.training:
            return Output(logits, None)
        auxiliary = _scores(self.auxiliary_head(features), self.auxiliary_stride, size)
        return Output(logits, auxiliary)


def _scores(maps: Tensor, stride: int | None, size: torch.Size) -> Tensor:
    """Enlarges scores to (H, W) in float32, also where autocast computed them in less."""
    return enlarge(maps.float(), stride_of(maps, size) if stride is None else stride, size)
