"""mmsegmentation's DeepLabV3 and V3+ as functions of a state dict with its keys.

Written from its configs and layers, with none of our modules: every convolution and norm is a call
of torch's functional, and maps are resized as there, to the size wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

CONFIG = """\
norm_cfg = dict(type='SyncBN', requires_grad=True)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    pretrained='open-mmlab://resnet50_v1c',
    backbone=dict(
        type='ResNetV1c',
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        dilations={dilations},
        strides={strides},
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        norm_eval=False,
        style='pytorch',
        contract_dilation=True),
    decode_head=dict(
        type='{head}',
        in_channels=2048,
        in_index=3,
        channels={channels},
        dilations={rates},
        dropout_ratio=0.1,
        num_classes={classes},
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
train_pipeline = [dict(type='RandomFlip', prob=0.5), dict(type='PackSegInputs')]
optimizer = dict(type='SGD', lr=0.01, momentum=0.9, weight_decay=0.0005)
"""


@dataclass(frozen=True)
class Layout:
    """What the config says."""

    plus: bool = True
    deep_stem: bool = True
    strides: tuple[int, ...] = (1, 2, 1, 1)
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    rates: tuple[int, ...] = (1, 12, 24, 36)
    counts: tuple[int, ...] = (3, 4, 6, 3)
    channels: int = 20
    low_channels: int = 13
    classes: int = 7

    def config(self) -> str:
        """Returns the text that a checkpoint carries."""
        head = "DepthwiseSeparableASPPHead" if self.plus else "ASPPHead"
        text = CONFIG.format(head=head, **{k: getattr(self, k) for k in vars(self)})
        return text if self.deep_stem else text.replace("ResNetV1c", "ResNet")


class Weights:
    """Makes random tensors of a layout under mmsegmentation's names."""

    def __init__(self, layout: Layout) -> None:
        self.state: dict[str, Tensor] = {}
        self.random = torch.Generator().manual_seed(11)
        self._stem(layout)
        channels = 64
        for stage, count in enumerate(layout.counts):
            width = 64 * 2**stage
            for block in range(count):
                name = f"backbone.layer{stage + 1}.{block}"
                self._bottleneck(name, channels, width)
                channels = 4 * width
        self._head(layout)
        self._conv_bn("auxiliary_head.convs.0", 1024, 8, 3)  # is not to be read
        self._score("auxiliary_head.conv_seg", 8, layout.classes)

    def conv(self, name: str, channels: int, out: int, side: int, groups: int = 1) -> None:
        shape = (out, channels // groups, side, side)
        fan = channels // groups * side * side
        weight = torch.randn(shape, generator=self.random)
        self.state[f"{name}.weight"] = weight * (2 / fan) ** 0.5

    def norm(self, name: str, channels: int, low: float = 0.6) -> None:
        def uniform(a: float, b: float) -> Tensor:
            return torch.empty(channels).uniform_(a, b, generator=self.random)

        self.state[f"{name}.weight"] = uniform(low, low + 0.4)
        self.state[f"{name}.bias"] = uniform(-0.3, 0.3)
        self.state[f"{name}.running_mean"] = uniform(-0.2, 0.2)
        self.state[f"{name}.running_var"] = uniform(0.6, 1.4)
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(5)

    def _stem(self, layout: Layout) -> None:
        if not layout.deep_stem:
            self.conv("backbone.conv1", 3, 64, 7)
            self.norm("backbone.bn1", 64)
            return
        for index, (channels, out) in enumerate(((3, 32), (32, 32), (32, 64))):
            self.conv(f"backbone.stem.{3 * index}", channels, out, 3)
            self.norm(f"backbone.stem.{3 * index + 1}", out)

    def _bottleneck(self, name: str, channels: int, width: int) -> None:
        for number, (a, b, side) in enumerate(
            ((channels, width, 1), (width, width, 3), (width, 4 * width, 1)), start=1
        ):
            self.conv(f"{name}.conv{number}", a, b, side)
            self.norm(f"{name}.bn{number}", b, 0.1 if number == 3 else 0.6)
        if name.endswith(".0"):
            self.conv(f"{name}.downsample.0", channels, 4 * width, 1)
            self.norm(f"{name}.downsample.1", 4 * width)

    def _conv_bn(self, name: str, channels: int, out: int, side: int, groups: int = 1) -> None:
        self.conv(f"{name}.conv", channels, out, side, groups)
        self.norm(f"{name}.bn", out)

    def _separable(self, name: str, channels: int, out: int) -> None:
        self._conv_bn(f"{name}.depthwise_conv", channels, channels, 3, channels)
        self._conv_bn(f"{name}.pointwise_conv", channels, out, 1)

    def _score(self, name: str, channels: int, classes: int) -> None:
        self.conv(name, channels, classes, 1)
        self.state[f"{name}.bias"] = torch.randn(classes, generator=self.random)

    def _head(self, layout: Layout) -> None:
        width, head = layout.channels, "decode_head"
        self._score(f"{head}.conv_seg", width, layout.classes)
        self._conv_bn(f"{head}.image_pool.1", 2048, width, 1)
        for index, rate in enumerate(layout.rates):
            name = f"{head}.aspp_modules.{index}"
            if rate == 1:
                self._conv_bn(name, 2048, width, 1)
            elif layout.plus:
                self._separable(name, 2048, width)
            else:
                self._conv_bn(name, 2048, width, 3)
        self._conv_bn(f"{head}.bottleneck", (len(layout.rates) + 1) * width, width, 3)
        if layout.plus:
            self._conv_bn(f"{head}.c1_bottleneck", 256, layout.low_channels, 1)
            self._separable(f"{head}.sep_bottleneck.0", width + layout.low_channels, width)
            self._separable(f"{head}.sep_bottleneck.1", width, width)


class Forward:
    """Computes mmsegmentation's scores of normalised pictures from a state dict."""

    def __init__(self, state: dict[str, Tensor], layout: Layout) -> None:
        self.state, self.layout = state, layout

    def maps(self, images: Tensor) -> Tensor:
        """Returns the head's scores, before they are resized to the picture."""
        x, first = self.stem(images), None
        for stage in range(4):
            x = self.stage(x, stage)
            first = x if first is None else first
        assert first is not None
        return self.head(first, x)

    def logits(self, images: Tensor) -> Tensor:
        return resized(self.maps(images), images.shape[2:])

    def conv(self, x: Tensor, name: str, stride: int = 1, dilation: int = 1) -> Tensor:
        weight = self.state[f"{name}.weight"]
        padding = dilation * (weight.shape[2] // 2)
        groups = x.shape[1] // weight.shape[1]
        bias = self.state.get(f"{name}.bias")
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    def norm(self, x: Tensor, name: str) -> Tensor:
        s = self.state
        mean, variance = s[f"{name}.running_mean"], s[f"{name}.running_var"]
        return F.batch_norm(x, mean, variance, s[f"{name}.weight"], s[f"{name}.bias"])

    def conv_bn(self, x: Tensor, name: str, dilation: int = 1) -> Tensor:
        return self.norm(self.conv(x, f"{name}.conv", 1, dilation), f"{name}.bn").relu()

    def separable(self, x: Tensor, name: str, dilation: int = 1) -> Tensor:
        return self.conv_bn(
            self.conv_bn(x, f"{name}.depthwise_conv", dilation), f"{name}.pointwise_conv"
        )

    def stem(self, x: Tensor) -> Tensor:
        if self.layout.deep_stem:
            for index in (0, 3, 6):
                x = self.conv(x, f"backbone.stem.{index}", 2 if index == 0 else 1)
                x = self.norm(x, f"backbone.stem.{index + 1}").relu()
        else:
            x = self.norm(self.conv(x, "backbone.conv1", 2), "backbone.bn1").relu()
        return F.max_pool2d(x, 3, stride=2, padding=1)

    def stage(self, x: Tensor, stage: int) -> Tensor:
        dilation = self.layout.dilations[stage]
        for block in range(self.layout.counts[stage]):
            name = f"backbone.layer{stage + 1}.{block}"
            stride = self.layout.strides[stage] if block == 0 else 1
            rate = dilation // 2 if block == 0 and dilation > 1 else dilation  # contract_dilation
            y = self.norm(self.conv(x, f"{name}.conv1"), f"{name}.bn1").relu()
            y = self.norm(self.conv(y, f"{name}.conv2", stride, rate), f"{name}.bn2").relu()
            y = self.norm(self.conv(y, f"{name}.conv3"), f"{name}.bn3")
            if block == 0:
                x = self.norm(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = (x + y).relu()
        return x

    def head(self, first: Tensor, x: Tensor) -> Tensor:
        name, layout = "decode_head", self.layout
        pooled = self.conv_bn(x.mean((2, 3), keepdim=True), f"{name}.image_pool.1")
        outputs = [resized(pooled, x.shape[2:])]
        for index, rate in enumerate(layout.rates):
            module = f"{name}.aspp_modules.{index}"
            separable = layout.plus and rate > 1
            outputs.append((self.separable if separable else self.conv_bn)(x, module, rate))
        x = self.conv_bn(torch.cat(outputs, 1), f"{name}.bottleneck")
        if layout.plus:
            low = self.conv_bn(first, f"{name}.c1_bottleneck")
            x = torch.cat((resized(x, low.shape[2:]), low), 1)
            for index in (0, 1):
                x = self.separable(x, f"{name}.sep_bottleneck.{index}")
        return self.conv(x, f"{name}.conv_seg")


def resized(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)
