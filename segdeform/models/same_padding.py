"""Convolutions of other libraries made plain: padding and weights that are computed when called.

On maps that the stride divides, TensorFlow's SAME padding is the same for every size: it is written
down once, so that a graph made of the network has no sizes in it. A standardised weight (Qiao et
al. 2019; scaled: Brock et al. 2021) is computed once where its layer becomes deformable.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ops.arguments import pair


class PaddedConv2d(nn.Conv2d):
    """Convolves with zeros around the map that may differ from side to side.

    Args:
        pads: left, right, top, bottom, values.
        (the rest): as in `nn.Conv2d`, whose padding is 0.
    """

    def __init__(self, *arguments: Any, pads: tuple[int, int, int, int], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.pads = pads

    def dilate(self, rate: int) -> None:
        """Sets the dilation; maps keep their size."""
        self.dilation = (rate, rate)
        (top, bottom), (left, right) = (
            same_pads(side, stride, rate)
            for side, stride in zip(self.kernel_size, self.stride, strict=True)
        )
        self.pads = (left, right, top, bottom)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = super()._conv_forward(F.pad(x, self.pads), weight, bias)
        return output


def same_pads(kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Returns the zeros before and after a map whose size the stride divides, as SAME has them."""
    both = max(dilation * (kernel - 1) + 1 - stride, 0)
    return both // 2, both - both // 2


class PaddedPool2d(nn.Module):
    """Pools with a border of one value around the map that may differ from side to side."""

    def __init__(self, pool: nn.Module, pads: tuple[int, int, int, int], value: float) -> None:
        super().__init__()
        self.pool, self.pads, self.value = pool, pads, value

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W]
        pooled: Tensor = self.pool(F.pad(x, self.pads, value=self.value))
        return pooled


def padded_pool(pool: nn.AvgPool2d | nn.MaxPool2d, value: float) -> PaddedPool2d:
    """Returns what timm's pool with SAME padding computes, with that written down."""
    (top, bottom), (left, right) = (
        same_pads(kernel, stride, dilation)
        for kernel, stride, dilation in zip(
            pair(pool.kernel_size),
            pair(pool.stride),
            pair(getattr(pool, "dilation", 1)),
            strict=True,
        )
    )
    size, stride = pair(pool.kernel_size), pair(pool.stride)
    plain: nn.Module
    if isinstance(pool, nn.MaxPool2d):
        plain = nn.MaxPool2d(size, stride, 0, pair(pool.dilation), ceil_mode=pool.ceil_mode)
    else:
        # Values around the border count as they do in timm: as zeros.
        counted = pool.count_include_pad
        plain = nn.AvgPool2d(size, stride, 0, pool.ceil_mode, count_include_pad=counted)
    return PaddedPool2d(plain, (left, right, top, bottom), value)


def plain_convolution(conv: nn.Conv2d) -> nn.Conv2d:
    """Returns a convolution that computes what timm's does, with explicit padding and weight.

    It is timm's own where that is plain already or of a kind that is not known here. Parameters are
    shared, but for a standardised weight, which becomes a parameter of its own.
    """
    kind = type(conv).__name__
    if kind not in _KINDS or not type(conv).__module__.startswith("timm."):
        return conv
    weight = conv.weight
    if "Std" in kind:
        weight = nn.Parameter(standardized(conv), weight.requires_grad)
    sides = list(zip(conv.kernel_size, pair(conv.stride), pair(conv.dilation), strict=True))
    dynamic = kind == "Conv2dSame" or getattr(conv, "same_pad", False)
    top_bottom, left_right = (same_pads(*side) for side in sides)
    symmetric = top_bottom[0] == top_bottom[1] and left_right[0] == left_right[1]
    padding = (top_bottom[0], left_right[0]) if dynamic else conv.padding
    named: dict[str, Any] = {
        "stride": conv.stride,
        "padding": padding if symmetric or not dynamic else 0,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "bias": conv.bias is not None,
        "device": "meta",
    }
    sizes = (conv.in_channels, conv.out_channels, pair(conv.kernel_size))
    if symmetric or not dynamic:
        plain = nn.Conv2d(*sizes, **named)
    else:
        plain = PaddedConv2d(*sizes, pads=(*left_right, *top_bottom), **named)
    plain.weight, plain.bias = cast(nn.Parameter, weight), conv.bias
    return plain.train(conv.training)


def make_plain(module: nn.Module, chosen: Iterable[nn.Module]) -> None:
    """Puts plain convolutions in the place of timm's kinds among the chosen, in place."""
    plain = {conv: plain_convolution(conv) for conv in chosen if isinstance(conv, nn.Conv2d)}
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if child in plain and plain[child] is not child:
                setattr(parent, name, plain[child])


_KINDS = ("Conv2dSame", "StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")


@torch.no_grad()
def standardized(conv: nn.Conv2d) -> Tensor:  # [O, I / groups, kh, kw]
    """Returns the weight that a weight-standardised convolution of timm computes with."""
    gain = cast(Tensor, conv.gain) * cast(float, conv.scale) if hasattr(conv, "gain") else None
    rows = conv.weight.double().flatten(1)
    centred = rows - rows.mean(1, keepdim=True)
    deviation = (centred.square().mean(1, keepdim=True) + cast(float, conv.eps)).sqrt()
    weight = (centred / deviation).view_as(conv.weight)
    return (weight if gain is None else weight * gain.double()).to(conv.weight.dtype)
