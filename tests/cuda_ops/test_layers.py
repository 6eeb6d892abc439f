"""Layers that predict where they sample."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cuda_ops.layers
from cuda_ops import DeformConv2d, ModulatedDeformConv2d


@pytest.mark.parametrize("kind", [DeformConv2d, ModulatedDeformConv2d])
def test_a_fresh_layer_is_a_convolution(kind: type[DeformConv2d]) -> None:
    torch.manual_seed(0)
    geometry = {"stride": (2, 1), "padding": (1, 0), "dilation": (2, 1), "groups": 2}
    plain = nn.Conv2d(6, 4, (3, 2), **geometry)  # type: ignore[arg-type]
    layer = kind(6, 4, (3, 2), **geometry, offset_groups=3)  # type: ignore[arg-type]
    keys = layer.load_state_dict(plain.state_dict(), strict=False)
    assert keys.missing_keys == ["offset_conv.weight", "offset_conv.bias"]
    images = torch.randn(2, 6, 9, 8)
    torch.testing.assert_close(layer(images), plain(images))


def test_offset_channels_are_dy_dx_by_group() -> None:
    torch.manual_seed(0)
    layer = DeformConv2d(4, 5, 3, padding=1, offset_groups=2)
    images = torch.randn(2, 4, 12, 11)
    with torch.no_grad():
        assert layer.offset_conv.bias is not None
        layer.offset_conv.bias[18::2] = 1  # dy of the second offset group
        layer.offset_conv.bias[19::2] = -2  # dx
        found = layer(images)
        moved = images.clone()
        moved[:, 2:] = images[:, 2:].roll((-1, 2), dims=(2, 3))
        expected = F.conv2d(moved, layer.weight, layer.bias, padding=1)
    inside = (..., slice(2, -3), slice(4, -2))  # what the roll brought in stays outside
    torch.testing.assert_close(found[inside], expected[inside])


def test_the_modulation_is_twice_the_sigmoid_of_its_tap() -> None:
    torch.manual_seed(0)
    layer = ModulatedDeformConv2d(4, 6, (3, 2), padding=(1, 0), groups=2, offset_groups=2)
    images = torch.randn(1, 4, 8, 9)
    logits = torch.randn(2, 6)  # offset group, tap
    with torch.no_grad():
        assert layer.offset_conv.bias is not None
        layer.offset_conv.bias[24:] = logits.flatten()
        # With as many weight groups as offset groups: outputs 0-2 see group 0, 3-5 group 1.
        factors = (2 * logits.sigmoid()).view(2, 1, 1, 3, 2).expand(2, 3, 2, 3, 2).flatten(0, 1)
        expected = F.conv2d(images, layer.weight * factors, layer.bias, padding=(1, 0), groups=2)
        torch.testing.assert_close(layer(images), expected)


@pytest.mark.parametrize("kind", [DeformConv2d, ModulatedDeformConv2d])
def test_gradients_reach_the_offset_branch_from_the_start(kind: type[DeformConv2d]) -> None:
    torch.manual_seed(0)
    layer = kind(3, 4, 3, padding=1)
    layer(torch.randn(2, 3, 7, 6)).square().sum().backward()
    branch = layer.offset_conv.weight.grad
    assert branch is not None
    assert all(channel.abs().max() > 0 for channel in branch)
    assert layer.weight.grad is not None and layer.bias is not None and layer.bias.grad is not None


def test_offsets_stay_float32_under_autocast() -> None:
    torch.manual_seed(0)
    layer = ModulatedDeformConv2d(8, 8, 3, padding=1)
    nn.init.normal_(layer.offset_conv.weight, std=10)  # far offsets, where bfloat16 is too coarse
    images = torch.randn(1, 8, 9, 9).bfloat16()
    exact, _ = layer.sampling(images.float())
    with torch.autocast("cpu", torch.bfloat16):
        offset, mask = layer.sampling(images)
        output: Tensor = layer(images)
        torch.autograd.backward(output.float().sum())
    assert mask is not None and offset.dtype == mask.dtype == torch.float32
    torch.testing.assert_close(offset, exact)
    assert output.isfinite().all()
    assert (
        layer.offset_conv.weight.grad is not None and layer.offset_conv.weight.grad.isfinite().all()
    )


def test_offset_groups_that_do_not_divide_are_named() -> None:
    with pytest.raises(ValueError, match="must divide the 6 input channels, not 4"):
        DeformConv2d(6, 4, 3, offset_groups=4)


def _load(layer: nn.Module) -> None:
    layer.load_state_dict({k: v + 1 for k, v in layer.state_dict().items()})


def _in_place(layer: nn.Module) -> None:
    with torch.no_grad():
        next(layer.parameters()).add_(1)


def _by_data(layer: nn.Module) -> None:
    next(layer.parameters()).data[0, 0, 0, 0] += 1


def _replaced(layer: nn.Module) -> None:
    layer.weight = nn.Parameter(torch.randn_like(layer.weight))


def _trained(layer: nn.Module) -> None:
    layer.train()
    loss = layer(torch.randn(1, 8, 6, 6)).square().sum()
    loss.backward()
    torch.optim.SGD(layer.parameters(), 0.1).step()
    layer.eval()


def _cast(layer: nn.Module) -> None:
    layer.double().float()
    _in_place(layer)


@pytest.mark.parametrize(
    "change", [_load, _in_place, _by_data, _replaced, _trained, _cast], ids=lambda f: f.__name__
)
def test_a_changed_weight_is_seen_in_evaluation(change: Callable[[nn.Module], None]) -> None:
    torch.manual_seed(0)
    layer = ModulatedDeformConv2d(8, 12, 3, padding=1).eval()
    nn.init.normal_(layer.offset_conv.weight, std=0.1)
    images = torch.randn(2, 8, 7, 6)
    with torch.inference_mode():
        before = layer(images)
        assert torch.equal(layer(images), before)
    change(layer)
    with torch.inference_mode():
        offset, mask = layer.sampling(images)
        expected = cuda_ops.deform_conv2d(
            images, offset, layer.weight, layer.bias, padding=1, mask=mask
        )
        assert torch.equal(layer(images), expected)
    assert not torch.equal(before, expected)


def test_evaluation_packs_the_weight_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    def spy(*args: object, packing: object, **kwargs: object) -> Tensor:
        given.append(packing)
        return torch.zeros(())

    monkeypatch.setattr(cuda_ops.layers, "deform_conv2d", spy)
    layer, images = DeformConv2d(3, 4, 3), torch.randn(1, 3, 5, 5)
    layer(images)
    layer.eval()
    layer(images), layer(images)
    layer.train()
    layer(images)
    assert given[0] is None and given[1] is given[2] is not None and given[3] is None


def test_a_layer_in_use_is_copied_and_saved_without_its_packing() -> None:
    layer = DeformConv2d(64, 64, 3, padding=1).eval()
    with torch.no_grad():
        layer(torch.randn(1, 64, 4, 4))
    file = io.BytesIO()
    torch.save(copy.deepcopy(layer), file)
    parameters = sum(4 * p.numel() for p in layer.parameters())
    assert file.tell() < 1.1 * parameters + 10_000


def test_mmcv_golden_numbers() -> None:
    """The input, parameters and results of the test of mmcv's DeformConv2dPack, for ten images."""
    layer = DeformConv2d(1, 1, 2, bias=False).double()
    branch = layer.offset_conv
    assert branch.bias is not None
    weights = [
        [0.1, 0.4, 0.6, 0.1], [0.3, 0.2, 0.1, 0.3], [0.5, 0.5, 0.2, 0.8], [0.8, 0.3, 0.9, 0.1],
        [0.3, 0.1, 0.2, 0.5], [0.3, 0.7, 0.5, 0.3], [0.6, 0.2, 0.5, 0.3], [0.4, 0.1, 0.8, 0.4],
    ]  # fmt: skip
    with torch.no_grad():
        branch.weight.copy_(torch.tensor(weights).reshape(8, 1, 2, 2))
        branch.bias.copy_(torch.tensor([0.7, 0.1, 0.8, 0.5, 0.6, 0.5, 0.4, 0.7]))
        layer.weight.copy_(torch.tensor([0.4, 0.2, 0.1, 0.9]).reshape(1, 1, 2, 2))
    image = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 2.0], [3.0, 5.0, 2.0]], dtype=torch.float64)
    images = image.expand(10, 1, 3, 3).clone().requires_grad_()
    output = layer(images)
    output.sum().backward()

    def close(found: Tensor | None, expected: list[list[float]]) -> None:
        assert found is not None
        wanted = torch.tensor(expected, dtype=torch.float64).reshape(found.shape)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-6)

    assert images.grad is not None and branch.weight.grad is not None
    assert branch.bias.grad is not None and layer.weight.grad is not None
    for n in range(10):
        close(output[n], [[1.65, 0], [0, 0]])
        close(images.grad[n], [[-0.666, 0.204, 0], [0.03, -0.416, 0.012], [0, 0.252, 0.129]])
    close(layer.weight.grad / 10, [[3.62, 0], [0.40, 0.18]])
    close(branch.bias.grad / 10, [[1.44, -0.72, 0, 0, -0.10, -0.08, -0.54, -0.54]])
    offsets = [
        [1.44, 2.88, 0, 1.44], [-0.72, -1.44, 0, -0.72], [0, 0, 0, 0], [0, 0, 0, 0],
        [-0.10, -0.20, 0, -0.10], [-0.08, -0.16, 0, -0.08],
        [-0.54, -1.08, 0, -0.54], [-0.54, -1.08, 0, -0.54],
    ]  # fmt: skip
    close(branch.weight.grad / 10, offsets)
