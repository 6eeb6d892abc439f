"""SegFormer's head: the four stages of a backbone, each by itself brought to one width, mixed.

Source: Xie et al. 2021 (SegFormer, section 3.2: the lightweight all-MLP decoder).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from segdeform.models.features import Features
from segdeform.models.grids import Whole
from segdeform.models.heads import Head, conv_bn_relu, initialize
from segdeform.models.resizing import enlarge


class SegFormerHead(Head):
    """Scores all stages at the stride of the first, 4, by 1x1 convolutions alone.

    Args:
        channels, strides: of the four stages, as `Backbone.stage_channels` and `stage_strides`.
        head_channels: to which every stage is brought.
    """

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], classes: int, head_channels: int
    ) -> None:
        super().__init__()
        self.ratios = [stride // strides[0] for stride in strides]
        # Without a bias, which the norm after mixing would take away again.
        self.project = nn.ModuleList(
            nn.Conv2d(width, head_channels, 1, bias=False) for width in channels
        )
        self.mix = conv_bn_relu(len(channels) * head_channels, head_channels, 1)
        self.dropout = nn.Dropout2d(0.1)
        self.score = nn.Conv2d(head_channels, classes, 1)
        initialize(self)

    def keep(self, features: Features) -> tuple[Tensor, ...]:
        """Returns the outputs of the four stages."""
        return features.stages

    def decode(self, kept: tuple[Tensor, ...], whole: Whole | None = None) -> Tensor:
        """Makes the scores of them.

        The paper enlarges the stages, puts them side by side and mixes them by a 1x1 convolution.
        Mixing each stage by its own columns of the weight and adding up the enlarged results gives
        the same, as a 1x1 convolution and enlarging can change places, with a third of the products
        and never all four of them at stride 4.
        """
        mix, *after = self.mix
        assert isinstance(mix, nn.Conv2d)
        columns: Tensor = mix.weight
        x: Tensor | None = None
        for values, project, ratio in zip(kept, self.project, self.ratios, strict=True):
            narrow = project(values)
            weight, columns = columns[:, : narrow.shape[1]], columns[:, narrow.shape[1] :]
            mixed = enlarge(F.conv2d(narrow, weight), ratio, kept[0].shape[-2:])
            x = mixed if x is None else x + mixed
        assert x is not None
        if mix.bias is not None:  # of a norm that was folded
            x = x + mix.bias[:, None, None]
        for layer in after:
            x = layer(x)
        scores: Tensor = self.score(self.dropout(x))
        return scores
