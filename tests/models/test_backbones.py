from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from segdeform.config.schema import BackboneName
from segdeform.errors import ConfigError
from segdeform.models.backbones import BACKBONES, build_backbone, set_dilation
from segdeform.models.deform import square_convolutions
from segdeform.models.weights import CLASSIFIER

SMALL = ("resnet18", "resnet34", "resnet50", "mobilenet_v2", "mobilenet_v3_large")


def classify(net: Any, high: Tensor) -> Tensor:
    """Finishes torchvision's classifier from the last features."""
    if isinstance(net, torchvision_models.ResNet):
        high = net.fc(net.avgpool(high).flatten(1))
    elif isinstance(net, torchvision_models.MobileNetV3):
        high = net.classifier(net.avgpool(high).flatten(1))
    else:
        high = net.classifier(net.features[18](high).mean((2, 3)))
    return high


@pytest.mark.parametrize("name", SMALL)
def test_features_are_those_of_torchvision(name: str) -> None:
    """The same keys in the same order, the same random start of a seed, and the same outputs."""
    torch.manual_seed(3)
    net = torchvision_models.get_model(name)
    drawn_next = torch.rand(4)
    torch.manual_seed(3)
    backbone = build_backbone(name, "none", 32)
    assert torch.equal(torch.rand(4), drawn_next)
    theirs = {k: v for k, v in net.state_dict().items() if not k.startswith(CLASSIFIER)}
    ours = backbone.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], value) for key, value in theirs.items())
    images = torch.randn(2, 3, 65, 97)
    for training in (True, False):  # statistics of the first are used by the second
        net.train(training)
        backbone.train(training)
        with torch.no_grad():
            features = backbone(images)
            if not training:
                torch.testing.assert_close(classify(net, features.high), net(images))
            else:
                net(images)
    assert features.low.shape == (2, backbone.low_channels, 17, 25)
    assert features.middle.shape == (2, backbone.middle_channels, 5, 7)
    assert features.high.shape == (2, backbone.channels, 3, 4)


def test_the_largest_backbone_has_torchvisions_keys() -> None:
    with torch.device("meta"):
        net = torchvision_models.resnet101()
        backbone = build_backbone("resnet101", "none", 32)
    theirs = {k: v.shape for k, v in net.state_dict().items() if not k.startswith(CLASSIFIER)}
    assert {k: v.shape for k, v in backbone.state_dict().items()} == theirs


@pytest.mark.parametrize(("stride", "replaced"), [(16, (0, 0, 1)), (8, (0, 1, 1))])
def test_dilation_is_laid_out_as_torchvision_does(stride: int, replaced: tuple[int, ...]) -> None:
    net = torchvision_models.resnet50(replace_stride_with_dilation=[bool(x) for x in replaced])
    backbone = build_backbone("resnet50", "none", stride)
    theirs = {k: m for k, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    ours = {k: m for k, m in backbone.named_modules() if isinstance(m, nn.Conv2d)}
    assert {k: str(m) for k, m in ours.items()} == {k: str(m) for k, m in theirs.items()}


def test_mobilenet_v3_is_dilated_as_in_torchvisions_dense_predictors() -> None:
    net = torchvision_models.mobilenet_v3_large(dilated=True)
    backbone = build_backbone("mobilenet_v3_large", "none", 16)
    assert backbone.low_stride == 4 and backbone.stride == backbone.middle_stride == 16
    theirs = {k: m for k, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    ours = {k: m for k, m in backbone.named_modules() if isinstance(m, nn.Conv2d)}
    assert {k: str(m) for k, m in ours.items()} == {k: str(m) for k, m in theirs.items()}
    backbone.load_state_dict(
        {k: v for k, v in net.state_dict().items() if not k.startswith(CLASSIFIER)}
    )
    images = torch.randn(1, 3, 61, 90)
    with torch.inference_mode():
        features = backbone.eval()(images)
        expected = net.eval().features[:4](images)
        torch.testing.assert_close(features.low, expected)
        torch.testing.assert_close(features.high, net.features[4:](expected))


def test_mobilenet_v3_at_stride_8_dilates_all_that_follow() -> None:
    backbone = build_backbone("mobilenet_v3_large", "none", 8)
    convs = [m for m in backbone.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert [conv.dilation[0] for conv in convs] == [1] * 6 + [2] * 6 + [4] * 3
    assert [conv.kernel_size[0] for conv in convs[-4:]] == [3, 5, 5, 5]
    high = backbone.eval()(torch.randn(1, 3, 61, 90)).high
    assert high.shape == (1, 960, 8, 12)


@pytest.mark.parametrize("name", [name for name in SMALL if "v3" not in name])
def test_a_smaller_output_stride_computes_the_same_more_densely(name: str) -> None:
    """Dilating after a removed stride gives the strided network's values at every other place."""
    torch.manual_seed(0)
    coarse = build_backbone(name, "none", 32).eval().double()
    images = torch.randn(1, 3, 67, 32, dtype=torch.float64)
    with torch.inference_mode():
        expected = coarse(images).high
        for stride in (16, 8):
            dense = build_backbone(name, "none", stride).eval().double()
            dense.load_state_dict(coarse.state_dict())
            high = dense(images).high
            step = 32 // stride
            assert high.shape[2:] == (-(-67 // stride), 32 // stride)
            torch.testing.assert_close(high[..., ::step, ::step], expected)


@pytest.mark.parametrize("stride", [8, 32])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_large"])
def test_the_second_features_are_the_last_at_stride_8(name: str, stride: int) -> None:
    """Against torchvision's own stages; and where nobody asks for them there are none."""
    torch.manual_seed(1)
    net: Any = torchvision_models.get_model(name).eval()
    backbone = build_backbone(name, "none", stride).eval()
    backbone.load_state_dict(
        {k: v for k, v in net.state_dict().items() if not k.startswith(CLASSIFIER)}
    )
    images = torch.randn(1, 3, 61, 90)
    with torch.inference_mode():
        assert backbone(images).second is None
        backbone.gives_second = True
        features = backbone(images)
        if isinstance(net, torchvision_models.ResNet):
            net = nn.Sequential(*list(net.children())[:6])
        else:
            net = net.features[:7]
        torch.testing.assert_close(features.second, net(images))
    for values, channels, step in zip(
        features.stages, backbone.stage_channels, backbone.stage_strides, strict=True
    ):
        assert values.shape == (1, channels, -(-61 // step), -(-90 // step))
    assert backbone.stage_strides == (4, 8, min(16, stride), stride)


def test_every_backbone_is_known_to_the_config() -> None:
    assert set(BACKBONES) == set(get_args(BackboneName))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "mobilenet_v3_large"])
def test_a_fixed_dilation_of_the_last_layers_keeps_sizes(name: str) -> None:
    backbone = build_backbone(name, "none", 32).eval()
    before = [conv.dilation for conv in square_convolutions(backbone).values()]
    images = torch.randn(1, 3, 65, 65)
    with torch.inference_mode():
        high = backbone(images).high
        set_dilation(backbone, 4, 6)  # with resnet18 one of them has a stride
        assert backbone(images).high.shape == high.shape
    after = [conv.dilation for conv in square_convolutions(backbone).values()]
    assert after == [*before[:-4], *[(6, 6)] * 4]
    with pytest.raises(ConfigError, match="99"):
        set_dilation(backbone, 99, 2)
