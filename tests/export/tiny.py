"""Small model folders whose layers all matter: offsets of pixels, scores of different classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from segdeform.config.schema import DeformConfig, EvalConfig, ModelConfig
from segdeform.models import build_model
from segdeform.models.deform import deformable_layers
from segdeform.segmenter import ModelDescription, save_model

CLASSES = ("ground", "Bäume", "sky", "water", "road")


def write_tiny(
    folder: Path,
    model: dict[str, Any] | None = None,
    deform: dict[str, Any] | None = None,
    classes: tuple[str, ...] = CLASSES,
    **more: Any,
) -> Path:
    """Writes a model folder of random weights; `model` and `deform` are keys of the config."""
    shape = {"backbone": "resnet18", "weights": "none", "head": "deeplab", "head_channels": 16}
    description = ModelDescription(
        model=ModelConfig.model_validate(shape | {"output_stride": 32} | (model or {})),
        deform=DeformConfig.model_validate({"layers": 2} | (deform or {})),
        classes=classes,
        palette=tuple((7 * k % 256, 3 * k % 256, 50) for k in range(len(classes))),
        eval=EvalConfig(),
        training={"dataset": "shapes"},
        **more,
    )
    torch.manual_seed(0)
    network = build_model(
        description.model,
        description.deform,
        len(classes),
        mean=description.mean,
        std=description.std,
    ).eval()
    with torch.no_grad():
        for layer in deformable_layers(network).values():
            fan_in = layer.offset_conv.weight[0].numel()
            nn.init.normal_(layer.offset_conv.weight, std=1.5 / fan_in**0.5)
            nn.init.normal_(layer.offset_conv.bias, std=0.5)
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.uniform_(norm.running_var, 0.5, 1.5)
                nn.init.normal_(norm.running_mean, std=0.1)
                nn.init.uniform_(norm.weight, 0.6, 1.2)
                nn.init.normal_(norm.bias, std=0.1)
        nn.init.normal_(network.head.score.weight, std=0.5)
    save_model(folder, network, description)
    return folder
