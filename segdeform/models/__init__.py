"""Networks: `build_model` puts one together from its config sections."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from segdeform.config.schema import IMAGENET_MEAN, IMAGENET_STD, DeformConfig, ModelConfig
from segdeform.models.backbones import build_backbone, set_dilation
from segdeform.models.deeplab import DeepLab, Output
from segdeform.models.deform import choose_layers, deformify
from segdeform.models.features import Backbone
from segdeform.models.frozen import freeze_batch_norm
from segdeform.models.heads import (
    AuxiliaryHead,
    DeepLabHead,
    DeepLabV3Head,
    DeepLabV3PlusHead,
)
from segdeform.models.pyramid import ASPP_RATES
from segdeform.models.same_padding import make_plain
from segdeform.models.segformer import SegFormerHead
from segdeform.models.upernet import UPerNetHead


def build_model(
    model: ModelConfig,
    deform: DeformConfig,
    classes: int,
    *,
    pretrained: bool = True,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> DeepLab:
    """Builds the network that the config describes, in training mode, on the default device.

    Args:
        classes: K, channels of the logits.
        pretrained: False leaves `model.weights` alone: the caller fills in all weights.
        mean, std: per channel, of pictures in 0..1: RGB, or as many channels as there are numbers.

    Raises:
        ConfigError: deform.layers or deform.offset_groups do not suit the backbone.
        ModelError, DownloadError: the weights are damaged, do not fit, or cannot be fetched.
    """
    weights = model.weights if pretrained else "none"
    backbone = build_backbone(
        model.backbone,
        weights,
        model.output_stride,
        len(mean),
        deep_stem=model.stem == "deep",
    )
    kernels, layers = backbone.deformable_kernels, deform.layers
    changed = layers
    if deform.dilation is not None and isinstance(layers, int):
        changed = max(3, layers)
    make_plain(backbone, choose_layers(backbone, changed, kernels).values())
    if deform.dilation is not None:
        set_dilation(backbone, changed, deform.dilation)
    deformify(
        backbone,
        deform.layers,
        variant=deform.variant,
        offset_groups=deform.offset_groups,
        kernels=kernels,
    )
    auxiliary = None
    if model.auxiliary_head:
        auxiliary = AuxiliaryHead(backbone.middle_channels, classes, model.head_channels)
    head = _build_head(model, backbone, classes)
    backbone.gives_second = isinstance(head, UPerNetHead | SegFormerHead)
    coarse = isinstance(head, DeepLabHead | DeepLabV3Head)  # others score at the first stage's size
    return DeepLab(
        backbone,
        head,
        auxiliary,
        mean,
        std,
        stride=backbone.stride if coarse else backbone.low_stride,
        auxiliary_stride=backbone.middle_stride,
    )


def _build_head(model: ModelConfig, backbone: Backbone, classes: int) -> nn.Module:
    width, rates = model.head_channels, model.aspp_rates or ASPP_RATES[model.output_stride]
    if model.head == "deeplab":
        return DeepLabHead(backbone.channels, classes, width)
    if model.head == "deeplabv3":
        return DeepLabV3Head(
            backbone.channels,
            classes,
            width,
            rates,
            mixing=model.aspp_mixing,
            convs=model.head_convs,
        )
    if model.head in ("upernet", "segformer"):
        kind = UPerNetHead if model.head == "upernet" else SegFormerHead
        return kind(backbone.stage_channels, backbone.stage_strides, classes, width)
    return DeepLabV3PlusHead(
        backbone.channels,
        backbone.low_channels,
        classes,
        width,
        rates,
        backbone.stride // backbone.low_stride,
        reduced=model.low_channels,
        mixing=model.aspp_mixing,
    )


__all__ = [
    "DeepLab",
    "Output",
    "build_model",
    "deformify",
    "freeze_batch_norm",
]
