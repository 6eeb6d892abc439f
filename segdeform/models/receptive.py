"""How far a network looks: by which pixels around a place its scores there are decided.

A kernel of k taps at dilation d, on a map of stride s, looks d * (k - 1) / 2 * s pixels to either
side; layers in a row add up, of branches the farthest counts. Deformable layers look farther by
their offsets, which the picture decides; they count as the plain ones that they begin as.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import nn

from cuda_ops.layers import DeformConv2d
from segdeform.models.deeplab import DeepLab
from segdeform.models.features import Backbone
from segdeform.models.heads import ASPP, DeepLabHead, DeepLabV3Head, DeepLabV3PlusHead
from segdeform.models.segformer import SegFormerHead
from segdeform.models.timm_backbone import TimmBackbone
from segdeform.models.upernet import UPerNetHead


class Reach(NamedTuple):
    """Pixels of the picture on either side of a place."""

    backbone: int  # of the last features
    head: int  # of the scores over what the head keeps of the features
    enlarging: int  # of a pixel's scores over those at the stride
    strides: tuple[int, ...]  # of what the head keeps
    grids: tuple[int, ...]  # over whose cells the head sees means of the whole picture as well
    squeezes: bool  # whether layers of the backbone see the means of all that it is shown

    @property
    def pools(self) -> bool:
        """Whether the head sees means of the whole picture."""
        return bool(self.grids)

    @property
    def pixels(self) -> int:
        """How far a pixel's scores reach in all."""
        return self.backbone + self.head + self.enlarging

    @property
    def step(self) -> int:
        """Pixels, of which windows begin at multiples."""
        return max(self.strides)

    @property
    def backbone_halo(self) -> int:
        """How many pixels around a window its last features need."""
        return _aligned(self.backbone, self.step)

    @property
    def head_halo(self) -> int:
        """How many pixels around a window its scores need of what the head keeps."""
        # Enlarging needs the values beyond the window's border, which themselves must be right.
        return _aligned(self.head + self.enlarging, self.step)

    def to_json(self) -> dict[str, Any]:
        """Returns what a person wants to know, in pixels."""
        halos = {"backbone_halo": self.backbone_halo, "head_halo": self.head_halo}
        return {
            "pixels": 2 * self.pixels + 1,
            **halos,
            "pools": self.pools,
            "grids": list(self.grids),
            "squeezes": self.squeezes,
        }


def reach_of(model: nn.Module) -> Reach | None:
    """Returns how far a network looks; None for one that is not made of the parts known here."""
    if not isinstance(model, DeepLab):
        return None
    backbone, head = model.backbone, model.head
    high, low = backbone_reach(backbone), backbone.low_stride
    if isinstance(backbone, TimmBackbone):
        squeezes = _sees_beyond(backbone, high)
    else:
        squeezes = any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in backbone.modules())
    match head:
        case DeepLabHead():
            return Reach(high, 0, backbone.stride, (backbone.stride,), head.grids, squeezes)
        case DeepLabV3Head():
            after = sum(map(_taps, _convolutions(head.convs)))
            reach = (_pyramid_reach(head.aspp) + after) * backbone.stride
            return Reach(high, reach, backbone.stride, (backbone.stride,), head.grids, squeezes)
        case DeepLabV3PlusHead():
            aspp = _pyramid_reach(head.aspp) * backbone.stride
            decoder = sum(map(_taps, _convolutions(head.decoder))) * low
            enlarging = backbone.stride if head.ratio > 1 else 0  # values between two are a blend
            reach = aspp + enlarging + decoder
            return Reach(high, reach, low, (low, backbone.stride), head.grids, squeezes)
        case UPerNetHead():
            reach = _upernet_reach(head)
            return Reach(high, reach, low, backbone.stage_strides, head.grids, squeezes)
        case SegFormerHead():
            enlarging = backbone.stride if backbone.stride > low else 0
            return Reach(high, enlarging, low, backbone.stage_strides, head.grids, squeezes)
    return None


def backbone_reach(backbone: Backbone) -> int:
    """Returns how many pixels the last features look to either side.

    Its layers are registered in the order in which they work, as in all of `BACKBONES`; the 1x1
    convolutions of shortcuts lie beside the others. Of timm's networks all layers count, also those
    that lie side by side: it may be too much.
    """
    if isinstance(backbone, TimmBackbone):
        return sum(_taps(layer) * stride for layer, stride in backbone.strides())
    reach, stride = 0, 1
    for name, layer in backbone.named_modules():
        if "downsample" in name or name.endswith("offset_conv"):
            continue
        if isinstance(layer, nn.Conv2d | DeformConv2d | nn.MaxPool2d):
            reach += _taps(layer) * stride
            stride *= _larger(layer.stride)
    return reach


def _sees_beyond(backbone: TimmBackbone, reach: int) -> bool:
    """Tells whether the first of the last features changes with pixels farther away than that.

    Means of all that a network is shown (squeeze and excitation, normalisation over places) have
    many names in timm; the gradient finds them, also where a factor that begins at zero hides them.
    """
    width = 2 * _aligned(reach + 1, backbone.stride)
    draw = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        # In here, as a prediction asks in inference mode; in float32, whatever it computes in.
        copied = deepcopy(backbone).float().eval()
        for name, parameter in copied.named_parameters():
            parameter.requires_grad_(False)
            if "offset_conv" not in name:
                parameter[parameter == 0] = 0.1
        x = torch.randn(1, copied.picture_channels, 4 * copied.stride, width, generator=draw)
        x = x.to(parameter.device).requires_grad_()
        copied(x).high[..., 0].sum().backward(inputs=[x])
    assert x.grad is not None
    return bool(x.grad[..., reach + backbone.stride :].any())


def _aligned(pixels: int, step: int) -> int:
    return -(-pixels // step) * step


def _pyramid_reach(aspp: ASPP) -> int:
    """Returns how many values of the last features a pyramid looks to either side."""
    mixing = sum(map(_taps, _convolutions(aspp.project)))
    return mixing + max(sum(map(_taps, _convolutions(branch))) for branch in aspp.branches)


def _upernet_reach(head: UPerNetHead) -> int:
    """Returns how many pixels a UPerNet's head looks to either side, from the last stage down."""
    first, stride = head.strides[0], head.strides[-1]
    mixing = sum(map(_taps, _convolutions(head.mix))) * first
    # To the maps of a stage, before they are smoothed:
    way = sum(map(_taps, _convolutions(head.pyramid.mix))) * stride
    reach = way + (stride if stride > first else 0) + mixing
    for finer, smoothing in zip(head.strides[2::-1], reversed(head.smoothing), strict=True):
        way += stride if stride > finer else 0  # values between two are a blend
        stride = finer
        smoothed = way + sum(map(_taps, _convolutions(smoothing))) * stride
        reach = max(reach, smoothed + (stride if stride > first else 0) + mixing)
    return reach


def _convolutions(module: nn.Module) -> Iterable[nn.Conv2d]:
    return (layer for layer in module.modules() if isinstance(layer, nn.Conv2d))


def _taps(layer: nn.Module) -> int:
    """Returns how many values of its input a layer looks to either side."""
    kernel: Any = getattr(layer, "kernel_size", None) or getattr(layer, "filt_size", 1)
    dilation: Any = getattr(layer, "dilation", 1)
    return (_larger(kernel) // 2) * _larger(dilation)


def _larger(sizes: int | tuple[int, ...]) -> int:
    return sizes if isinstance(sizes, int) else max(sizes)
