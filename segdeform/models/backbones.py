"""Image classifiers as feature extractors: torchvision's ResNets and MobileNetV2, dilated.

State-dict keys are torchvision's; the classifier is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor, nn
from torchvision import models as torchvision_models

from segdeform.models.deform import Layers, choose_layers
from segdeform.models.stem import widen_first
from segdeform.models.weights import load_weights


class Features(NamedTuple):
    """What the heads see: [N, C, ceil(H / stride), ceil(W / stride)] each."""

    low: Tensor  # stride 4
    middle: Tensor  # what enters the last stage; stride 16, or the output stride if smaller
    high: Tensor  # the last stage's output, at the output stride


class Backbone(nn.Module):
    """Turns pictures [N, C, H, W] into `Features`; the attributes give their channels and strides.

    A stride is exact: value i of a map stands for the pixels from i * stride on, also in the last
    row and column, which reach beyond the picture where its size is no multiple.
    """

    low_channels: int
    middle_channels: int
    channels: int
    low_stride = 4
    middle_stride: int
    stride: int


class ResNet(Backbone):
    """Takes torchvision's ResNet (He et al. 2016; stride in the 3x3 conv) without its classifier.

    The features are the outputs of layer1, layer3 and layer4.
    """

    def __init__(self, net: torchvision_models.ResNet, output_stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2 = net.layer1, net.layer2
        self.layer3, self.layer4 = net.layer3, net.layer4
        self.channels = net.fc.in_features
        self.middle_channels, self.low_channels = self.channels // 2, self.channels // 8
        self.stride, self.middle_stride = output_stride, min(16, output_stride)
        _dilate((self.layer2, self.layer3, self.layer4), output_stride)

    def forward(self, x: Tensor) -> Features:  # [N, C, H, W]
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        low = self.layer1(x)
        middle = self.layer3(self.layer2(low))
        return Features(low, middle, self.layer4(middle))


class MobileNetV2(Backbone):
    """Takes torchvision's MobileNetV2 (Sandler et al. 2018) up to its 320-channel block.

    The closing 1x1 convolution to 1280 channels belongs to the classifier and is left out, as in
    DeepLab. Features: blocks 3 (24 channels), 13 (96) and 17 (320).
    """

    low_channels, middle_channels, channels = 24, 96, 320

    def __init__(self, net: torchvision_models.MobileNetV2, output_stride: int) -> None:
        super().__init__()
        self.features = net.features[:18]
        self.stride, self.middle_stride = output_stride, min(16, output_stride)
        _dilate((self.features[4:7], self.features[7:14], self.features[14:]), output_stride)

    def forward(self, x: Tensor) -> Features:  # [N, C, H, W]
        outputs = []
        for block in self.features:
            x = block(x)
            outputs.append(x)
        return Features(outputs[3], outputs[13], outputs[17])


BACKBONES: dict[str, Callable[[int], Backbone]] = {
    "resnet18": lambda stride: ResNet(torchvision_models.resnet18(), stride),
    "resnet34": lambda stride: ResNet(torchvision_models.resnet34(), stride),
    "resnet50": lambda stride: ResNet(torchvision_models.resnet50(), stride),
    "resnet101": lambda stride: ResNet(torchvision_models.resnet101(), stride),
    "mobilenet_v2": lambda stride: MobileNetV2(torchvision_models.mobilenet_v2(), stride),
}


def build_backbone(name: str, weights: str, output_stride: int, channels: int = 3) -> Backbone:
    """Builds a backbone by its name in BACKBONES and loads its weights.

    Where pictures have other than 3 channels, its first convolution is widened as `widened` says.

    Args:
        weights: "imagenet" (downloaded), "none" (random), or the path of a file with torchvision's
            keys.
        output_stride: 8, 16 or 32, height of the input / height of the last features.

    Raises:
        ModelError: the file is damaged or does not fit.
        DownloadError: the download failed.
    """
    backbone = BACKBONES[name](output_stride)
    load_weights(backbone, name, weights)
    if channels != 3:
        widen_first(backbone, channels)
    return backbone


def set_dilation(backbone: nn.Module, layers: Layers, dilation: int) -> None:
    """Gives 3x3 convolutions (`choose_layers`) one dilation; sizes of the features stay."""
    for conv in choose_layers(backbone, layers).values():
        conv.dilation = conv.padding = (dilation, dilation)


def _dilate(stages: Iterable[nn.Module], output_stride: int) -> None:
    """Replaces the strides beyond the output stride by dilation, as torchvision does.

    The convolution that loses its stride keeps the dilation of its input; all after it double it.
    Stages have strides 8, 16 and 32.
    """
    dilation = 1
    for stage, stride in zip(stages, (8, 16, 32), strict=True):
        if stride <= output_stride:
            continue
        for conv in stage.modules():
            if isinstance(conv, nn.Conv2d):
                strided = conv.stride != (1, 1)
                conv.stride = (1, 1)
                if conv.kernel_size == (3, 3):
                    rate = dilation if strided else 2 * dilation
                    conv.dilation = conv.padding = (rate, rate)
        dilation *= 2
