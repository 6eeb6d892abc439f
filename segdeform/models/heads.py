"""Heads: from a backbone's features to class scores, at the resolution of the features.

Sources: `DeepLabHead` Dai et al. 2017 (Deformable ConvNets, section 3); `DeepLabV3Head` Chen et
al. 2017 (Rethinking Atrous Convolution); `DeepLabV3PlusHead` Chen et al. 2018 (Encoder-Decoder with
Atrous Separable Convolution). `UPerNetHead` and `SegFormerHead` have files of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segdeform.models.features import Features
from segdeform.models.grids import Whole
from segdeform.models.resizing import enlarge


class Head(nn.Module):
    """Scores features in two steps, of which the first looks at one place of them at a time."""

    grids: tuple[int, ...] = ()  # over whose cells it looks at the means of the last features

    def keep(self, features: Features) -> tuple[Tensor, ...]:
        """Returns what of the features is needed, each value made of one place alone."""
        raise NotImplementedError

    def decode(
        self,
        kept: tuple[Tensor, ...],
        whole: Whole | None = None,  # of which these are a part; None: they are the whole
    ) -> Tensor:  # [N, K, h, w]
        """Makes the scores of it."""
        raise NotImplementedError

    def forward(self, features: Features) -> Tensor:  # [N, K, h, w]
        return self.decode(self.keep(features))


class DeepLabHead(Head):
    """Scores the last features by two 1x1 convolutions, at the output stride."""

    def __init__(self, channels: int, classes: int, head_channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, head_channels, 1)
        self.score = nn.Conv2d(head_channels, classes, 1)
        initialize(self)

    def keep(self, features: Features) -> tuple[Tensor, ...]:
        """Returns the scores."""
        return (self.score(F.relu(self.project(features.high))),)

    def decode(self, kept: tuple[Tensor, ...], whole: Whole | None = None) -> Tensor:
        """Returns the scores."""
        return kept[0]


class DeepLabV3Head(Head):
    """Scores the last features after atrous spatial pyramid pooling, and 3x3 convolutions if any.

    Args:
        mixing: kernel of the convolution that mixes the pyramid's branches, 1 or 3.
        convs: how many 3x3 convolutions follow.
    """

    grids = (1,)

    def __init__(
        self,
        channels: int,
        classes: int,
        head_channels: int,
        rates: Sequence[int],
        *,
        mixing: int = 1,
        convs: int = 0,
    ) -> None:
        super().__init__()
        self.aspp = ASPP(channels, head_channels, rates, False, dropout=0.5, mixing=mixing)
        self.convs = nn.Sequential(
            *(conv_bn_relu(head_channels, head_channels, 3) for _ in range(convs))
        )
        self.score = nn.Conv2d(head_channels, classes, 1)
        initialize(self)

    def keep(self, features: Features) -> tuple[Tensor, ...]:
        """Returns the last features."""
        return (features.high,)

    def decode(self, kept: tuple[Tensor, ...], whole: Whole | None = None) -> Tensor:
        """Makes the scores of the last features."""
        pyramid = self.aspp(kept[0]) if whole is None else self.aspp(kept[0], _mean(whole))
        scores: Tensor = self.score(self.convs(pyramid))
        return scores


class DeepLabV3PlusHead(Head):
    """Scores pyramid features refined by low-level ones, at their stride, 4.

    Its 3x3 convolutions are separable.

    Args:
        reduced: channels to which the low-level features are reduced (table 1 of the paper).
        mixing: kernel of the convolution that mixes the pyramid's branches, 1 or 3; of 3 it is a
            plain one.
    """

    grids = (1,)

    def __init__(
        self,
        channels: int,
        low_channels: int,
        classes: int,
        head_channels: int,
        rates: Sequence[int],
        ratio: int = 4,  # stride of the last features / stride of the low-level ones
        *,
        reduced: int = 48,
        mixing: int = 1,
    ) -> None:
        super().__init__()
        self.ratio = ratio
        self.aspp = ASPP(channels, head_channels, rates, True, dropout=0.1, mixing=mixing)
        self.low_level = conv_bn_relu(low_channels, reduced, 1)
        self.decoder = nn.Sequential(
            separable_conv(head_channels + reduced, head_channels),
            separable_conv(head_channels, head_channels),
        )
        self.score = nn.Conv2d(head_channels, classes, 1)
        initialize(self)

    def keep(self, features: Features) -> tuple[Tensor, ...]:
        """Returns the low-level features, reduced, and the last ones."""
        return self.low_level(features.low), features.high

    def decode(self, kept: tuple[Tensor, ...], whole: Whole | None = None) -> Tensor:
        """Makes the scores of both."""
        low, high = kept
        pyramid = self.aspp(high) if whole is None else self.aspp(high, _mean(whole))
        x = enlarge(pyramid, self.ratio, low.shape[-2:])
        x = torch.cat((x, low), dim=1)
        # A Sequential would hold what went into it, which at stride 4 is the most of all.
        for separable in self.decoder:
            for layer in separable.children():
                x = layer(x)
        scores: Tensor = self.score(x)
        return scores


class AuxiliaryHead(nn.Module):
    """Scores the features before the last stage by a 3x3 and a 1x1 convolution; training only."""

    def __init__(self, channels: int, classes: int, head_channels: int) -> None:
        super().__init__()
        self.conv = conv_bn_relu(channels, head_channels, 3)
        self.dropout = nn.Dropout2d(0.1)
        self.score = nn.Conv2d(head_channels, classes, 1)
        initialize(self)

    def forward(self, features: Features) -> Tensor:  # [N, K, h, w] at the middle features' size
        scores: Tensor = self.score(self.dropout(self.conv(features.middle)))
        return scores


class ASPP(nn.Module):
    """Looks at the same features at several dilations and at their mean, side by side.

    The branch of the mean has one value a channel and picture: it is not batch-normalised, so that
    a batch of one picture trains and a small batch's noise stays out.
    """

    def __init__(
        self,
        channels: int,
        out_channels: int,
        rates: Sequence[int],
        separable: bool,
        dropout: float,
        mixing: int = 1,  # kernel of the convolution that mixes the branches
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv_bn_relu(channels, out_channels, 1)])
        for rate in rates:
            self.branches.append(
                separable_conv(channels, out_channels, rate)
                if separable
                else conv_bn_relu(channels, out_channels, 3, rate)
            )
        self.pooled = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, out_channels, 1), nn.ReLU(inplace=True)
        )
        self.project = conv_bn_relu((len(rates) + 2) * out_channels, out_channels, mixing)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,  # [N, C, h, w]
        mean: Tensor | None = None,  # [N, C, 1, 1], in the place of x's own
    ) -> Tensor:  # [N, out_channels, h, w]
        branches = [branch(x) for branch in self.branches]
        pooled = self.pooled(x) if mean is None else self.pooled[1:](mean.to(x.dtype))
        branches.append(pooled.expand(-1, -1, *x.shape[-2:]))
        mixed: Tensor = self.dropout(self.project(torch.cat(branches, dim=1)))
        return mixed


def _mean(whole: Whole) -> Tensor:  # [N, C, 1, 1]
    return whole.means[..., None]


def conv_bn_relu(
    channels: int, out_channels: int, kernel_size: int, dilation: int = 1, groups: int = 1
) -> nn.Sequential:
    """Returns convolution (same size), batch normalisation and ReLU."""
    padding = dilation * (kernel_size // 2)
    return nn.Sequential(
        nn.Conv2d(
            channels,
            out_channels,
            kernel_size,
            padding=padding,
            dilation=dilation,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def separable_conv(channels: int, out_channels: int, dilation: int = 1) -> nn.Sequential:
    """Returns a depthwise 3x3 and a pointwise convolution, each normalised and rectified."""
    return nn.Sequential(
        conv_bn_relu(channels, channels, 3, dilation, groups=channels),
        conv_bn_relu(channels, out_channels, 1),
    )


def initialize(head: nn.Module) -> None:
    """Draws a head's weights: He et al. 2015 before a ReLU, small (0.01) for the last, `score`.

    On the meta device nothing is drawn, as in `draw_weights`.
    """
    for name, layer in head.named_modules():
        if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
            if name == "score":
                nn.init.normal_(layer.weight, std=0.01)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
