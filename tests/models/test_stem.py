"""The first convolution for any number of channels, made from the one for RGB."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segdeform.config.schema import DeformConfig, ModelConfig
from segdeform.models import build_model
from segdeform.models.backbones import BACKBONES, ResNet, build_backbone
from segdeform.models.stem import widened

FIRST = {"resnet18": "conv1.weight", "mobilenet_v2": "features.0.0.weight"}


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
def test_grey_in_all_channels_is_answered_as_by_the_rgb_network(channels: int) -> None:
    torch.manual_seed(channels)
    kernels = torch.randn(8, 3, 7, 7)
    grey = torch.randn(2, 1, 31, 29)
    expected = F.conv2d(grey.expand(-1, 3, -1, -1), kernels, stride=2, padding=3)
    wide = widened(kernels, channels)
    answer = F.conv2d(grey.expand(-1, channels, -1, -1), wide, stride=2, padding=3)
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(wide.sum(1), kernels.sum(1), rtol=1e-4, atol=1e-5)


def test_the_first_three_channels_keep_red_green_and_blue() -> None:
    kernels = torch.randn(4, 3, 3, 3)
    wide = widened(kernels, 5)
    for channel in range(3):
        torch.testing.assert_close(wide[:, channel], kernels[:, channel] * 3 / 5)
    for channel in (3, 4):
        torch.testing.assert_close(wide[:, channel], kernels.mean(1) * 3 / 5)
    assert torch.equal(widened(kernels, 3), kernels)
    torch.testing.assert_close(widened(kernels, 1)[:, 0], kernels.sum(1))
    torch.testing.assert_close(widened(kernels, 2)[:, 1], kernels.sum(1) / 2)


@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize("channels", [1, 5])
def test_pretrained_weights_are_widened_and_nothing_else(
    name: str, channels: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    given = BACKBONES[name](16).state_dict()
    torch.save(given, tmp_path / "weights.pth")
    backbone = build_backbone(name, str(tmp_path / "weights.pth"), 16, channels)
    first = next(layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d))
    assert first.in_channels == channels
    wide = backbone.state_dict()
    assert wide.keys() == given.keys()
    for key, value in given.items():
        expected = widened(value, channels) if key == FIRST[name] else value
        assert torch.equal(wide[key], expected), key


@pytest.mark.parametrize("name", FIRST)
def test_networks_of_any_channels_are_built_also_without_memory(name: str) -> None:
    config = ModelConfig(backbone=name, weights="none", head_channels=16)  # type: ignore[arg-type]
    for channels in (1, 2, 6):
        numbers = {"mean": [0.1 * n for n in range(channels)], "std": [0.3] * channels}
        model = build_model(config, DeformConfig(layers=1), 4, **numbers).eval()
        with torch.inference_mode():
            pictures = torch.rand(1, channels, 40, 51)
            assert model(pictures).logits.shape == (1, 4, 40, 51)
        with torch.device("meta"):
            empty = build_model(config, DeformConfig(layers=1), 4, pretrained=False, **numbers)
        shapes = {key: value.shape for key, value in model.state_dict().items()}
        assert shapes == {key: value.shape for key, value in empty.state_dict().items()}
        assert empty.mean.device.type == "cpu"


@pytest.mark.parametrize("channels", [3, 5])
def test_a_deep_stem_is_three_small_convolutions_of_the_same_stride(channels: int) -> None:
    torch.manual_seed(2)
    net = build_backbone("resnet18", "none", 16, channels, deep_stem=True).eval()
    plain = build_backbone("resnet18", "none", 16, channels).eval()
    assert isinstance(net, ResNet) and isinstance(net.conv1, nn.Sequential)
    convs = [layer for layer in net.conv1 if isinstance(layer, nn.Conv2d)]
    assert [(c.in_channels, c.out_channels, c.kernel_size, c.stride) for c in convs] == [
        (channels, 32, (3, 3), (2, 2)),
        (32, 32, (3, 3), (1, 1)),
        (32, 64, (3, 3), (1, 1)),
    ]
    kinds = [type(layer) for layer in net.conv1]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU] * 2 + [nn.Conv2d]
    later = {k: v.shape for k, v in net.state_dict().items() if not k.startswith("conv1.")}
    assert later == {k: v.shape for k, v in plain.state_dict().items() if k != "conv1.weight"}
    images = torch.rand(1, channels, 45, 67)
    with torch.inference_mode():
        sizes = [features.shape for features in net(images)[:3]]
        assert sizes == [features.shape for features in plain(images)[:3]]
