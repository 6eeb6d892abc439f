"""What a crop lets a dilated tap learn, against the gradients that it gets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segdeform.config.loading import load_draft, shipped_configs
from segdeform.config.schema import Config, DeformConfig, ModelConfig
from segdeform.models import build_model
from segdeform.models.deeplab import DeepLab
from segdeform.models.pyramid import (
    fit_to_crop,
    fitting_rates,
    fitting_tile,
    misfit,
    silence_unreachable_taps,
)

CROP = (68, 115)  # 5 x 8 values at stride 16


def network(
    *rates: int, dilation: int | None = None, head: str = "deeplabv3plus", stride: int = 16
) -> DeepLab:
    torch.manual_seed(0)
    model = ModelConfig.model_validate(
        {
            "backbone": "resnet18",
            "weights": "none",
            "head": head,
            "head_channels": 8,
            "output_stride": stride,
            "aspp_rates": rates,
        }
    )
    deform = DeformConfig.model_validate({"layers": 0, "dilation": dilation})
    return build_model(model, deform, 3)


@pytest.mark.parametrize(
    ("stride", "crop", "rates"),
    [
        (16, (512, 512), (6, 12, 18)),
        (16, (512, 1024), (6, 12, 18)),
        (16, (256, 320), (3, 6, 9)),
        (16, (240, 320), (3, 6, 8)),
        (16, (128, 128), (2, 3, 4)),
        (16, (264, 400), (3, 6, 10)),  # 17 rows, the last of them partly beyond the crop
        (8, (768, 600), (12, 24, 36)),
        (8, (256, 256), (6, 12, 18)),
        (32, (64, 500), (1, 1, 1)),
    ],
)
def test_rates_shrink_with_the_crop(
    stride: int, crop: tuple[int, int], rates: tuple[int, ...]
) -> None:
    assert fitting_rates(stride, crop) == rates


def test_fitting_rates_are_reached_in_every_crop() -> None:
    for stride in (8, 16, 32):
        for side in range(stride + 1, 700, 3):
            assert max(fitting_rates(stride, (side, 2 * side))) < -(-side // stride)


@pytest.mark.parametrize("head", ["deeplabv3", "deeplabv3plus"])
def test_silent_are_the_taps_that_get_no_gradient_in_any_crop(head: str) -> None:
    model = network(2, 5, 9, dilation=6, head=head).train()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for _ in range(3):
        model(torch.rand(2, 3, *CROP)).logits.square().sum().backward()
    silenced = silence_unreachable_taps(model, CROP)
    backbone = {"backbone.layer4.0.conv2", "backbone.layer4.1.conv1", "backbone.layer4.1.conv2"}
    assert {name for name in silenced if name.startswith("backbone")} == backbone
    assert sorted(silenced.values()) == [5, 6, 6, 6, 9]
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d) and layer.dilation != (1, 1):
            assert layer.weight.grad is not None
            dead = layer.weight.grad.abs().sum((0, 1)) == 0  # a ReLU may be dead, not a tap's all
            weight = before[f"{name}.weight"].masked_fill(dead, 0.0)
            assert torch.equal(layer.weight, weight), name
            assert dead.any() == (name in silenced)


@pytest.mark.parametrize("crop", [CROP, CROP[::-1]])
@pytest.mark.parametrize(("stride", "rates", "dead"), [(8, (5, 8, 9), 9), (32, (1, 2, 3), 3)])
def test_taps_are_silent_by_the_stride_at_which_they_work(
    stride: int, rates: tuple[int, ...], dead: int, crop: tuple[int, int]
) -> None:
    """The crop has 9 x 15 values at stride 8 and 3 x 4 at stride 32, or turned."""
    model = network(*rates, stride=stride)
    assert list(silence_unreachable_taps(model, crop).values()) == [dead]


def test_taps_that_the_crop_reaches_stay() -> None:
    model = network(2, 4, 4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert silence_unreachable_taps(model, CROP) == {}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training


def test_silencing_again_finds_nothing_to_do() -> None:
    model = network(9)
    silenced = silence_unreachable_taps(model, CROP)
    assert list(silenced.values()) == [9]
    assert "[68, 115] is a map of 5x8 at output stride 16: taps at dilation 9" in misfit(
        silenced, CROP, 16
    )
    assert silence_unreachable_taps(model, CROP) == {}


def test_larger_pictures_are_computed_without_what_the_crop_could_not_teach() -> None:
    """Random taps, as training leaves them, change a large picture and no crop."""
    model = network(3, 12).eval()
    small, large = torch.rand(1, 3, *CROP), torch.rand(1, 3, 320, 256)
    with torch.no_grad():
        before = [model(images).logits for images in (small, large)]
        silence_unreachable_taps(model, CROP)
        after = [model(images).logits for images in (small, large)]
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1], rtol=1e-2)


def test_a_config_is_fitted_to_its_crop_unless_it_says_otherwise() -> None:
    fitted = fit_to_crop(Config.model_validate({"data": {"crop": [200, 300]}}))
    assert (fitted.model.aspp_rates, fitted.eval.automatic_tile) == ((2, 5, 7), 300)
    said = {
        "data": {"crop": [200, 300]},
        "model": {"aspp_rates": [6, 12]},
        "eval": {"automatic_tile": 64, "scales": [0.5, 2]},
    }
    assert fit_to_crop(Config.model_validate(said)) == Config.model_validate(said)
    scaled = {"data": {"crop": [200, 300]}, "eval": {"scales": [0.5, 2]}}
    assert fit_to_crop(Config.model_validate(scaled)).eval.automatic_tile == 150
    paper = {"model": {"head": "deeplab"}}
    assert fit_to_crop(Config.model_validate(paper)).model.aspp_rates is None


def test_windows_are_as_large_as_the_crop_at_the_largest_scale() -> None:
    assert fitting_tile((240, 320), (1.0,)) == 320
    assert fitting_tile((128, 128), (0.5,)) == 256
    assert fitting_tile((320, 320), (0.5, 1.0, 1.75)) == 182


def test_the_shipped_configs_fit_their_crops() -> None:
    for name in shipped_configs():
        config = fit_to_crop(load_draft(name).filled())
        if config.model.aspp_rates is not None:
            rows = -(-min(config.data.crop) // config.model.output_stride)
            assert max(config.model.aspp_rates) <= 0.6 * rows
