"""Offsets in good health and in bad: what is measured and said, and that it changes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cuda_ops.layers import DeformConv2d, ModulatedDeformConv2d
from segdeform.config.schema import TrainConfig
from segdeform.models import build_model, freeze_batch_norm
from segdeform.models.deform import deformable_layers
from segdeform.training.health import OffsetHealth, Warnings, Watch
from segdeform.training.loop import train
from tests.training.conftest import ReporterThat, tiny_config

OPTIONS: dict[str, Any] = {"device": "cpu", "workers": 0}


def by_loops(layer: DeformConv2d, x: torch.Tensor) -> tuple[float, float, float]:
    """Returns mean length, share outside, and the same without offsets, sample by sample."""
    offset, _ = layer.sampling(x)
    taps, lengths, moved, rest = layer.kernel_size[0] * layer.kernel_size[1], [], [], []
    height, width = x.shape[2:]
    for n, g, t, p, q in torch.cartesian_prod(
        *(torch.arange(k) for k in (len(x), layer.offset_groups, taps, *offset.shape[2:]))
    ).tolist():
        dy, dx = (float(offset[n, 2 * (g * taps + t) + axis, p, q]) for axis in (0, 1))
        i, j = divmod(t, layer.kernel_size[1])
        y = p * layer.stride[0] - layer.padding[0] + i * layer.dilation[0]
        x_at = q * layer.stride[1] - layer.padding[1] + j * layer.dilation[1]

        def outside(y: float, x_at: float) -> bool:
            return y <= -1 or y >= height or x_at <= -1 or x_at >= width

        lengths.append(math.hypot(dy, dx))
        moved.append(outside(y + dy, x_at + dx))
        rest.append(outside(y, x_at))
    return sum(lengths) / len(lengths), sum(moved) / len(moved), sum(rest) / len(rest)


@pytest.mark.parametrize("kind", [DeformConv2d, ModulatedDeformConv2d])
def test_it_is_what_loops_count(kind: Callable[..., DeformConv2d]) -> None:
    torch.manual_seed(0)
    layer = kind(6, 4, (3, 5), stride=(2, 1), padding=(3, 2), dilation=(2, 1), offset_groups=2)
    nn.init.normal_(layer.offset_conv.weight, std=0.2)
    nn.init.normal_(layer.offset_conv.bias, std=1.5)
    net, x = nn.Sequential(nn.Identity(), layer), torch.randn(2, 6, 9, 7)
    watch = Watch(net)
    with watch.during(True):
        net(x)
    (found,) = watch.read().values()
    length, outside, rest = by_loops(layer, x)
    assert found.length == pytest.approx(length, rel=1e-5)
    assert found.outside == pytest.approx(outside) and found.outside_at_rest == pytest.approx(rest)
    assert 0 < rest < 1 and outside != rest
    _, mask = layer.sampling(x)
    if mask is None:
        assert found.saturated is None and "saturated" not in found.to_json()
    else:
        with torch.no_grad():  # a third of the masks shut, a third wide open
            maps = layer.offset_conv.weight.shape[0]
            layer.offset_conv.weight[2 * maps // 3 :] = 0
            layer.offset_conv.bias[2 * maps // 3 :] = torch.tensor([-9.0, 0.5, 9.0]).repeat(10)
        with watch.during(True):
            net(x)
        assert watch.read()["1"].saturated == pytest.approx(2 / 3)
    with watch.during(False):
        net(x)
    assert watch.read() == {} and "sampling" not in vars(layer)


def test_it_is_logged_and_changes_no_bit(shapes: Path, tmp_path: Path) -> None:
    ends = []
    for every, parts in ((1, 1), (1000, 1), (2, 2)):
        run = tmp_path / f"{every}-{parts}"
        config = tiny_config(steps=4, log_every=every, lr=0.05, batch_size=4, accumulate=parts)
        train(config, shapes, run, reporter=ReporterThat(), **OPTIONS)
        ends.append((run / "model" / "model.safetensors").read_bytes())
    assert ends[0] == ends[1] != ends[2]
    for name, logged in (("1-1", 4), ("1000-1", 1), ("2-2", 2)):
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        offsets = [entry["offsets"] for entry in lines if entry["kind"] == "train"]
        assert len(offsets) == logged and len(offsets[0]) == 2
        for layer, numbers in offsets[-1].items():
            assert layer.startswith("features.")
            assert numbers.keys() == {"length", "outside", "outside_at_rest", "saturated"}
    first, last = (json.loads(line)["offsets"] for line in _trains(tmp_path / "1-1"))
    assert all(numbers["length"] == 0 for numbers in first.values())  # before the first update
    assert all(numbers["length"] > 0 for numbers in last.values())


def _trains(run: Path) -> tuple[str, str]:
    lines = [s for s in (run / "log.jsonl").read_text().splitlines() if '"train"' in s]
    return lines[0], lines[-1]


@pytest.mark.parametrize("backbone", ["mobilenet_v2", "resnet18"])
def test_layers_before_a_frozen_norm_are_seen(backbone: str) -> None:
    """Whose scale is folded into their weights, so that they are not called as modules."""
    config = tiny_config()
    model = config.model.model_copy(update={"backbone": backbone})
    network = build_model(model, config.deform, 3)
    freeze_batch_norm(network.backbone)
    watch = Watch(network.train())
    images = torch.rand(2, 3, 48, 64)
    expected = network.features(images).high
    with watch.during(True):
        assert torch.equal(network.features(images).high, expected)
    assert watch.read().keys() == deformable_layers(network.backbone).keys()


def test_a_network_without_deformable_layers_logs_none(shapes: Path, tmp_path: Path) -> None:
    config = tiny_config(steps=1)
    plain = config.model_copy(update={"deform": config.deform.model_copy(update={"layers": 0})})
    train(plain, shapes, tmp_path, reporter=ReporterThat(), **OPTIONS)
    assert "offsets" not in json.loads(_trains(tmp_path)[0])


# (length, outside, outside at rest, saturated) of real runs.
HEALTHY = [
    (0.33, 0.191, 0.306, 0.0),
    (2.51, 0.281, 0.306, 0.015),
    (2.43, 0.435, 0.306, 0.036),
    (0.0, 0.306, 0.306, 0.0),
    (3.1, 0.59, 0.306, 0.47),  # a good model of cracks, and one of membranes
    (2.2, 0.44, 0.306, 0.58),
]
AWAY = [(16.97, 0.958, 0.306, 0.952), (85.08, 0.991, 0.306, 0.956)]


@pytest.mark.parametrize("numbers", HEALTHY)
def test_healthy_offsets_are_not_told(numbers: tuple[float, float, float, float]) -> None:
    warnings = Warnings(TrainConfig(warmup_steps=20))
    assert warnings.hear(100, {"layer4.2.conv2": OffsetHealth(*numbers)}) == []


@pytest.mark.parametrize("numbers", AWAY)
def test_offsets_that_run_away_are_told_once(numbers: tuple[float, float, float, float]) -> None:
    warnings = Warnings(TrainConfig(offset_lr_factor=10, lr=0.003))
    healthy, ill = OffsetHealth(*HEALTHY[1]), OffsetHealth(*numbers)
    lines = warnings.hear(20, {"a": healthy, "b": ill})
    assert len(lines) == 2
    assert lines[0].startswith("warning: offsets run away: b (") and "31% without" in lines[0]
    assert "lower train.offset_lr_factor (10 now) or train.lr (0.003)" in lines[0]
    assert "masks are near 0 or 2" in lines[1]
    assert warnings.hear(30, {"a": healthy, "b": ill}) == []
    assert len(warnings.hear(40, {"a": ill, "b": ill})) == 2  # another layer
    for step in range(50, 150, 20):  # it comes and goes
        warnings.hear(step, {"a": healthy, "b": healthy})
        said = warnings.hear(step + 10, {"a": healthy, "b": ill})
        assert len(said) == (2 if step < 90 else 0), step


def test_v1_has_no_masks_to_tell_of() -> None:
    warnings = Warnings(TrainConfig())
    assert len(warnings.hear(9, {"a": OffsetHealth(85.0, 0.99, 0.3, None)})) == 1


def test_offsets_that_never_move_are_told_when_they_should_have() -> None:
    still = {"a": OffsetHealth(0.0, 0.3, 0.3, 0.0), "b": OffsetHealth(0.2, 0.3, 0.3, 0.0)}
    warnings = Warnings(TrainConfig(warmup_steps=50))
    assert warnings.hear(150, still) == []
    (line,) = warnings.hear(151, still)
    assert line.startswith("warning: offsets have not moved: a (") and "deform.layers" in line
    for frozen in ({"offset_lr_factor": 0}, {"backbone_lr_factor": 0}):
        assert Warnings(TrainConfig.model_validate(frozen)).hear(10**6, still) == []


def test_a_rate_that_is_much_too_high_is_told_within_a_hundred_steps(
    shapes: Path, tmp_path: Path
) -> None:
    for factor, told in ((0.1, False), (10.0, True)):
        reporter = ReporterThat()
        keys = {"optimizer": "adamw", "lr": 3e-3, "offset_lr_factor": factor}
        config = tiny_config(steps=12, schedule="constant", **keys)
        train(config, shapes, tmp_path / str(factor), reporter=reporter, **OPTIONS)
        assert any("offsets run away" in m for m in reporter.messages) == told, factor
