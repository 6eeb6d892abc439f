from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torchvision import models as torchvision_models

from cuda_ops import DeformConv2d
from segdeform.errors import ConfigError
from segdeform.models.deform import Layers, deformable_layers, deformify, square_convolutions

Variant = Literal["v1", "v2"]


def user_network() -> nn.Sequential:
    """Returns 3x3 convolutions with a stride, groups, a dilation, a bias, and padding as a word."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=(2, 1), padding=(1, 0)),
        nn.ReLU(),
        nn.Conv2d(6, 4, 5, padding=2),
        nn.Sequential(nn.Conv2d(4, 8, 3, padding=(2, 1), dilation=(2, 1), groups=2, bias=False)),
        nn.Conv2d(8, 6, 3, padding="same", dilation=2),
        nn.Conv2d(6, 2, 1),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": torchvision_models.resnet18,
    "resnet50": torchvision_models.resnet50,
    "mobilenet_v2": torchvision_models.mobilenet_v2,
    "user": user_network,
}


@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_fresh_deformable_network_computes_what_it_did(name: str, variant: Variant) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    images = torch.randn(2, 3, 65, 47)
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.inference_mode():
        before = network(images)
        after = deformify(network, 3, variant=variant)(images)
    assert sum(isinstance(layer, DeformConv2d) for layer in network.modules()) == 3
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    kept = network.state_dict()
    assert all(torch.equal(kept[key], value) for key, value in weights.items())
    assert all(".offset_conv." in key for key in kept.keys() - weights.keys())


def test_the_geometry_of_the_replaced_layer_stays() -> None:
    network = deformify(user_network(), 3)
    layers = list(square_convolutions(network).values())
    assert [layer.stride for layer in layers] == [(2, 1), (1, 1), (1, 1)]
    assert [layer.padding for layer in layers] == [(1, 0), (2, 1), (2, 2)]
    assert [layer.dilation for layer in layers] == [(1, 1), (2, 1), (2, 2)]
    assert [layer.groups for layer in layers] == [1, 2, 1]
    assert [layer.bias is not None for layer in layers] == [True, False, True]


def test_the_last_layers_deform_and_doing_it_twice_changes_nothing() -> None:
    network = user_network()
    deformify(network, 1)
    first = network[4]
    assert isinstance(first, DeformConv2d) and isinstance(network[0], nn.Conv2d)
    deformify(network, 2)
    assert network[4] is first and isinstance(network.get_submodule("3.0"), DeformConv2d)
    deformify(network, 2)
    assert len(square_convolutions(network)) == 3 and isinstance(network[0], nn.Conv2d)
    assert deformify(network, 0) is network


def test_a_shared_layer_is_replaced_everywhere() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    network = nn.ModuleDict({"a": conv, "b": nn.Sequential(conv, nn.ReLU())})
    deformify(network, 1)
    assert isinstance(network["a"], DeformConv2d)
    assert network.get_submodule("b.0") is network["a"]


@pytest.mark.parametrize(
    ("network", "layers", "groups", "message"),
    [
        (nn.Conv2d(3, 3, 3), 1, 1, "single layer"),
        (user_network(), 4, 1, "deform.layers is 4; the network has 3"),
        (user_network(), -1, 1, "deform.layers is -1"),
        (user_network(), 3, 2, "deform.offset_groups is 2"),
        (nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")), 1, 1, "'reflect'"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3))),
            1,
            1,
            "computes its weight",
        ),
    ],
)
def test_what_cannot_deform_is_refused_untouched(
    network: nn.Module, layers: int, groups: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        deformify(network, layers, offset_groups=groups)
    assert not any(isinstance(layer, DeformConv2d) for layer in network.modules())


def named_network() -> nn.ModuleDict:
    stage = nn.ModuleDict({
        "conv1": nn.Conv2d(3, 4, 3, padding=1), "conv2": nn.Conv2d(4, 4, 3, padding=1),
        "down": nn.Conv2d(4, 4, 1),
    })  # fmt: skip
    other = nn.ModuleDict({"conv1": nn.Conv2d(4, 4, 3), "conv2": nn.Conv2d(4, 6, 3)})
    return nn.ModuleDict({"stage1": stage, "stage2": other})


@pytest.mark.parametrize(
    ("layers", "chosen"),
    [
        ("*.conv2", ["stage1.conv2", "stage2.conv2"]),
        ("stage1.*", ["stage1.conv1", "stage1.conv2"]),  # the 1x1 convolution stays
        (("stage2.conv1",), ["stage2.conv1"]),
        (["stage2.conv2", "stage1.conv[1]"], ["stage1.conv1", "stage2.conv2"]),
        ("*", ["stage1.conv1", "stage1.conv2", "stage2.conv1", "stage2.conv2"]),
        (1, ["stage2.conv2"]),
        (3, ["stage1.conv2", "stage2.conv1", "stage2.conv2"]),
        (0, []),
    ],
)
def test_layers_are_chosen_by_name_or_number_and_told(
    layers: Layers, chosen: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "segdeform.models.deform")
    network = deformify(named_network(), layers)
    assert list(deformable_layers(network)) == chosen
    assert caplog.messages == [f"deformable layers: {', '.join(chosen) or 'none'}"]
    deformify(network, layers)  # those that deform already count and stay
    assert list(deformable_layers(network)) == chosen


def test_a_name_that_no_layer_has_is_refused() -> None:
    network = named_network()
    names = "stage1.conv1, stage1.conv2, stage2.conv1, stage2.conv2"
    for layers in ("stage3.*", ["stage1.*", "stage3.*"]):
        with pytest.raises(ConfigError, match=rf"is called 'stage3.\*'; there are {names}"):
            deformify(network, layers)
    with pytest.raises(ConfigError, match=r"is called 'stage1\.down'"):
        deformify(network, "stage1.down")
    with pytest.raises(ConfigError, match="the network has none"):
        deformify(nn.Sequential(nn.Conv2d(3, 3, 1)), "*")
    with pytest.raises(ConfigError, match="a number or patterns of names"):
        deformify(network, [1, 2])  # type: ignore[list-item]
    assert not deformable_layers(network)


class StandardizedConv2d(nn.Conv2d):
    """Convolves with a weight that it makes anew in each call."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


def test_a_subclass_is_refused_by_name_and_others_may_be_chosen() -> None:
    network = named_network()
    network["stage2"]["conv2"] = StandardizedConv2d(4, 6, 3)
    refusal = r"stage2.conv2 is a StandardizedConv2d, not nn.Conv2d itself.*choose .* by name"
    with pytest.raises(ConfigError, match=refusal):
        deformify(network, 1)
    assert not deformable_layers(network)
    assert list(deformable_layers(deformify(network, "*.conv1"))) == [
        "stage1.conv1",
        "stage2.conv1",
    ]


def _hooked(conv: nn.Conv2d) -> None:
    conv.register_forward_hook(lambda _, __, output: 2 * output)


def _hooked_before(conv: nn.Conv2d) -> None:
    conv.register_forward_pre_hook(lambda _, given: (2 * given[0],))


def _hooked_backward(conv: nn.Conv2d) -> None:
    conv.register_full_backward_hook(lambda _, grads, __: (2 * grads[0],))


def _patched(conv: nn.Conv2d) -> None:
    conv.forward = lambda x: x  # type: ignore[method-assign]


def _adapted(conv: nn.Conv2d) -> None:
    conv.adapter = nn.Conv2d(4, 6, 1)


def _scaled(conv: nn.Conv2d) -> None:
    conv.register_parameter("scale", nn.Parameter(torch.ones(())))


@pytest.mark.parametrize(
    "change", [_hooked, _hooked_before, _hooked_backward, _patched, _adapted, _scaled]
)
def test_a_layer_that_does_more_than_convolve_is_refused(
    change: Callable[[nn.Conv2d], None],
) -> None:
    network = named_network()
    change(network["stage2"]["conv2"])
    with pytest.raises(ConfigError, match=r"stage2\.conv2 carries hooks, parts or a forward"):
        deformify(network, 2)
    assert not deformable_layers(network)


def test_an_unknown_variant_is_refused() -> None:
    with pytest.raises(ConfigError, match="'v3'"):
        deformify(user_network(), 1, variant="v3")  # type: ignore[arg-type]
