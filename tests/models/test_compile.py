"""Whole networks with deformable layers, compiled and exported: every size, training, autocast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ops import ModulatedDeformConv2d
from segdeform.config.schema import DeformConfig, ModelConfig
from segdeform.models import build_model, deformify, freeze_batch_norm
from segdeform.models.deeplab import DeepLab
from segdeform.models.deform import deformable_layers
from segdeform.models.features import Backbone, Features
from segdeform.models.heads import DeepLabHead, conv_bn_relu

SIZES = ((65, 47), (49, 80))


@pytest.fixture(autouse=True)
def _no_graphs_of_others() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class TinyBackbone(Backbone):
    """Three convolutions with BatchNorm; strides 2, 4 and 8."""

    low_channels, middle_channels, channels = 4, 4, 4

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv_bn_relu(c, 4, 3) for c in (3, 4, 4)])

    def forward(self, x: Tensor) -> Features:
        found = []
        for stage in self.stages:
            x = F.max_pool2d(stage(x), 2, ceil_mode=True)
            found.append(x)
        return Features(*found)


def tiny() -> DeepLab:
    backbone = TinyBackbone()
    deformify(backbone, 2)
    return DeepLab(backbone, DeepLabHead(4, 3, 8), stride=8)


def resnet() -> DeepLab:
    return built(backbone="resnet18", head="deeplabv3plus", auxiliary_head=True)


def mobilenet() -> DeepLab:
    return built(backbone="mobilenet_v2", head="deeplabv3", output_stride=8)


def of_timm() -> DeepLab:
    return built(backbone="timm/test_efficientnet", head="deeplabv3plus")


def built(**keys: object) -> DeepLab:
    model = ModelConfig.model_validate(keys | {"weights": "none", "head_channels": 16})
    return build_model(model, DeformConfig.model_validate({"layers": 3}), 3)


def make(build: Callable[[], DeepLab], *, training: bool, frozen: bool) -> DeepLab:
    """Returns a network whose offsets are not zero and which leaves nothing to chance."""
    torch.manual_seed(0)
    model = build()
    for layer in model.modules():
        if isinstance(layer, nn.Dropout | nn.Dropout2d):
            layer.p = 0.0
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 2)
    for layer in deformable_layers(model).values():
        nn.init.normal_(layer.offset_conv.weight, std=0.05)
    if frozen:
        freeze_batch_norm(model.backbone)
    return model.train(training)


def logits_and_gradients(
    model: nn.Module, images: Tensor, autocast: bool, training: bool
) -> list[Tensor]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.set_grad_enabled(training):
        output = model(images)
    found = [output.logits] + ([] if output.auxiliary is None else [output.auxiliary])
    if training:
        loss = torch.stack([t.square().mean() for t in found]).sum()
        wanted = [p for p in model.parameters() if p.requires_grad]
        found += torch.autograd.grad(loss, wanted)
    return [t.detach() for t in found]


def check(
    build: Callable[[], DeepLab], backend: str, *, training: bool, frozen: bool, autocast: bool
) -> None:
    """Compares a compiled network with the network itself, at two sizes."""
    model = make(build, training=training, frozen=frozen)
    expected_of = deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    for size in SIZES:
        images = torch.rand(2, 3, *size)
        found = logits_and_gradients(compiled, images, autocast, training)
        expected = logits_and_gradients(expected_of, images, autocast, training)
        assert len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            error = (ours - theirs).norm() / theirs.norm().clamp(min=1e-6)
            assert error < (0.1 if autocast else 1e-3)
    for ours, theirs in zip(model.buffers(), expected_of.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)


def test_inductor_compiles_a_layer() -> None:
    """The least of what a C++ compiler has to do; the networks below take it minutes."""
    torch.manual_seed(0)
    layer = ModulatedDeformConv2d(4, 6, 3, padding=1, offset_groups=2).eval()
    nn.init.normal_(layer.offset_conv.weight, std=0.2)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    with torch.no_grad():
        for size in SIZES:
            images = torch.randn(2, 4, *size)
            torch.testing.assert_close(compiled(images), layer(images), rtol=1e-4, atol=1e-5)


def test_a_small_network_in_training_is_one_graph() -> None:
    check(tiny, "aot_eager", training=True, frozen=False, autocast=True)


@pytest.mark.slow
def test_a_whole_network_is_one_graph() -> None:
    check(resnet, "eager", training=False, frozen=True, autocast=True)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("training", "autocast"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("build", [tiny, resnet, mobilenet])
def test_inductor_compiles_whole_networks(
    build: Callable[[], DeepLab], training: bool, autocast: bool, frozen: bool
) -> None:
    check(build, "inductor", training=training, frozen=frozen, autocast=autocast)


@pytest.mark.parametrize(
    ("build", "strict", "training"),
    [
        (tiny, True, False),
        (of_timm, False, False),
        pytest.param(tiny, True, True, marks=pytest.mark.slow),
        pytest.param(resnet, True, False, marks=pytest.mark.slow),
        pytest.param(resnet, False, True, marks=pytest.mark.slow),
        pytest.param(mobilenet, True, False, marks=pytest.mark.slow),
    ],
)
def test_networks_export_for_every_size(
    build: Callable[[], DeepLab], strict: bool, training: bool
) -> None:
    model = make(build, training=training, frozen=True)
    sizes = dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO)
    exported = torch.export.export(
        model, (torch.rand(2, 3, *SIZES[0]),), dynamic_shapes=(sizes,), strict=strict
    ).module()
    for batch, size in zip((2, 3, 2), (*SIZES, (64, 96)), strict=True):
        images = torch.rand(batch, 3, *size)
        found = exported(images).logits if training else exported(images)
        torch.testing.assert_close(found, deepcopy(model)(images).logits)


@pytest.mark.filterwarnings(
    "ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
def test_a_network_in_evaluation_is_traced_and_its_export_saved(tmp_path: Path) -> None:
    """Both give the logits alone; in Python the network answers as ever."""
    model = make(tiny, training=False, frozen=True)
    model.auxiliary_head = DeepLabHead(4, 3, 8)
    images = torch.rand(1, 3, *SIZES[0])
    logits = model(images).logits
    with torch.no_grad():
        torch.jit.trace(model, images).save(tmp_path / "network.pt")
    torch.export.save(torch.export.export(model, (images,)), tmp_path / "network.pt2")
    torch.testing.assert_close(torch.jit.load(tmp_path / "network.pt")(images), logits)
    exported = torch.export.load(tmp_path / "network.pt2").module()(images)
    torch.testing.assert_close(exported, logits)
    assert model.train()(images.repeat(2, 1, 1, 1)).auxiliary.shape == (2, 3, *SIZES[0])
