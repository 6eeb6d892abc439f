"""A small network with random offsets, and a picture for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from segdeform.config.schema import DeformConfig, ModelConfig
from segdeform.data.dataset import colour_map
from segdeform.models import build_model
from segdeform.segmenter import ModelDescription, Segmenter, load, save_model

CLASSES = ("ground", "<b>bike</b>", "sky")


def model_folder(
    folder: Path,
    layers: int | str | list[str],
    stride: int = 16,
    classes: tuple[str, ...] = CLASSES,
) -> Path:
    """Writes an untrained MobileNetV2 whose deformable layers move their samples by some steps."""
    torch.manual_seed(0)
    settings = {"backbone": "mobilenet_v2", "weights": "none", "head_channels": 8}
    description = ModelDescription(
        model=ModelConfig.model_validate(settings | {"output_stride": stride}),
        deform=DeformConfig.model_validate({"layers": layers}),
        classes=classes,
        palette=colour_map(len(classes)),
        training={"dataset": "shapes"},
    )
    model = build_model(description.model, description.deform, len(classes), pretrained=False)
    for name, parameter in model.named_parameters():
        if name.endswith("offset_conv.bias"):
            torch.nn.init.normal_(parameter, std=1.5)
        elif "offset_conv" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    save_model(folder, model, description)
    return folder


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("model") / "model", 3)


@pytest.fixture(scope="session")
def segmenter(folder: Path) -> Segmenter:
    return load(folder, "cpu")


@pytest.fixture(scope="session")
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (150, 210, 3)).astype(np.uint8)
