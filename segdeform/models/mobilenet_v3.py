"""The convolutions of MobileNetV3-Large, with torchvision's state-dict keys.

Source: Howard et al. 2019 (Searching for MobileNetV3, table 1 and figure 4).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

_EPS, _MOMENTUM = 0.001, 0.01  # of its batch normalisation


class _Row(NamedTuple):
    """A block of the paper's table 1."""

    kernel_size: int
    width: int  # channels between the 1x1 convolutions
    channels: int  # of the output
    squeezes: bool
    smooth: bool  # h-swish, else ReLU
    stride: int


_ROWS = (
    _Row(3, 16, 16, False, False, 1),
    _Row(3, 64, 24, False, False, 2),
    _Row(3, 72, 24, False, False, 1),
    _Row(5, 72, 40, True, False, 2),
    _Row(5, 120, 40, True, False, 1),
    _Row(5, 120, 40, True, False, 1),
    _Row(3, 240, 80, False, True, 2),
    _Row(3, 200, 80, False, True, 1),
    _Row(3, 184, 80, False, True, 1),
    _Row(3, 184, 80, False, True, 1),
    _Row(3, 480, 112, True, True, 1),
    _Row(3, 672, 112, True, True, 1),
    _Row(5, 672, 160, True, True, 2),
    _Row(5, 960, 160, True, True, 1),
    _Row(5, 960, 160, True, True, 1),
)


def large_features() -> nn.Sequential:
    """Lines up the first convolution, the 15 blocks and the closing 1x1 convolution."""
    channels = 16
    layers: list[nn.Module] = [_conv_bn(3, channels, 3, stride=2, activation=nn.Hardswish)]
    for row in _ROWS:
        layers.append(MobileBlock(channels, row))
        channels = row.channels
    layers.append(_conv_bn(channels, 6 * channels, 1, activation=nn.Hardswish))
    return nn.Sequential(*layers)


class MobileBlock(nn.Module):
    """Widens, filters depthwise, weighs the channels by their means, and narrows again.

    The input is added where the sizes are the same.
    """

    def __init__(self, channels: int, row: _Row) -> None:
        super().__init__()
        width, activation = row.width, nn.Hardswish if row.smooth else nn.ReLU
        layers: list[nn.Module] = []
        if width != channels:
            layers.append(_conv_bn(channels, width, 1, activation=activation))
        layers.append(
            _conv_bn(width, width, row.kernel_size, row.stride, groups=width, activation=activation)
        )
        if row.squeezes:
            layers.append(SqueezeExcitation(width, _multiple_of_8(width // 4)))
        layers.append(_conv_bn(width, row.channels, 1))
        self.block = nn.Sequential(*layers)
        self.adds = row.stride == 1 and channels == row.channels

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, row.channels, P, Q]
        result: Tensor = self.block(x)
        return x + result if self.adds else result


class SqueezeExcitation(nn.Module):
    """Scales every channel by a factor 0..1 made of the means of all (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.gate = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W], and so returned
        factors: Tensor = self.gate(self.fc2(self.relu(self.fc1(self.avgpool(x)))))
        return x * factors


def _conv_bn(
    channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Hardswish] | type[nn.ReLU] | None = None,
) -> nn.Sequential:
    conv = nn.Conv2d(
        channels, out_channels, kernel_size, stride, kernel_size // 2, groups=groups, bias=False
    )
    norm = nn.BatchNorm2d(out_channels, _EPS, _MOMENTUM)
    return nn.Sequential(conv, norm, *([] if activation is None else [activation(inplace=True)]))


def _multiple_of_8(channels: int) -> int:
    """Rounds to the nearest multiple, never more than a tenth down."""
    rounded = max(8, (channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
