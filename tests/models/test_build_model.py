from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ops import DeformConv2d
from segdeform.config.schema import DeformConfig, ModelConfig
from segdeform.errors import ConfigError
from segdeform.models import build_model
from segdeform.models.deeplab import DeepLab
from segdeform.models.deform import square_convolutions
from segdeform.models.features import Backbone, Features


def config(**keys: object) -> ModelConfig:
    defaults = {"backbone": "resnet18", "weights": "none", "head_channels": 16}
    return ModelConfig.model_validate(defaults | keys)


def deform(**keys: object) -> DeformConfig:
    return DeformConfig.model_validate({"layers": 1} | keys)


@pytest.mark.parametrize("head", ["deeplab", "deeplabv3", "deeplabv3plus"])
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2", "mobilenet_v3_large"])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_every_combination_labels_pictures_of_odd_sizes(
    backbone: str, head: str, stride: int
) -> None:
    keys = {"backbone": backbone, "head": head, "output_stride": stride}
    model = build_model(config(**keys), deform(), 5).eval()
    images = torch.rand(1, 3, 45, 71)
    with torch.inference_mode():
        output = model(images)
        plain = output.logits
        channels_last = model.to(memory_format=torch.channels_last)(images).logits
    assert plain.shape == (1, 5, 45, 71) and plain.dtype == torch.float32
    assert output.auxiliary is None
    torch.testing.assert_close(
        channels_last, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item()
    )


@pytest.mark.parametrize(
    ("keys", "shapes"),
    [
        (
            {"head": "deeplabv3", "aspp_mixing": 3, "head_convs": 2},
            {
                "head.aspp.project.0.weight": (16, 5 * 16, 3, 3),
                "head.convs.1.0.weight": (16, 16, 3, 3),
            },
        ),
        (
            {"head": "deeplabv3plus", "low_channels": 13, "aspp_mixing": 3},
            {
                "head.aspp.project.0.weight": (16, 5 * 16, 3, 3),
                "head.low_level.0.weight": (13, 64, 1, 1),
                "head.decoder.0.0.0.weight": (29, 1, 3, 3),
            },
        ),
    ],
)
def test_the_parts_of_a_head_are_what_the_config_says(
    keys: dict[str, object], shapes: dict[str, tuple[int, ...]]
) -> None:
    model = build_model(config(**keys), deform(), 5)
    parameters = dict(model.named_parameters())
    assert {name: tuple(parameters[name].shape) for name in shapes} == shapes
    model(torch.rand(1, 3, 45, 71)).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v2"])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_the_auxiliary_head_works_in_training_only(backbone: str, stride: int) -> None:
    keys = {"backbone": backbone, "output_stride": stride}
    model = build_model(config(auxiliary_head=True, **keys), deform(), 5)
    output = model(torch.rand(2, 3, 40, 33))
    assert output.auxiliary.shape == output.logits.shape == (2, 5, 40, 33)
    (output.logits.sum() + output.auxiliary.sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.eval()(torch.rand(2, 3, 40, 33)).auxiliary is None


def test_logits_are_float32_under_autocast() -> None:
    model = build_model(config(), deform(layers=2), 5)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(torch.rand(2, 3, 33, 40)).logits
    logits.sum().backward()
    assert logits.dtype == torch.float32 and logits.isfinite().all()


def test_pictures_are_normalised_inside() -> None:
    class Identity(Backbone):
        def forward(self, x: Tensor) -> Features:
            return Features(x, x, x)

    class High(nn.Module):
        def forward(self, features: Features) -> Tensor:
            return features.high

    model = DeepLab(Identity(), High(), mean=(0.1, 0.2, 0.3), std=(1, 2, 4))
    logits = model(torch.full((1, 3, 2, 2), 0.5)).logits
    torch.testing.assert_close(logits[0, :, 0, 0], torch.tensor([0.4, 0.15, 0.05]))
    assert not model.state_dict()


@pytest.mark.parametrize(
    ("stride", "given", "rates"),
    [(8, None, [12, 24, 36]), (16, None, [6, 12, 18]), (32, None, [3, 6, 9]), (8, (1, 5), [1, 5])],
)
@pytest.mark.parametrize("head", ["deeplabv3", "deeplabv3plus"])
def test_the_pyramid_has_the_rates_of_its_stride_unless_others_are_given(
    head: str, stride: int, given: tuple[int, ...] | None, rates: list[int]
) -> None:
    with torch.device("meta"):
        keys = {"head": head, "output_stride": stride, "aspp_rates": given}
        model = build_model(config(**keys), deform(), 5)
    convs = [layer for layer in model.head.modules() if isinstance(layer, nn.Conv2d)]
    assert [conv.dilation[0] for conv in convs if conv.dilation != (1, 1)] == [
        rate for rate in rates if rate > 1
    ]
    branches = model.head.get_submodule("aspp.branches").children()
    assert len(list(branches)) == 1 + len(rates)


@pytest.mark.parametrize(("layers", "changed"), [(0, 3), (1, 3), (3, 3), (6, 6)])
def test_the_fixed_dilation_covers_three_layers_or_all_deformable_ones(
    layers: int, changed: int
) -> None:
    model = build_model(config(output_stride=16), deform(layers=layers, dilation=8), 5)
    convs = list(square_convolutions(model.backbone).values())
    assert [conv.dilation == (8, 8) for conv in convs].count(True) == changed
    assert all(conv.dilation == (8, 8) for conv in convs[-changed:])
    assert [isinstance(conv, DeformConv2d) for conv in convs].count(True) == layers
    assert not any(isinstance(layer, DeformConv2d) for layer in model.head.modules())


def test_named_layers_deform_and_take_the_dilation() -> None:
    chosen = deform(layers=["layer3.*.conv2", "layer4.0.conv1"], dilation=4)
    model = build_model(config(output_stride=16), chosen, 5)
    convs = square_convolutions(model.backbone)
    names = ["layer3.0.conv2", "layer3.1.conv2", "layer4.0.conv1"]
    assert [name for name, conv in convs.items() if isinstance(conv, DeformConv2d)] == names
    assert [name for name, conv in convs.items() if conv.dilation == (4, 4)] == names
    assert model(torch.rand(2, 3, 33, 47)).logits.shape == (2, 5, 33, 47)
    with pytest.raises(ConfigError, match=r"deform.layers: no 3x3 convolution is called 'layer5"):
        build_model(config(), deform(layers="layer5.*"), 5)


def test_the_papers_network_has_its_parameters() -> None:
    """Counts ResNet-101 (44,549,160 less the classifier's 2,049,000), the head, the offsets."""
    counts = []
    for layers in (0, 3):
        with torch.device("meta"):
            model = build_model(
                config(backbone="resnet101", head="deeplab", head_channels=1024),
                deform(layers=layers, variant="v1"),
                21,
                pretrained=False,
            )
        counts.append(sum(parameter.numel() for parameter in model.parameters()))
    head = 2048 * 1024 + 1024 + 1024 * 21 + 21
    assert counts[0] == 44_549_160 - 2_049_000 + head
    assert counts[1] - counts[0] == 3 * (512 * 9 * 18 + 18)


def test_pretrained_false_reads_no_weights() -> None:
    build_model(config(weights="/nowhere.safetensors"), deform(), 3, pretrained=False)


@pytest.mark.parametrize("keys", [{"layers": 99}, {"layers": 1, "offset_groups": 7}])
def test_a_deformable_part_that_does_not_suit_is_refused(keys: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"deform\."):
        build_model(config(), deform(**keys), 3)


def test_random_weights_learn() -> None:
    """Learns two pictures by heart within a few steps."""
    torch.manual_seed(0)
    model = build_model(config(backbone="mobilenet_v2"), deform(layers=2), 2)
    labels = torch.zeros(2, 48, 48, dtype=torch.long)
    labels[0, 10:30, 20:40] = labels[1, 24:, :20] = 1
    images = 0.2 * torch.rand(2, 3, 48, 48) + 0.5 * labels[:, None]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(40):
        loss = F.cross_entropy(model(images).logits, labels)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.35 * losses[0]
