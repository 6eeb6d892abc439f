"""Gradient checkpointing: what a block computed is not kept but computed again on the way back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from segdeform.models.blocks import BasicBlock, Bottleneck, InvertedResidual
from segdeform.models.mobilenet_v3 import MobileBlock
from segdeform.models.timm_backbone import TimmBackbone

_BLOCKS = (BasicBlock, Bottleneck, InvertedResidual, MobileBlock)


def recompute_blocks(backbone: nn.Module) -> int:
    """Has a backbone's residual blocks keep their inputs alone while training, in place.

    Outputs, gradients and BatchNorm's statistics have the same bits; names in the state dict stay.
    Returns how many blocks there are.
    """
    if isinstance(backbone, TimmBackbone):
        blocks = list(backbone.blocks().values())
    else:
        blocks = [module for module in backbone.modules() if isinstance(module, _BLOCKS)]
    for block in blocks:
        # Not a closure: a copy of the network, as its average is one, must call its own block.
        block.forward = partial(_forward, block)
    return len(blocks)


def _forward(block: nn.Module, *given: Any, **named: Any) -> Tensor:
    plain = partial(type(block).forward, block)
    if not (block.training and torch.is_grad_enabled()):
        return cast(Tensor, plain(*given, **named))
    # A list may be added to before it is needed again.
    kept = [list(each) if isinstance(each, list) else each for each in given]

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), statistics_kept(block)

    return cast(Tensor, checkpoint(plain, *kept, use_reentrant=False, context_fn=contexts, **named))


@contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Has BatchNorm normalise by the batch, as in training, but leave its running statistics."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [dict(norm._buffers) for norm in norms]
    for norm in norms:  # copies move in their place: what a gradient needs of them stays as it is
        norm._buffers.update({k: v.clone() for k, v in norm._buffers.items() if v is not None})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
