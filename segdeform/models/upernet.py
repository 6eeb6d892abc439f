"""UPerNet's head: the four stages of a backbone from the last to the first, then side by side.

Sources: Xiao et al. 2018 (Unified Perceptual Parsing, figure 4); its pyramid pooling Zhao et al.
2017 (Pyramid Scene Parsing), its way down Lin et al. 2017 (Feature Pyramid Networks).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segdeform.models.features import Features
from segdeform.models.grids import Whole, spread, whole_of
from segdeform.models.heads import Head, conv_bn_relu, initialize
from segdeform.models.resizing import enlarge

GRIDS = (1, 2, 3, 6)  # cells a side


class UPerNetHead(Head):
    """Scores all stages at the stride of the first, 4.

    Args:
        channels, strides: of the four stages, as `Backbone.stage_channels` and `stage_strides`.
        head_channels: to which every stage is brought.
    """

    grids = GRIDS

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], classes: int, head_channels: int
    ) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self.pyramid = PyramidPooling(channels[-1], head_channels)
        self.laterals = nn.ModuleList(
            conv_bn_relu(width, head_channels, 1) for width in channels[:-1]
        )
        self.smoothing = nn.ModuleList(
            conv_bn_relu(head_channels, head_channels, 3) for _ in channels[:-1]
        )
        self.mix = conv_bn_relu(len(channels) * head_channels, head_channels, 3)
        self.dropout = nn.Dropout2d(0.1)
        self.score = nn.Conv2d(head_channels, classes, 1)
        initialize(self)

    def keep(self, features: Features) -> tuple[Tensor, ...]:
        """Returns the outputs of the four stages."""
        return features.stages

    def decode(self, kept: tuple[Tensor, ...], whole: Whole | None = None) -> Tensor:
        """Makes the scores of them."""
        x: Tensor = self.pyramid(kept[-1], whole)
        maps, stride = [x], self.strides[-1]
        for number in (2, 1, 0):
            lateral, finer = self.laterals[number](kept[number]), self.strides[number]
            x = lateral + enlarge(x, stride // finer, lateral.shape[-2:])
            maps.append(self.smoothing[number](x))
            stride = finer
        size = maps[-1].shape[-2:]
        enlarged = [
            enlarge(each, stride // self.strides[0], size)
            for each, stride in zip(reversed(maps), self.strides, strict=True)
        ]
        del maps
        scores: Tensor = self.score(self.dropout(self.mix(torch.cat(enlarged, dim=1))))
        return scores


class PyramidPooling(nn.Module):
    """Puts beside features their means over the cells of four grids, and mixes all.

    The means, of one to 36 values a channel and picture, are not batch-normalised, so that a batch
    of one picture trains and a small batch's noise stays out.
    """

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, out_channels, 1), nn.ReLU(inplace=True))
            for _ in GRIDS
        )
        self.mix = conv_bn_relu(channels + len(GRIDS) * out_channels, out_channels, 3)

    def forward(
        self,
        x: Tensor,  # [N, C, h, w]
        whole: Whole | None = None,  # of which x is a part; None: x itself
    ) -> Tensor:  # [N, out_channels, h, w]
        whole = whole_of(x, GRIDS) if whole is None else whole
        means = torch.split(whole.means.to(x.dtype), [grid**2 for grid in GRIDS], dim=2)
        size = (x.shape[2], x.shape[3])
        parts = [x]
        for branch, cells in zip(self.branches, means, strict=True):
            # Of a row as of an image, for the branch's 1x1 convolution.
            parts.append(spread(branch(cells[:, :, None]).squeeze(2), whole, size))
        mixed: Tensor = self.mix(torch.cat(parts, dim=1))
        return mixed
