"""Deformable convolution as a layer, and its way into any network.

Sources: Dai et al., Deformable Convolutional Networks, 2017 (v1, equation 2);
Zhu et al., Deformable ConvNets v2, 2019 (modulation, equation 1).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ops import deform_conv2d
from segdeform.errors import ConfigError

Size = int | tuple[int, int]


class DeformConv2d(nn.Module):
    """Convolves at positions that a second convolution predicts from the same input.

    A drop-in for `nn.Conv2d` with zero padding: `weight` and `bias` have the same names and shapes.
    `offset_conv` has the geometry of the layer itself and starts at zero, so that a fresh layer
    computes the plain convolution. Its channels: 2*G*T offsets in pixels (dy and dx of each tap by
    turns, taps row-major, within an offset group), then for v2 G*T logits of the modulation.
    That modulation is 2*sigmoid(logit), 1 at the start (the v2 paper's is sigmoid).

    Args:
        offset_groups: G, groups of input channels with offsets of their own.
        variant: "v1" (offsets) or "v2" (offsets and modulation).
        (the rest): as in `nn.Conv2d`; (height, width) where a pair is given.

    Raises:
        ConfigError: offset_groups does not divide in_channels, or the variant is unknown.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        dilation: Size = 1,
        groups: int = 1,
        bias: bool = True,
        offset_groups: int = 1,
        variant: Literal["v1", "v2"] = "v2",
    ) -> None:
        super().__init__()
        if variant not in ("v1", "v2"):
            raise ConfigError(f"deform.variant is {variant!r}; it must be 'v1' or 'v2'")
        _check_offset_groups(offset_groups, in_channels)
        plain = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias
        )
        self.weight, self.bias = plain.weight, plain.bias
        self.kernel_size, self.stride = _pair(kernel_size), _pair(stride)
        self.padding, self.dilation = _pair(padding), _pair(dilation)
        self.groups, self.offset_groups, self.variant = groups, offset_groups, variant
        taps = self.kernel_size[0] * self.kernel_size[1]
        channels = offset_groups * taps * (3 if variant == "v2" else 2)
        self.offset_conv = nn.Conv2d(in_channels, channels, kernel_size, stride, padding, dilation)
        nn.init.zeros_(self.offset_conv.weight)
        assert self.offset_conv.bias is not None
        nn.init.zeros_(self.offset_conv.bias)

    def sampling(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Predicts offsets [N, 2*G*T, P, Q], pixels, and for v2 the modulation [N, G*T, P, Q].

        Both are float32 or better whatever the input [N, C, H, W] is: half-precision coordinates
        are off by up to a pixel.
        """
        conv = self.offset_conv
        assert conv.bias is not None
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            predicted = F.conv2d(
                x.to(dtype),
                conv.weight.to(dtype),
                conv.bias.to(dtype),
                self.stride,
                self.padding,
                self.dilation,
            )
            if self.variant == "v1":
                return predicted, None
            positions = 2 * predicted.shape[1] // 3
            return predicted[:, :positions], 2 * predicted[:, positions:].sigmoid()

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolves [N, C, H, W] -> [N, O, P, Q] at the predicted positions with a given weight."""
        offset, mask = self.sampling(x)
        output: Tensor = deform_conv2d(
            x, offset, weight, bias, self.stride, self.padding, self.dilation, mask
        )
        return output

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, O, P, Q]
        return self.convolve(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Describes the layer as `nn.Conv2d` does."""
        out_channels, in_channels = self.weight.shape[0], self.weight.shape[1] * self.groups
        return (
            f"{in_channels}, {out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, "
            f"bias={self.bias is not None}, offset_groups={self.offset_groups}, {self.variant}"
        )


def conv3x3_layers(module: nn.Module) -> dict[str, nn.Conv2d | DeformConv2d]:
    """Lists the 3x3 convolutions below a module, plain or deformable, in registration order.

    Offset branches are not counted. In torchvision's networks registration order is execution
    order.
    """
    layers: dict[str, nn.Conv2d | DeformConv2d] = {}
    offset_convs = set()
    for name, layer in module.named_modules():
        if isinstance(layer, DeformConv2d):
            offset_convs.add(layer.offset_conv)
        square = isinstance(layer, nn.Conv2d | DeformConv2d) and layer.kernel_size == (3, 3)
        if square and layer not in offset_convs:
            layers[name] = layer
    return layers


def deformify(
    module: nn.Module,
    layers: int,
    *,
    variant: Literal["v1", "v2"] = "v2",
    offset_groups: int = 1,
) -> nn.Module:
    """Turns the last `layers` 3x3 convolutions of a network deformable, in place, and returns it.

    "Last" is by registration order. Stride, padding, dilation, groups and the parameters themselves
    stay, so that the network computes what it did before until its offsets are trained.
    Layers that are deformable already count and stay as they are: doing it twice changes nothing.

    Raises:
        ConfigError: too few 3x3 convolutions, `module` is itself one (put it into a container),
            offset_groups does not divide a layer's channels, or a layer does not pad with zeros.
    """
    if isinstance(module, nn.Conv2d | DeformConv2d):
        raise ConfigError("deformify replaces layers inside a network; this is a single layer")
    found = conv3x3_layers(module)
    if not 0 <= layers <= len(found):
        raise ConfigError(f"deform.layers is {layers}; the network has {len(found)} 3x3 convs")
    replacements: dict[nn.Module, DeformConv2d] = {}
    for name, layer in list(found.items())[len(found) - layers :]:
        if isinstance(layer, nn.Conv2d):
            replacements[layer] = _deformable(name, layer, variant, offset_groups)
    # A layer may be registered in several places; all of them must see the new one.
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child in replacements:
                setattr(parent, name, replacements[child])
    return module


def _deformable(
    name: str, conv: nn.Conv2d, variant: Literal["v1", "v2"], offset_groups: int
) -> DeformConv2d:
    if conv.padding_mode != "zeros":
        raise ConfigError(f"{name} pads with {conv.padding_mode!r}; deformable layers pad zeros")
    if not isinstance(conv.weight, nn.Parameter):
        raise ConfigError(f"{name} computes its weight (weight norm?); remove that first")
    padding = conv.padding
    if isinstance(padding, str):
        padding = conv.dilation if padding == "same" else (0, 0)
    layer = DeformConv2d(
        conv.in_channels,
        conv.out_channels,
        (3, 3),
        _pair(conv.stride),
        _pair(padding),
        _pair(conv.dilation),
        conv.groups,
        conv.bias is not None,
        offset_groups,
        variant,
    )
    layer.to(conv.weight.device, conv.weight.dtype).train(conv.training)
    layer.weight, layer.bias = conv.weight, conv.bias
    return layer


def _check_offset_groups(offset_groups: int, channels: int) -> None:
    if offset_groups < 1 or channels % offset_groups:
        raise ConfigError(
            f"deform.offset_groups is {offset_groups}; it must divide the layer's {channels} "
            "input channels"
        )


def _pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    """Spells a size out as (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
