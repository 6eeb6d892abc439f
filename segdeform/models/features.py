"""What a network sees of a picture: the features of a backbone's stages, and what a backbone is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn


class Features(NamedTuple):
    """What the heads see: [N, C, ceil(H / stride), ceil(W / stride)] each."""

    low: Tensor  # stride 4
    middle: Tensor  # what enters the last stage; stride 16, or the output stride if smaller
    high: Tensor  # the last stage's output, at the output stride
    second: Tensor | None = None  # stride 8; only of a backbone that `gives_second`

    @property
    def stages(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The outputs of all four stages, of a backbone that `gives_second`."""
        assert self.second is not None
        return self.low, self.second, self.middle, self.high


class Backbone(nn.Module):
    """Turns pictures [N, C, H, W] into `Features`; the attributes give their channels and strides.

    A stride is exact: value i of a map stands for the pixels from i * stride on, also in the last
    row and column, which reach beyond the picture where its size is no multiple.
    """

    low_channels: int
    second_channels: int
    middle_channels: int
    channels: int
    low_stride = 4
    second_stride = 8
    middle_stride: int
    stride: int
    gives_second = False  # set by who builds a network: heads that do not look need not hold them
    least = 0  # side of the smallest pictures that are not padded, pixels
    deformable_kernels: tuple[int, ...] = (3,)  # sides of those that are counted from the end
    norm_pairs: Sequence[tuple[str, str]] = ()  # convolution, its BatchNorm, where names hide them

    @property
    def stage_channels(self) -> tuple[int, int, int, int]:
        """The channels of `Features.stages`."""
        return self.low_channels, self.second_channels, self.middle_channels, self.channels

    @property
    def stage_strides(self) -> tuple[int, int, int, int]:
        """The strides of `Features.stages`."""
        return self.low_stride, self.second_stride, self.middle_stride, self.stride
