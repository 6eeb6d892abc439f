"""BatchNorm that no longer learns, folded into the convolution before it where that is possible.

On CPU a frozen BatchNorm costs nothing but memory traffic, forward and backward; scaling the
convolution's weight instead (it is small) leaves none.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

from torch import Tensor, nn

from cuda_ops.layers import DeformConv2d, ModulatedDeformConv2d
from segdeform.models.same_padding import PaddedConv2d

# Exact types whose weight may be scaled: a subclass may compute it when it is called.
CONVOLUTIONS = (nn.Conv2d, PaddedConv2d, DeformConv2d, ModulatedDeformConv2d)


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Normalises by its running statistics for ever: `train()` does not wake it.

    One that is `absorbed` by the convolution before it hands its input on.
    """

    absorbed = False

    def forward(self, x: Tensor) -> Tensor:
        return x if self.absorbed else super().forward(x)

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stays in evaluation mode whatever `mode` is."""
        super().train(False)
        return self

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Returns the two [C] with which the layer computes x * scale + shift."""
        assert self.running_mean is not None and self.running_var is not None
        scale = (self.running_var + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        shift = -self.running_mean * scale
        return scale, shift + self.bias if self.affine else shift


class FoldedSequential(nn.Sequential):
    """Computes convolution and frozen BatchNorm, where they follow each other, as one convolution.

    It computes what `nn.Sequential` computes but for rounding; keys and children are the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        layers = list(self)
        while layers:
            layer = layers.pop(0)
            if layers and _fold(layer, layers[0]):
                x = _normalized_convolution(layer, layers.pop(0), x)
            else:
                x = layer(x)
        return x


def freeze_batch_norm(module: nn.Module) -> None:
    """Freezes every BatchNorm2d and SyncBatchNorm below a module, a backbone mostly, in place.

    Neither the running statistics nor scale and shift change any more (no gradient), also after
    `module.train()`. State-dict keys stay. Convert to SyncBatchNorm before this, not after.
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm2d | nn.SyncBatchNorm):
                setattr(parent, name, _frozen(child))
    for parent in reversed(list(module.modules())):  # inner containers before outer ones
        for name, child in parent.named_children():
            children = list(child.children())
            if isinstance(child, nn.Sequential) and any(map(_fold, children, children[1:])):
                setattr(parent, name, FoldedSequential(OrderedDict(child.named_children())))
    for before, after in getattr(module, "norm_pairs", ()):
        conv, norm = module.get_submodule(before), module.get_submodule(after)
        if _fold(conv, norm):
            norm.absorbed = True  # type: ignore[assignment]
            # Not a closure: a copy of the network must call its own layers.
            conv.forward = partial(_normalized_convolution, conv, norm)


def _frozen(norm: nn.BatchNorm2d | nn.SyncBatchNorm) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps, norm.momentum, affine=norm.affine)
    # The very same tensors, so that whoever holds them already keeps them.
    tensors: list[dict[str, Any]] = [norm._parameters, norm._buffers]
    for name, tensor in (item for group in tensors for item in group.items()):
        setattr(frozen, name, tensor)
    return frozen.requires_grad_(False).eval()


def _fold(layer: nn.Module, after: nn.Module) -> bool:
    # Exact types: a subclass may convolve in its own way.
    return type(layer) in CONVOLUTIONS and isinstance(after, FrozenBatchNorm2d)


def _normalized_convolution(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(conv, nn.Conv2d | DeformConv2d) and isinstance(norm, FrozenBatchNorm2d)
    scale, shift = norm.scale_and_shift()
    bias = shift if conv.bias is None else shift + conv.bias * scale
    weight = conv.weight * scale[:, None, None, None]
    if isinstance(conv, DeformConv2d):
        return conv.convolve(x, weight, bias)
    output: Tensor = conv._conv_forward(x, weight, bias)
    return output
