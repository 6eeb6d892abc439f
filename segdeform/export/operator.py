"""What stands in for our deformable convolution while a network is exported."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ops.arguments import Pair
from cuda_ops.layers import DeformConv2d
from segdeform.models.deform import deformable_layers

Operator = Callable[
    [Tensor, Tensor, Tensor, Tensor | None, Pair, Pair, Pair, Tensor | None], Tensor
]
"""As `cuda_ops.deform_conv2d`, all eight given by place."""


class Standing(nn.Module):
    """Is a deformable layer, computed by another operator; offsets and masks stay float32.

    Args:
        one_type: the operator takes all its tensors in float32, as runtimes want one type.
    """

    def __init__(self, layer: DeformConv2d, operator: Operator, one_type: bool) -> None:
        super().__init__()
        self.layer, self.operator, self.one_type = layer, operator, one_type

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, O, P, Q]
        layer = self.layer
        offset, mask = layer.sampling(x)
        image, weight, bias = x, layer.weight, layer.bias
        if self.one_type:
            image, weight = x.to(offset.dtype), weight.to(offset.dtype)
            bias = None if bias is None else bias.to(offset.dtype)
        result = self.operator(
            image, offset, weight, bias, layer.stride, layer.padding, layer.dilation, mask
        )
        return result.to(x.dtype)


def replace_operator(network: nn.Module, operator: Operator, *, one_type: bool = True) -> None:
    """Gives every deformable layer below a module another operator, in place."""
    layers = {id(layer) for layer in deformable_layers(network).values()}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in layers and isinstance(child, DeformConv2d):
                setattr(parent, name, Standing(child, operator, one_type))


def by_torchvision(
    image: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    mask: Tensor | None,
) -> Tensor:
    """Convolves by torchvision's operator, which converters know."""
    import torchvision

    result: Tensor = torchvision.ops.deform_conv2d(
        image, offset, weight, bias, stride, padding, dilation, mask
    )
    return result


def by_grid_sample(
    image: Tensor,  # [N, C, H, W]
    offset: Tensor,  # [N, 2*G*T, P, Q]
    weight: Tensor,  # [O, C/groups, kh, kw]
    bias: Tensor | None,  # [O]
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    mask: Tensor | None,  # [N, G*T, P, Q]
) -> Tensor:  # [N, O, P, Q]
    """Convolves by standard operators alone: sampling on a grid, and a 1x1 convolution.

    Zero padding of `grid_sample` is the rule of deformable convolution: what lies outside the
    image counts as a ring of zeros. All T samples of every channel are held, C*T*P*Q numbers.
    """
    (count, channels, height, width), (rows, columns) = image.shape, offset.shape[2:]
    kernel = (weight.shape[2], weight.shape[3])
    taps = kernel[0] * kernel[1]
    offset_groups = offset.shape[1] // (2 * taps)
    batch, share = count * offset_groups, channels // offset_groups
    split = image.reshape(batch, share, height, width)
    moved = offset.reshape(batch, taps, 2, rows, columns)  # (dy, dx)
    strength = None if mask is None else mask.reshape(batch, taps, rows, columns)
    top, left = (
        torch.arange(length, device=image.device) * step - before
        for length, step, before in zip((rows, columns), stride, padding, strict=True)
    )
    samples = []
    # Tap by tap: a grid of all taps would join a side of unknown size with theirs, which ties the
    # graph to the sides of its example.
    for tap in range(taps):
        i, j = divmod(tap, kernel[1])
        y = moved[:, tap, 0] + (top + i * dilation[0])[:, None]  # [N*G, P, Q] pixels
        x = moved[:, tap, 1] + (left + j * dilation[1])
        grid = torch.stack(((2 * x + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
        found = F.grid_sample(
            split, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        samples.append(found if strength is None else found * strength[:, tap, None])
    flat = torch.stack(samples, dim=2).reshape(count, channels * taps, rows, columns)
    groups = channels // weight.shape[1]
    return F.conv2d(flat, weight.flatten(1)[:, :, None, None], bias, groups=groups)
