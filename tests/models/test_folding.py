"""Folded networks compute what they did, from the file on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from segdeform.config.schema import DeformConfig, EvalConfig, ModelConfig
from segdeform.errors import NotFiniteError
from segdeform.inference import logits, predict_labels
from segdeform.models import build_model
from segdeform.models.deeplab import DeepLab
from segdeform.models.folding import fold_batch_norm
from segdeform.models.frozen import freeze_batch_norm
from segdeform.segmenter import ModelDescription, load, save_model
from tests.models.test_deform_networks import randomize


def network(**model: Any) -> DeepLab:
    torch.manual_seed(3)
    settings = {"backbone": "resnet18", "weights": "none", "head_channels": 16, **model}
    net = build_model(ModelConfig.model_validate(settings), DeformConfig(layers=2), 5)
    randomize(net)
    return net.eval()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "model",
    [
        {"backbone": "mobilenet_v2", "head": "deeplabv3plus"},
        {"backbone": "mobilenet_v3_large", "head": "deeplabv3plus"},
        {"backbone": "resnet18", "head": "deeplabv3", "output_stride": 8},
        {"stem": "deep", "head": "deeplabv3", "aspp_mixing": 3, "head_convs": 2},
        {"backbone": "resnet50", "head": "deeplab", "auxiliary_head": True},
        {"backbone": "mobilenet_v2", "head": "upernet", "output_stride": 32},
        {"backbone": "resnet18", "head": "segformer", "auxiliary_head": True},
    ],
)
def test_every_norm_is_folded_and_nothing_else_changes(model: dict[str, Any], frozen: bool) -> None:
    net = network(**model)
    if frozen:
        freeze_batch_norm(net)
    images = torch.rand(2, 3, 45, 70, generator=torch.Generator().manual_seed(1))
    folded = fold_batch_norm(copy.deepcopy(net))
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.inference_mode():
        expected, found = net.double()(images.double()).logits, folded(images).logits
    scale = expected.abs().max().item()
    assert scale > 1e-3
    torch.testing.assert_close(found.double(), expected.double(), atol=2e-4 * scale, rtol=0)


def test_what_is_not_known_to_follow_each_other_stays() -> None:
    class Crossed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    class Scaled(nn.Conv2d):
        pass

    untracked = nn.BatchNorm2d(4, track_running_stats=False)
    for module in (
        Crossed(),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)),
        nn.Sequential(Scaled(3, 4, 1), nn.BatchNorm2d(4)),
        nn.Sequential(nn.Conv2d(3, 4, 1), untracked),
    ):
        before = copy.deepcopy(module.state_dict())
        fold_batch_norm(module)
        after = module.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], before[key]) for key in after)


def test_a_loaded_model_is_folded_unless_it_is_to_be_trained(tmp_path: Path) -> None:
    net = network(backbone="mobilenet_v2")
    description = ModelDescription(
        model=ModelConfig(backbone="mobilenet_v2", weights="none", head_channels=16),
        deform=DeformConfig(layers=2),
        classes=("a", "b", "c", "d", "e"),
        palette=((0, 0, 0),) * 5,
    )
    save_model(tmp_path / "m", net, description)
    folded, plain = load(tmp_path / "m", "cpu"), load(tmp_path / "m", "cpu", trainable=True)
    assert plain.model.state_dict().keys() == net.state_dict().keys()
    assert len(folded.model.state_dict()) < len(net.state_dict())
    assert folded.info["parameters"] == plain.info["parameters"]
    image = np.random.default_rng(0).integers(0, 255, (50, 71, 3), dtype=np.uint8)
    torch.testing.assert_close(folded.logits(image), plain.logits(image), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        *[((48, 64), {}), ((45, 70), {}), ((1, 9), {}), ((130, 33), {})],
        *[((130, 33), {"tile": 40}), ((45, 70), {"scales": (0.5,)}), ((45, 70), {"flip": True})],
    ],
)
def test_labels_are_those_of_the_scores(size: tuple[int, int], options: dict[str, Any]) -> None:
    """The way without the scores of all pixels, against argmax over them."""
    net = network(backbone="mobilenet_v2", head="deeplabv3plus")
    image = np.random.default_rng(2).integers(0, 255, (*size, 3), dtype=np.uint8)
    pixels = torch.tensor(image).permute(2, 0, 1).float() / 255
    labels = predict_labels(net, image, EvalConfig(**options), "cpu")
    scores = logits(net, pixels, EvalConfig(**options))
    best, second = scores.sort(0, descending=True).values[:2]
    certain = ((best - second) > 1e-5 * scores.abs().max()).numpy()
    assert certain.mean() > 0.95 and (min(size) < 9 or len(np.unique(labels)) > 1)
    np.testing.assert_array_equal(labels[certain], scores.argmax(0).numpy()[certain])


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_scores_that_are_no_numbers_are_refused_without_those_of_all_pixels(value: float) -> None:
    net = network(backbone="mobilenet_v2")
    bias = next(m.bias for m in reversed(list(net.modules())) if isinstance(m, nn.Conv2d))
    assert bias is not None and bias.shape == (5,)
    bias.data[3] = value
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        predict_labels(net, np.zeros((30, 40, 3), np.uint8), EvalConfig(), "cpu")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_weights_keep_their_layout(layout: torch.memory_format) -> None:
    pair = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=layout)
    fold_batch_norm(pair)
    weight = next(pair.parameters())
    assert weight.stride() == torch.empty(4, 3, 3, 3).to(memory_format=layout).stride()
