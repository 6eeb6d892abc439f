"""The first convolution of a backbone for pictures of other than three channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def widened(
    kernels: Tensor,  # [O, 3, h, w], of red, green and blue
    channels: int,
) -> Tensor:  # [O, channels, h, w]
    """Returns kernels for any number of channels that answer grey as those of RGB do.

    Of three channels and more, the first three take the kernels of red, green and blue, the others
    their mean; of one or two, all take the mean. All are multiplied by 3 / channels: their sum is
    that of the RGB kernels, so a picture whose channels are equal gives what grey gave.
    """
    mean = kernels.mean(1, keepdim=True)
    if channels < 3:
        wide = mean.repeat(1, channels, 1, 1)
    else:
        wide = torch.cat([kernels, mean.repeat(1, channels - 3, 1, 1)], 1)
    return wide * (3 / channels)


@torch.no_grad()
def widen_first(backbone: nn.Module, channels: int) -> None:
    """Gives a backbone's first convolution, of 3 channels and no groups, others, in place."""
    conv = next(layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d))
    conv.weight = nn.Parameter(widened(conv.weight, channels))
    conv.in_channels = channels
