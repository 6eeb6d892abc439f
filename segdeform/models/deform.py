"""Deformable convolution's way into any network.

Sources: Dai et al., Deformable Convolutional Networks, 2017 (v1, equation 2);
Zhu et al., Deformable ConvNets v2, 2019 (modulation, equation 1).
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from cuda_ops.layers import DeformConv2d, ModulatedDeformConv2d
from segdeform.errors import ConfigError

VARIANTS = {"v1": DeformConv2d, "v2": ModulatedDeformConv2d}


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
    if not isinstance(layers, int):
        raise ConfigError(f"layers is a number of convolutions, not {layers!r}")
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
    _check(variant, offset_groups, conv.in_channels)
    layer = VARIANTS[variant](
        conv.in_channels,
        conv.out_channels,
        (3, 3),
        _pair(conv.stride),
        _pair(padding),
        _pair(conv.dilation),
        conv.groups,
        conv.bias is not None,
        offset_groups,
    )
    layer.to(conv.weight.device, conv.weight.dtype).train(conv.training)
    layer.weight, layer.bias = conv.weight, conv.bias
    return layer


def _check(variant: str, offset_groups: int, channels: int) -> None:
    if variant not in VARIANTS:
        raise ConfigError(f"deform.variant is {variant!r}; it must be 'v1' or 'v2'")
    if offset_groups < 1 or channels % offset_groups:
        raise ConfigError(
            f"deform.offset_groups is {offset_groups}; it must divide the layer's {channels} "
            "input channels"
        )


def _pair(size: int | tuple[int, ...]) -> tuple[int, int]:
    """Spells a size out as (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])
