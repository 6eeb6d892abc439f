"""BatchNorm folded into the convolutions before it: the same network with less to compute.

For inference alone: what is folded cannot be trained as it was, and its keys are others.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn

from cuda_ops.layers import DeformConv2d
from segdeform.models.features import Backbone
from segdeform.models.frozen import CONVOLUTIONS, FoldedSequential, FrozenBatchNorm2d

_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d)


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """Folds every BatchNorm that follows a convolution into it, in place; returns the module.

    The convolution's weight is scaled and its bias moved, in float64, and an Identity takes the
    norm's place. In evaluation mode the module computes what it did, but for rounding. Pairs are
    looked for where their order is known: neighbours in an `nn.Sequential`, siblings called conv1
    and bn1, conv2 and bn2, ..., as in torchvision's ResNets, where conv1 may be an `nn.Sequential`
    that ends in a convolution, and a backbone's `norm_pairs`. Others stay.
    """
    for parent in list(module.modules()):
        for conv, name, norm in list(_pairs(parent)):
            _fold(conv, norm)
            parent.set_submodule(name, nn.Identity())
    return module


def _pairs(parent: nn.Module) -> Iterator[tuple[nn.Conv2d | DeformConv2d, str, nn.BatchNorm2d]]:
    if isinstance(parent, Backbone):
        for before, after in parent.norm_pairs:
            conv, norm = parent.get_submodule(before), parent.get_submodule(after)
            if type(conv) in CONVOLUTIONS and type(norm) in _NORMS:
                yield conv, after, norm  # type: ignore[misc]
    children = dict(parent.named_children())
    names = list(children)
    if isinstance(parent, nn.Sequential):
        neighbours = list(pairwise(names))
    else:
        norms = [name.replace("conv", "bn") for name in names if name.startswith("conv")]
        neighbours = [(name.replace("bn", "conv"), name) for name in norms if name in children]
    for before, name in neighbours:
        conv, norm = children[before], children[name]
        exact = type(conv) in (nn.Sequential, FoldedSequential)
        if exact and isinstance(conv, nn.Sequential) and len(conv):
            conv = conv[-1]
        if type(conv) in CONVOLUTIONS and type(norm) in _NORMS and norm.running_var is not None:
            yield conv, name, norm  # type: ignore[misc]


@torch.no_grad()
def _fold(conv: nn.Conv2d | DeformConv2d, norm: nn.BatchNorm2d) -> None:
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    shift = -norm.running_mean.double() * scale
    if norm.affine:
        scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
    if conv.bias is not None:
        shift = shift + conv.bias * scale
    weight = conv.weight
    folded = (weight.double() * scale[:, None, None, None]).to(weight.dtype)
    layout = torch.channels_last
    if not weight.is_contiguous(memory_format=layout) or weight.is_contiguous():
        layout = torch.contiguous_format
    vars(conv).pop("forward", None)  # of one that has been scaling its weight by the norm
    conv.weight = nn.Parameter(folded.contiguous(memory_format=layout), weight.requires_grad)
    conv.bias = nn.Parameter(shift.to(weight.dtype), weight.requires_grad)
