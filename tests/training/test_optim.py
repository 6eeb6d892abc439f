from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, PolynomialLR

from segdeform.config.schema import TrainConfig
from segdeform.models import build_model, freeze_batch_norm
from segdeform.training.optim import (
    build_optimizer,
    learning_rate_factor,
    parameter_groups,
    set_learning_rate,
)
from tests.training.conftest import tiny_config


def _torch_rates(make: type[LRScheduler], steps: int, lr: float, **options: float) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = make(optimizer, **options)  # type: ignore[arg-type]
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


def test_poly_is_torchs() -> None:
    train = TrainConfig(steps=20, lr=0.3, schedule="poly", poly_power=0.9, min_lr_factor=0)
    theirs = _torch_rates(PolynomialLR, 20, 0.3, total_iters=20, power=0.9)
    assert [0.3 * learning_rate_factor(train, s) for s in range(20)] == pytest.approx(theirs)


def test_cosine_is_torchs() -> None:
    train = TrainConfig(steps=20, lr=0.3, schedule="cosine", min_lr_factor=0.1)
    theirs = _torch_rates(CosineAnnealingLR, 20, 0.3, T_max=20, eta_min=0.03)
    assert [0.3 * learning_rate_factor(train, s) for s in range(20)] == pytest.approx(theirs)


def test_poly_by_hand_with_floor_and_warmup() -> None:
    train = TrainConfig(steps=100, poly_power=2, min_lr_factor=0.2, warmup_steps=4)
    # 0.2 + 0.8 (1 - s/100)^2, times 1/4, 2/4, 3/4 in the first three steps
    assert learning_rate_factor(train, 0) == pytest.approx(0.25)
    assert learning_rate_factor(train, 2) == pytest.approx(0.75 * (0.2 + 0.8 * 0.98**2))
    assert learning_rate_factor(train, 3) == pytest.approx(0.2 + 0.8 * 0.97**2)
    assert learning_rate_factor(train, 50) == pytest.approx(0.4)
    assert learning_rate_factor(train, 99) == pytest.approx(0.20008)


def test_constant() -> None:
    train = TrainConfig(steps=10, schedule="constant", min_lr_factor=0.1)
    assert {learning_rate_factor(train, s) for s in range(10)} == {1.0}


@pytest.mark.parametrize("freeze", [False, True])
def test_each_trainable_parameter_is_in_one_group(freeze: bool) -> None:
    config = tiny_config()
    model = build_model(config.model, config.deform, 7)
    if freeze:
        freeze_batch_norm(model.backbone)
    counts = Counter(
        id(p) for group in parameter_groups(model, config.train) for p in group["params"]
    )
    wanted = [id(p) for p in model.parameters() if p.requires_grad]
    assert counts == Counter(wanted)


def test_rates_and_decay_of_named_parameters() -> None:
    config = tiny_config(lr=0.5, backbone_lr_factor=0.2, offset_lr_factor=0.3, weight_decay=0.7)
    model = build_model(config.model, config.deform, 7)
    optimizer = build_optimizer(model, config.train)
    assert set_learning_rate(optimizer, config.train, 0) == 0.5
    found = {
        id(p): (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        rate, decay = found[id(parameter)]
        expected = 0.5 * (0.2 if name.startswith("backbone.") else 1)
        expected *= 0.3 if ".offset_conv." in name else 1
        assert rate == pytest.approx(expected), name
        assert decay == (0.7 if parameter.dim() == 4 else 0.0), name
    assert any(math.isclose(rate, 0.03) for rate, _ in found.values()), "no offset branch"


@pytest.mark.parametrize(
    ("backbone", "depths"),
    [
        ("resnet18", {"conv1": 5, "bn1": 5, "layer1.0.conv1": 4, "layer4.1.conv2": 1}),
        ("mobilenet_v2", {"features.0.0": 18, "features.1.conv.1": 17, "features.17.conv.2": 1}),
    ],
)
def test_parts_nearer_to_the_pictures_learn_slower(backbone: str, depths: dict[str, int]) -> None:
    config = tiny_config(layer_decay=0.5, backbone_lr_factor=0.25, offset_lr_factor=0.125)
    model = config.model.model_copy(update={"backbone": backbone})
    network = build_model(model, config.deform, 4)
    groups = parameter_groups(network, config.train)
    factors = {id(p): group["lr_factor"] for group in groups for p in group["params"]}
    for name, depth in depths.items():
        weight = network.backbone.get_submodule(name).weight
        assert factors[id(weight)] == 0.25 * 0.5**depth, name
    for name, parameter in network.named_parameters():
        if "offset_conv" in name:
            layer = name.partition(".offset_conv")[0]
            around = network.get_submodule(layer).weight
            assert factors[id(parameter)] == 0.125 * factors[id(around)]
        elif not name.startswith("backbone."):
            assert factors[id(parameter)] == 1.0
