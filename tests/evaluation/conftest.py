"""A network whose every label is known, and a data set of two pictures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from segdeform.config.schema import EvalConfig
from segdeform.data.dataset import Dataset, Sample

CLASSES = ("dark", "light", "never")


class Output(NamedTuple):
    logits: Tensor


class Threshold(nn.Module):
    """Calls a pixel light where its red value is above one half."""

    def forward(self, images: Tensor) -> Output:
        light = (images[:, :1] - 0.5) * 10
        return Output(torch.cat([-light, light, torch.full_like(light, -9)], 1))


def segmenter(model: nn.Module | None = None, **options: Any) -> Any:
    return SimpleNamespace(
        model=(model or Threshold()).eval(),
        classes=CLASSES,
        palette=((0, 0, 0), (255, 0, 0), (0, 255, 0)),
        options=EvalConfig(**options),
        device=torch.device("cpu"),
        info={"sha256": "abc"},
        precision="fp32",
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Two pictures of other sizes; the masks are right but for 5 wrong and 7 ignored pixels."""
    samples = []
    for index, size in enumerate([(20, 30), (33, 12)]):
        labels = np.zeros(size, np.uint8)
        labels[:, ::3] = 1
        image = np.repeat(labels[:, :, None] * 200, 3, 2)
        labels[-1, : 2 + index] ^= 1
        labels[0, : 7 * index] = 255
        image_path, mask_path = tmp_path / f"{index}.png", tmp_path / f"{index}-mask.png"
        Image.fromarray(image).save(image_path)
        Image.fromarray(labels).save(mask_path)
        samples.append(Sample(f"s/{index}", image_path, mask_path))
    palette = ((0, 0, 0), (255, 0, 0), (0, 255, 0))
    return Dataset("tiny", "val", tmp_path, CLASSES, palette, tuple(samples))
