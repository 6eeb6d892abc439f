"""Deformable convolution's way into any network.

Sources: Dai et al., Deformable Convolutional Networks, 2017 (v1, equation 2);
Zhu et al., Deformable ConvNets v2, 2019 (modulation, equation 1).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import nn

from cuda_ops.arguments import pair
from cuda_ops.layers import DeformConv2d, ModulatedDeformConv2d
from segdeform.errors import ConfigError
from segdeform.models.same_padding import PaddedConv2d

Layers = int | str | Sequence[str]
"""How many of the last 3x3 convolutions, or patterns of their names."""

Kernels = tuple[int, ...]
"""Sides of the square kernels that count."""

_log = logging.getLogger(__name__)

VARIANTS = {"v1": DeformConv2d, "v2": ModulatedDeformConv2d}


def square_convolutions(
    module: nn.Module, kernels: Kernels = (3,)
) -> dict[str, nn.Conv2d | DeformConv2d]:
    """Lists the 3x3 convolutions below a module, plain or deformable, in registration order.

    `kernels` are the sides that count, where others do, too. Offset branches are not counted. In
    torchvision's networks registration order is execution order.
    """
    layers: dict[str, nn.Conv2d | DeformConv2d] = {}
    offset_convs = set()
    for name, layer in module.named_modules():
        if isinstance(layer, DeformConv2d):
            offset_convs.add(layer.offset_conv)
        if not isinstance(layer, nn.Conv2d | DeformConv2d) or layer in offset_convs:
            continue
        height, width = layer.kernel_size
        if height == width and height in kernels:
            layers[name] = layer
    return layers


def deformable_layers(module: nn.Module) -> dict[str, DeformConv2d]:
    """Lists the deformable layers below a module, in registration order."""
    return {
        name: layer for name, layer in module.named_modules() if isinstance(layer, DeformConv2d)
    }


def choose_layers(
    module: nn.Module,
    layers: Layers,
    kernels: Kernels = (3,),
) -> dict[str, nn.Conv2d | DeformConv2d]:
    """Chooses among the 3x3 convolutions of a network, in registration order.

    Args:
        layers: how many of the last ones, or patterns of names as in `fnmatch`, where * stands for
            anything, dots too: "layer4.*" or ["layer3.5.conv2", "layer4.*.conv2"].
        kernels: sides that count, where others than 3 do.

    Raises:
        ConfigError: there are not so many, or a pattern matches none.
    """
    found = square_convolutions(module, kernels)
    shape = ", ".join(f"{side}x{side}" for side in kernels)
    if isinstance(layers, int):
        if not 0 <= layers <= len(found):
            raise ConfigError(
                f"deform.layers is {layers}; the network has {len(found)} {shape} convs"
            )
        return dict(list(found.items())[len(found) - layers :])
    patterns = [layers] if isinstance(layers, str) else list(layers)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise ConfigError(f"layers is a number or patterns of names, not {layers!r}")
        if not any(fnmatchcase(name, pattern) for name in found):
            raise ConfigError(
                f"deform.layers: no {shape} convolution is called {pattern!r}; "
                f"{_listed(list(found))}"
            )
    return {
        name: layer
        for name, layer in found.items()
        if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def _listed(names: list[str], most: int = 12) -> str:
    if not names:
        return "the network has none"
    left_out = "..., " if len(names) > most else ""
    return f"there are {left_out}{', '.join(names[-most:])}"


def deformify(
    module: nn.Module,
    layers: Layers,
    *,
    variant: Literal["v1", "v2"] = "v2",
    offset_groups: int = 1,
    kernels: Kernels = (3,),
) -> nn.Module:
    """Turns 3x3 convolutions of a network deformable, in place, and returns the network.

    `layers` is how many of the last ones, by registration order, or a pattern of names or several
    (`choose_layers`); with `kernels=(3, 5, 7)` larger ones count, too. Which they are goes to the
    log of this module, at INFO. Stride, padding, dilation, groups and the parameters themselves
    stay, so that the network computes what it did before until its offsets are trained. Layers that
    are deformable already count and stay as they are: doing it twice changes nothing.

    Only an `nn.Conv2d` itself is replaced. A subclass (weight standardisation, SAME padding) may
    compute its weight or padding when it is called, which a deformable layer would not.

    Raises:
        ConfigError: too few 3x3 convolutions, none of a name, `module` is itself one (put it into a
            container), offset_groups does not divide a layer's channels, or a layer is a subclass,
            computes its weight, does not pad with zeros or carries hooks. Nothing is changed then.
    """
    if isinstance(module, nn.Conv2d | DeformConv2d):
        raise ConfigError("deformify replaces layers inside a network; this is a single layer")
    chosen = choose_layers(module, layers, kernels)
    replacements: dict[nn.Module, DeformConv2d] = {}
    for name, layer in chosen.items():
        if isinstance(layer, nn.Conv2d):
            _check_replaceable(name, layer)
            replacements[layer] = _deformable(layer, variant, offset_groups)
    # A layer may be registered in several places; all of them must see the new one.
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child in replacements:
                setattr(parent, name, replacements[child])
    _log.info("deformable layers: %s", ", ".join(chosen) or "none")
    return module


def _check_replaceable(name: str, conv: nn.Conv2d) -> None:
    """Raises ConfigError for a layer that does more than a deformable one would do in its place."""
    if conv.padding_mode != "zeros":
        raise ConfigError(f"{name} pads with {conv.padding_mode!r}; deformable layers pad zeros")
    if not isinstance(conv.weight, nn.Parameter):
        raise ConfigError(f"{name} computes its weight (weight norm?); remove that first")
    choice = "or choose other layers by name, as layers='layer4.*.conv2'"
    if isinstance(conv, PaddedConv2d):
        raise ConfigError(
            f"{name} pads unevenly before its stride of {conv.stride[0]}, which a deformable layer "
            "does not: a smaller model.output_stride leaves the stride out, or name other layers "
            "in deform.layers"
        )
    if type(conv) is not nn.Conv2d:
        raise ConfigError(
            f"{name} is a {type(conv).__qualname__}, not nn.Conv2d itself, and may compute its "
            f"weight or padding in its own way: put an nn.Conv2d in its place first, {choice}"
        )
    hooks = (conv._forward_hooks, conv._forward_pre_hooks, conv._backward_hooks)
    parts = (conv._modules, conv._buffers, conv._parameters.keys() - {"weight", "bias"})
    if any((*hooks, *parts, conv._backward_pre_hooks)) or "forward" in vars(conv):
        raise ConfigError(
            f"{name} carries hooks, parts or a forward of its own, which would be lost: remove "
            f"them first, {choice}"
        )


def _deformable(conv: nn.Conv2d, variant: Literal["v1", "v2"], offset_groups: int) -> DeformConv2d:
    padding = conv.padding
    if isinstance(padding, str):
        rows, columns = (
            side // 2 * d for side, d in zip(conv.kernel_size, conv.dilation, strict=True)
        )
        padding = (rows, columns) if padding == "same" else (0, 0)
    _check(variant, offset_groups, conv.in_channels)
    with torch.device(conv.weight.device):
        layer = VARIANTS[variant](
            conv.in_channels,
            conv.out_channels,
            pair(conv.kernel_size),
            pair(conv.stride),
            pair(padding),
            pair(conv.dilation),
            conv.groups,
            conv.bias is not None,
            offset_groups,
        )
    layer.to(conv.weight.dtype).train(conv.training)
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
