"""Blocks of the classifiers that the backbones are made of, with torchvision's state-dict keys.

Sources: residual blocks He et al. 2016 (Deep Residual Learning, figure 5), with the stride in the
3x3 convolution; inverted residuals Sandler et al. 2018 (MobileNetV2, figure 3).
"""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Adds two 3x3 convolutions to their input."""

    expansion: Final = 1  # channels of the output / `width`

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        shortcut = _shortcut(channels, width * self.expansion, stride)
        self.conv1 = _conv(channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, width, P, Q]
        added = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        added += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(added)
        return result


class Bottleneck(nn.Module):
    """Adds a 1x1, a 3x3 and a 1x1 convolution to their input."""

    expansion: Final = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        shortcut = _shortcut(channels, out_channels, stride)
        self.conv1 = _conv(channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, out_channels, 1)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, 4 * width, P, Q]
        added = self.relu(self.bn1(self.conv1(x)))
        added = self.relu(self.bn2(self.conv2(added)))
        added = self.bn3(self.conv3(added))
        added += x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(added)
        return result


class InvertedResidual(nn.Module):
    """Widens by a 1x1 convolution, filters depthwise by a 3x3 one, and narrows again.

    The input is added where the sizes are the same.
    """

    def __init__(self, channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = channels * expansion
        widen = [] if expansion == 1 else [conv_bn_relu6(channels, width, 1)]
        self.conv = nn.Sequential(
            *widen,
            conv_bn_relu6(width, width, 3, stride, groups=width),
            _conv(width, out_channels, 1),
            nn.BatchNorm2d(out_channels),
        )
        self.adds = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:  # [N, C, H, W] -> [N, out_channels, P, Q]
        result: Tensor = self.conv(x)
        return x + result if self.adds else result


def conv_bn_relu6(
    channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Returns convolution, batch normalisation and ReLU6."""
    return nn.Sequential(
        _conv(channels, out_channels, kernel_size, stride, groups),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


def draw_weights(module: nn.Module) -> None:
    """Draws convolutions' weights by He et al. 2015, by what leaves them; small ones (0.01) else.

    Convolutions' biases begin at zero.

    On the meta device nothing is drawn: that would only import torch's compiler, for a second.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear) and not layer.weight.is_meta:
            nn.init.normal_(layer.weight, std=0.01)


def _shortcut(channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out_channels:
        return None
    return nn.Sequential(_conv(channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels))


def _conv(
    channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    padding = kernel_size // 2
    return nn.Conv2d(
        channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False
    )
