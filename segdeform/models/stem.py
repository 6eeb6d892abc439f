"""The first convolution of a backbone: for other than three channels, or three in its place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segdeform.models.blocks import draw_weights


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


def deepen_first(backbone: nn.Module) -> None:
    """Puts three 3x3 convolutions in the place of a ResNet's 7x7 one, in place.

    The strided first and the second have half the channels, and a batch normalisation and a ReLU
    each; the ResNet's own follow the third. Source: He et al. 2019 (Bag of Tricks, figure 2b).
    """
    first = next(layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d))
    width = first.out_channels // 2
    layers: list[nn.Module] = []
    for channels, stride in ((first.in_channels, 2), (width, 1)):
        layers.append(nn.Conv2d(channels, width, 3, stride, padding=1, bias=False))
        layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
    layers.append(nn.Conv2d(width, first.out_channels, 3, padding=1, bias=False))
    backbone.conv1 = nn.Sequential(*layers)
    draw_weights(backbone.conv1)
