"""Image classifiers as feature extractors: ResNets and MobileNets, dilated; timm's by name.

They compute what torchvision's do, by its state-dict keys; the classifier is left out. torchvision
itself takes longer to import than all else that a picture's labels need beside torch, and so does
timm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor, nn

from segdeform.errors import ConfigError
from segdeform.models.blocks import (
    BasicBlock,
    Bottleneck,
    InvertedResidual,
    conv_bn_relu6,
    draw_weights,
)
from segdeform.models.deform import Layers, choose_layers
from segdeform.models.features import Backbone, Features
from segdeform.models.mobilenet_v3 import large_features
from segdeform.models.same_padding import PaddedConv2d, make_plain
from segdeform.models.stem import deepen_first, widen_first
from segdeform.models.timm_backbone import TIMM
from segdeform.models.timm_networks import build_timm
from segdeform.models.weights import imagenet_file, load_weights

# Of the classifiers, whose random weights are drawn, too, and dropped: so a seed gives the network
# that it gives with torchvision, and has always given here.
_CLASSES = 1000
# Of MobileNetV2: expansion, channels, blocks, and stride of the first of them.
_MOBILE_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class ResNet(Backbone):
    """Is a ResNet (He et al. 2016; stride in the 3x3 convolution) without its classifier.

    The features are the outputs of layer1, layer3 and layer4, the second ones of layer2.

    Args:
        counts: blocks of the four stages.
    """

    def __init__(
        self, block: type[BasicBlock | Bottleneck], counts: Sequence[int], output_stride: int
    ) -> None:
        super().__init__()
        self.conv1: nn.Module = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        widths = [64, 128, 256, 512]
        outputs = [width * block.expansion for width in widths]
        self.layer1 = _stage(block, 64, widths[0], counts[0], 1)
        self.layer2 = _stage(block, outputs[0], widths[1], counts[1], 2)
        self.layer3 = _stage(block, outputs[1], widths[2], counts[2], 2)
        self.layer4 = _stage(block, outputs[2], widths[3], counts[3], 2)
        self.low_channels, self.second_channels, self.middle_channels, self.channels = outputs
        self.stride, self.middle_stride = output_stride, min(16, output_stride)
        nn.Linear(self.channels, _CLASSES)
        draw_weights(self)
        _dilate((self.layer2, self.layer3, self.layer4), output_stride)

    def forward(self, x: Tensor) -> Features:  # [N, C, H, W]
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        low = self.layer1(x)
        x = self.layer2(low)
        second = x if self.gives_second else None
        x = self.layer3(x)
        return Features(low, x, self.layer4(x), second)


class MobileNetV2(Backbone):
    """Is a MobileNetV2 (Sandler et al. 2018, table 2) up to its 320-channel block.

    The closing 1x1 convolution to 1280 channels belongs to the classifier and is left out, as in
    DeepLab. Features: blocks 3 (24 channels), 6 (32; the second), 13 (96) and 17 (320).
    """

    low_channels, second_channels, middle_channels, channels = 24, 32, 96, 320

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = [conv_bn_relu6(3, 32, 3, stride=2)]
        channels = 32
        for expansion, width, count, stride in _MOBILE_STAGES:
            for index in range(count):
                step = stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, width, step, expansion))
                channels = width
        closing, classifier = conv_bn_relu6(channels, 1280, 1), nn.Linear(1280, _CLASSES)
        self.features = nn.Sequential(*blocks)
        draw_weights(nn.Sequential(self.features, closing, classifier))
        self.stride, self.middle_stride = output_stride, min(16, output_stride)
        _dilate((self.features[4:7], self.features[7:14], self.features[14:]), output_stride)

    def forward(self, x: Tensor) -> Features:  # [N, C, H, W]
        taken = (3, 6, 13) if self.gives_second else (3, 13)
        outputs = {}
        for number, block in enumerate(self.features):
            x = block(x)
            if number in taken:  # all of them would be as much as the widest block takes
                outputs[number] = x
        return Features(outputs[3], outputs[13], x, outputs.get(6))


class MobileNetV3Large(Backbone):
    """Is a MobileNetV3-Large (Howard et al. 2019, table 1) up to its 1x1 convolution to 960.

    Features: blocks 3 (24 channels), 6 (40; the second), 12 (112) and that convolution. The blocks
    of its last stage have kernels of 5x5: its last 3x3 convolutions, which deform, lie in the stage
    before.
    """

    low_channels, second_channels, middle_channels, channels = 24, 40, 112, 960

    def __init__(self, output_stride: int) -> None:
        super().__init__()
        self.features = large_features()
        classifier = nn.Sequential(nn.Linear(self.channels, 1280), nn.Linear(1280, _CLASSES))
        draw_weights(nn.Sequential(self.features, classifier))
        self.stride, self.middle_stride = output_stride, min(16, output_stride)
        stages = (self.features[4:7], self.features[7:13], self.features[13:])
        _dilate(stages, output_stride, strided_too=True)

    def forward(self, x: Tensor) -> Features:  # [N, C, H, W]
        low = self.features[:4](x)
        x = self.features[4:7](low)
        second = x if self.gives_second else None
        x = self.features[7:13](x)
        return Features(low, x, self.features[13:](x), second)


BACKBONES: dict[str, Callable[[int], Backbone]] = {
    "resnet18": lambda stride: ResNet(BasicBlock, (2, 2, 2, 2), stride),
    "resnet34": lambda stride: ResNet(BasicBlock, (3, 4, 6, 3), stride),
    "resnet50": lambda stride: ResNet(Bottleneck, (3, 4, 6, 3), stride),
    "resnet101": lambda stride: ResNet(Bottleneck, (3, 4, 23, 3), stride),
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v3_large": MobileNetV3Large,
}


def build_backbone(
    name: str, weights: str, output_stride: int, channels: int = 3, *, deep_stem: bool = False
) -> Backbone:
    """Builds a backbone by its name in BACKBONES and loads its weights.

    Where pictures have other than 3 channels, its first convolution is widened as `widened` says.

    Args:
        name: one of BACKBONES, or timm/NAME.
        weights: "imagenet" (downloaded), "none" (random), or the path of a file with torchvision's
            keys, or timm's.
        output_stride: 8, 16 or 32, height of the input / height of the last features.
        deep_stem: of ResNets, as `deepen_first` says.

    Raises:
        ConfigError: timm has no such network, or one that cannot be used.
        ModelError: the file is damaged or does not fit; timm is not installed.
        DownloadError: the download failed.
    """
    backbone: Backbone
    if name.startswith(TIMM):
        backbone = build_timm(name.removeprefix(TIMM), weights, output_stride)
    else:
        backbone = BACKBONES[name](output_stride)
        if deep_stem:
            deepen_first(backbone)
        load_weights(backbone, name, weights)
    if channels != 3:
        first, *others = (m for m in backbone.modules() if isinstance(m, nn.Conv2d))
        if any(conv.in_channels == 3 for conv in others):
            raise ConfigError(
                f"{name} looks at pictures by several convolutions, which are not widened for "
                f"{channels} channels: choose another model.backbone"
            )
        make_plain(backbone, [first])  # a standardised weight would undo the widening's scale
        widen_first(backbone, channels)
    return backbone


def fetch_imagenet(name: str, output_stride: int) -> None:
    """Downloads a backbone's ImageNet weights, if they are not here yet.

    Raises as `build_backbone`.
    """
    if name.startswith(TIMM):
        build_backbone(name, "imagenet", output_stride)
    else:
        imagenet_file(name)


def set_dilation(backbone: Backbone, layers: Layers, dilation: int) -> None:
    """Gives convolutions (`choose_layers`) one dilation; sizes of the features stay."""
    for conv in choose_layers(backbone, layers, backbone.deformable_kernels).values():
        if isinstance(conv, PaddedConv2d):
            conv.dilate(dilation)
            continue
        conv.dilation = (dilation, dilation)
        conv.padding = (conv.kernel_size[0] // 2 * dilation,) * 2


def _stage(
    block: type[BasicBlock | Bottleneck], channels: int, width: int, count: int, stride: int
) -> nn.Sequential:
    """Lines up residual blocks, the first of which has the stride."""
    blocks = [block(channels, width, stride)]
    blocks += [block(width * block.expansion, width, 1) for _ in range(count - 1)]
    return nn.Sequential(*blocks)


def _dilate(stages: Iterable[nn.Module], output_stride: int, *, strided_too: bool = False) -> None:
    """Replaces the strides beyond the output stride by dilation, as torchvision does.

    All convolutions after the one that loses its stride double their dilation. That one keeps the
    dilation of its input, but for MobileNetV3, where it is doubled, too (`strided_too`). Stages
    have strides 8, 16 and 32.
    """
    dilation = 1
    for stage, stride in zip(stages, (8, 16, 32), strict=True):
        if stride <= output_stride:
            continue
        for conv in stage.modules():
            if isinstance(conv, nn.Conv2d):
                strided = conv.stride != (1, 1)
                conv.stride = (1, 1)
                side = conv.kernel_size[0]
                if side > 1:
                    rate = dilation if strided and not strided_too else 2 * dilation
                    conv.dilation, conv.padding = (rate, rate), (rate * (side // 2),) * 2
        dilation *= 2
