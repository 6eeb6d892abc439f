"""torchvision's networks with random weights, saved and imported once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import segmentation

from segdeform.config.schema import IMAGENET_MEAN, IMAGENET_STD
from segdeform.importing.import_model import Imported, import_model

CLASSES = 21


@pytest.fixture(autouse=True, scope="package")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def normalised(images: Tensor) -> Tensor:  # [N, 3, H, W] in 0..1
    """Returns what torchvision's networks want of RGB pictures."""
    mean, std = (torch.tensor(v, dtype=images.dtype) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (images - mean.view(3, 1, 1)) / std.view(3, 1, 1)


def randomize(net: nn.Module) -> None:
    """Gives norms scales of their own and the statistics of some pictures, so that maps vary."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, norm in net.named_modules():
            if isinstance(norm, nn.BatchNorm2d):
                # Branches that are small beside what they are added to: trained networks amplify
                # rounding less than random ones.
                low, high = (0.1, 0.4) if name.endswith("bn3") else (0.5, 1.2)
                norm.weight.uniform_(low, high, generator=generator)
                norm.bias.normal_(0, 0.2, generator=generator)
                norm.momentum = 1.0
        net.train()(normalised(torch.rand(4, 3, 96, 64, generator=generator)))
    net.eval()


@pytest.fixture(scope="session")
def networks() -> Callable[[str], Any]:
    """Builds torchvision's network of a name, with an auxiliary head, once."""

    @cache
    def build(name: str) -> Any:
        torch.manual_seed(4)
        make = getattr(segmentation, name)
        net = make(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True)
        randomize(net)
        return net

    return build


@pytest.fixture(scope="session")
def files(
    networks: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Saves the network's state dict as a .pth file, once."""
    folder = tmp_path_factory.mktemp("theirs")

    @cache
    def save(name: str) -> Path:
        path = folder / f"{name}.pth"
        torch.save(networks(name).state_dict(), path)
        return path

    return save


@pytest.fixture(scope="session")
def imported(
    files: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Imported]]:
    """Imports the file as torchvision:NAME, once; returns the model folder too."""
    folder = tmp_path_factory.mktemp("ours")

    @cache
    def run(name: str) -> tuple[Path, Imported]:
        return folder / name, import_model(
            f"torchvision:{name}", folder / name, weights=files(name)
        )

    return run
