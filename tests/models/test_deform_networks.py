"""The promise of `deformify` on networks of other people: it computes the same or is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from cuda_ops import DeformConv2d
from segdeform.errors import ConfigError
from segdeform.models.deform import deformify

# The first are small enough to be tried each time.
TORCHVISION = [
    "resnet18", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1",
    "mnasnet0_5", "regnet_y_400mf", "googlenet", "fcn_resnet50", "lraspp_mobilenet_v3_large",
    "resnet50", "resnext50_32x4d", "wide_resnet50_2", "vgg11_bn", "alexnet", "densenet121",
    "mobilenet_v3_large", "efficientnet_b0", "efficientnet_v2_s", "regnet_x_400mf",
    "inception_v3", "deeplabv3_mobilenet_v3_large",
]  # fmt: skip
TIMM = [
    "resnet26d", "ghostnet_100", "repvgg_a0", "efficientnet_lite0", "res2net50_14w_8s", "dla34",
    "hrnet_w18_small", "cspresnet50", "selecsls42", "skresnet18", "ese_vovnet19b_dw", "mixnet_s",
    "regnetz_b16", "xception41",
]  # fmt: skip


def slow_from(names: list[str], first: int) -> list[Any]:
    return [
        pytest.param(name, marks=[pytest.mark.slow] if index >= first else [])
        for index, name in enumerate(names)
    ]


def randomize(network: nn.Module) -> None:
    """Gives BatchNorm statistics and affine maps as after training, and weights that carry far.

    As some networks start, no picture makes a difference to what comes out.
    """
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(std=0.2)
            layer.running_var.uniform_(0.3, 2)
            nn.init.uniform_(layer.weight, 0.7, 1.5)
            nn.init.normal_(layer.bias, std=0.2)


def outputs(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        found = network(images)
    return found if isinstance(found, dict) else {"out": found}


def furthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference between outputs, relative to each one's own spread."""
    assert found.keys() == expected.keys()
    return max(
        float((found[k] - v).abs().max() / (v - v.mean()).abs().max()) for k, v in expected.items()
    )


def check_promise(make: Callable[[], nn.Module], size: tuple[int, int] = (95, 79)) -> None:
    torch.manual_seed(0)
    network = make().eval()
    randomize(network)
    images = torch.randn(2, 3, *size)
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    before = outputs(network, images)
    assert all(value.isfinite().all() for value in before.values())
    deformify(network, "*")
    layers = [layer for layer in network.modules() if isinstance(layer, DeformConv2d)]
    assert layers
    assert furthest(outputs(network, images), before) < 1e-4
    kept = network.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in weights.items())
    # The deformable layers are what computes: moved taps change all that comes out.
    for layer in layers:
        assert layer.offset_conv.bias is not None
        nn.init.constant_(layer.offset_conv.bias, 0.7)
    moved = outputs(network, images)
    assert all(furthest({"": moved[k]}, {"": before[k]}) > 1e-2 for k in before)


@pytest.mark.parametrize("name", slow_from(TORCHVISION, 6))
def test_networks_of_torchvision_compute_the_same(name: str) -> None:
    options = {"weights": None, "num_classes": 5}
    if name.startswith(("fcn", "lraspp", "deeplab")):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    check_promise(lambda: torchvision_models.get_model(name, **options))


@pytest.mark.parametrize("name", slow_from(TIMM, 4))
def test_networks_of_timm_compute_the_same(name: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    size = (96, 64) if name in ("dla34", "hrnet_w18_small") else (95, 79)  # these take no others
    check_promise(lambda: timm.create_model(name, num_classes=5), size)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnetv2_50x1_bit", "StdConv2d"),
        ("tf_efficientnet_lite0", "Conv2dSame"),
        ("nf_resnet26", "ScaledStdConv2d"),
    ],
)
def test_networks_of_timm_that_convolve_in_their_own_way_are_refused(name: str, kind: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    with torch.device("meta"):
        network = timm.create_model(name, num_classes=5)
    with pytest.raises(ConfigError, match=f"is a {kind}, not nn.Conv2d itself.*by name"):
        deformify(network, "*")
    assert not any(isinstance(layer, DeformConv2d) for layer in network.modules())
