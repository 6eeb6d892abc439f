"""How far a network looks against gradients: which pixels change a score at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from segdeform.config.schema import ATROUS_HEADS, DeformConfig, ModelConfig
from segdeform.models import DeepLab, build_model
from segdeform.models.receptive import reach_of
from segdeform.models.upernet import PyramidPooling


def network(backbone: str, head: str, stride: int, layers: int = 0) -> DeepLab:
    model = ModelConfig.model_validate(
        {"backbone": backbone, "weights": "none", "head": head, "output_stride": stride,
         "head_channels": 8, "aspp_rates": (1, 3) if head in ATROUS_HEADS else None}
    )  # fmt: skip
    return build_model(model, DeformConfig(layers=layers), 2, pretrained=False)


def made_linear(model: DeepLab) -> DeepLab:
    """Lets every layer add up what it sees: no gradient is cut off, none cancels."""
    for layer in list(model.modules()):
        for name, child in layer.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6 | nn.BatchNorm2d):
                setattr(layer, name, nn.Identity())
            if isinstance(child, nn.MaxPool2d):
                setattr(layer, name, nn.AvgPool2d(3, child.stride, child.padding))
            if isinstance(child, nn.AdaptiveAvgPool2d):
                setattr(layer, name, Nothing())
    for values in model.parameters():
        nn.init.constant_(values, 1.0)
    for layer in model.modules():
        if isinstance(layer, PyramidPooling):
            for values in layer.branches.parameters():
                nn.init.zeros_(values)
    return model.double().eval()


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True) * 0


@pytest.mark.parametrize(
    ("backbone", "head", "stride"),
    [("mobilenet_v2", "deeplabv3plus", 16), ("mobilenet_v2", "deeplabv3", 8),
     ("mobilenet_v2", "deeplab", 32), ("resnet18", "deeplabv3plus", 8),
     ("resnet50", "deeplabv3", 16), ("mobilenet_v2", "upernet", 32),
     ("mobilenet_v2", "upernet", 16), ("resnet18", "upernet", 8),
     ("mobilenet_v2", "segformer", 32)],
)  # fmt: skip
def test_reach_is_that_of_the_gradient(backbone: str, head: str, stride: int) -> None:
    model = network(backbone, head, stride)
    reach = reach_of(model)
    assert reach is not None
    model = made_linear(model)
    side = 2 * (reach.pixels + 2 * stride)
    images = torch.ones(1, 3, side, 3 * stride, dtype=torch.float64, requires_grad=True)
    scores = model(images).logits
    place = side // 2
    (gradient,) = torch.autograd.grad(scores[0, 0, place, 0], images)
    seen = gradient[0].abs().sum((0, 2)).nonzero().flatten()
    up, down = place - int(seen[0]), int(seen[-1]) - place
    # Of a square of `stride` pixels the first or the last is the farther one.
    assert max(up, down) <= reach.pixels + stride - 1
    assert max(up, down) >= reach.pixels - stride


def test_deformable_layers_count_as_the_plain_ones_they_begin_as() -> None:
    plain, deformable = (reach_of(network("resnet18", "deeplabv3", 16, n)) for n in (0, 3))
    assert plain == deformable


def test_reaches_written_out() -> None:
    """MobileNetV2 at stride 16: 3x3 convolutions at strides 1, 2, 2, 4, ... by hand."""
    at = [1, 2, 2, 4, 4, 8, 8, 8, 16, 16, 16, 16, 16, 16, 16, 32, 32, 32]
    reach = reach_of(network("mobilenet_v2", "deeplabv3plus", 16))
    assert reach is not None and reach.backbone == sum(at) == 245
    assert reach.head == 3 * 16 + 16 + 2 * 4  # the largest rate, enlarging, two convolutions
    assert (reach.enlarging, reach.strides, reach.pools) == (4, (4, 16), True)
    pointwise = reach_of(network("mobilenet_v2", "deeplab", 16))
    assert pointwise is not None and (pointwise.head, pointwise.pools) == (0, False)
    assert not reach.squeezes
    stages = reach_of(network("mobilenet_v2", "upernet", 32))
    # Pooling's mixing, down to the stage at 16, its smoothing, to stride 4, the last mixing.
    assert stages is not None and stages.head == 32 + 32 + 16 + 16 + 4
    assert (stages.strides, stages.grids, stages.pools) == ((4, 8, 16, 32), (1, 2, 3, 6), True)
    pointwise = reach_of(network("mobilenet_v2", "segformer", 32))
    assert pointwise is not None and (pointwise.head, pointwise.pools) == (32, False)


def test_squeezing_layers_are_named() -> None:
    reach = reach_of(network("mobilenet_v3_large", "deeplab", 16))
    assert reach is not None and reach.squeezes and not reach.pools


def test_an_unknown_network_has_no_known_reach() -> None:
    assert reach_of(nn.Conv2d(3, 3, 1)) is None
