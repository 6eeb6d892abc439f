"""torchvision's DeepLabV3: the names of its tensors, and what its weights are.

The network here computes the same scores at the output stride. torchvision resizes them to the
picture, which squeezes them a little where the stride does not divide its sides; here they are
enlarged by the exact stride (`models.resizing`). At sizes that it divides the logits are equal.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from segdeform.config.schema import ModelConfig
from segdeform.data import voc
from segdeform.data.dataset import colour_map
from segdeform.importing.renaming import (
    Translated,
    fold_pooled_norm,
    renamed,
    resnet_of,
    size_of,
)

_RATES = (12, 24, 36)  # at every output stride
_HEAD = (
    (r"classifier\.0\.convs\.4\.1\.", "head.aspp.pooled.1."),
    (r"classifier\.0\.convs\.4\.2\.", "pooled_norm."),
    (r"classifier\.0\.convs\.([0-3])\.", r"head.aspp.branches.\1."),
    (r"classifier\.0\.project\.", "head.aspp.project."),
    (r"classifier\.1\.", "head.convs.0.0."),
    (r"classifier\.2\.", "head.convs.0.1."),
    (r"classifier\.4\.", "head.score."),
)
_AUXILIARY = (
    (r"aux_classifier\.0\.", "auxiliary_head.conv.0."),
    (r"aux_classifier\.1\.", "auxiliary_head.conv.1."),
    (r"aux_classifier\.4\.", "auxiliary_head.score."),
)
_RESNET = ((r"backbone\.(?!\d)", "backbone."),)
_MOBILENET = ((r"backbone\.(\d+)\.", r"backbone.features.\1."),)
_LICENCE = (
    "torchvision is BSD-3-Clause; weights may have terms of their own, derived from the pictures "
    "they were trained on"
)


def is_torchvision(tensors: Mapping[str, Tensor]) -> bool:
    """Tells torchvision's DeepLabV3 by its pyramid."""
    return any(name.startswith("classifier.0.convs.") for name in tensors)


def translate(tensors: Mapping[str, Tensor], source: Path) -> Translated:
    """Puts a state dict of torchvision's DeepLabV3 into our words.

    The auxiliary head is kept for ResNets; MobileNetV3's looks at other features than ours and is
    dropped.

    Raises:
        ModelError: it is another network.
    """
    rules: tuple[tuple[str, str | None], ...]
    if any(name.startswith("backbone.0.") for name in tensors):
        backbone, stride, auxiliary = "mobilenet_v3_large", 16, False
        rules = (*_MOBILENET, *_HEAD, (r"aux_classifier\.", None))
    else:
        backbone, stride = resnet_of(tensors, source), 8
        auxiliary = any(name.startswith("aux_classifier.") for name in tensors)
        rules = (*_RESNET, *_HEAD, *_AUXILIARY)
    ours = renamed(tensors, rules, source)
    fold_pooled_norm(ours, "head.aspp.pooled.1", "pooled_norm", source)
    classes = size_of(ours, "head.score.weight", 0, source)
    model = ModelConfig.model_validate(
        {
            "backbone": backbone,
            "weights": "none",
            "head": "deeplabv3",
            "head_channels": 256,
            "head_convs": 1,
            "output_stride": stride,
            "aspp_rates": _RATES,
            "auxiliary_head": auxiliary,
        }
    )
    known = classes == len(voc.CLASSES)
    return Translated(
        f"torchvision's deeplabv3_{backbone}",
        model,
        ours,
        voc.CLASSES if known else None,
        colour_map(classes) if known else None,
        _LICENCE,
    )
