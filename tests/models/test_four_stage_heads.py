"""The heads over four stages against another library's, with its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segdeform.config.schema import DeformConfig, ModelConfig
from segdeform.models import build_model
from segdeform.models.features import Features
from segdeform.models.heads import Head
from segdeform.models.segformer import SegFormerHead
from segdeform.models.upernet import UPerNetHead
from tests.models.test_deform_networks import randomize

CHANNELS, WIDTH, CLASSES = (3, 5, 7, 9), 6, 4
STRIDES = [(4, 8, 16, 32), (4, 8, 16, 16), (4, 8, 8, 8)]
KINDS = (UPerNetHead, SegFormerHead)


def stages(strides: tuple[int, ...], images: int = 2) -> list[Tensor]:
    """Draws features of a picture of 160x224 pixels, which the strides divide."""
    return [
        torch.randn(images, channels, 160 // stride, 224 // stride, dtype=torch.float64)
        for channels, stride in zip(CHANNELS, strides, strict=True)
    ]


def features(maps: list[Tensor]) -> Features:
    low, second, middle, high = maps
    return Features(low, middle, high, second)


def build(kind: type[UPerNetHead | SegFormerHead], strides: tuple[int, ...]) -> Head:
    torch.manual_seed(1)
    head = kind(CHANNELS, strides, CLASSES, WIDTH)
    randomize(head)
    nn.init.normal_(head.score.weight)
    return head.double().eval()


def give(theirs: nn.Module, ours: nn.Module) -> None:
    """Copies convolution and norm; both lie in this order."""
    tensors = list(ours.state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), tensors, strict=True)))


@pytest.mark.parametrize("strides", STRIDES)
def test_upernet_is_that_of_segmentation_models(strides: tuple[int, ...]) -> None:
    """Without its norms of the features, and the norms of its means, which here are none."""
    decoders = pytest.importorskip("segmentation_models_pytorch.decoders.upernet.decoder")
    head = build(UPerNetHead, strides)
    theirs = decoders.UPerNetDecoder([0, 0, *CHANNELS], decoder_channels=WIDTH).double().eval()
    theirs.feature_norms = nn.ModuleList(nn.Identity() for _ in CHANNELS)
    for block, branch in zip(theirs.psp.blocks, head.pyramid.branches, strict=True):
        block[1] = branch
    give(theirs.psp.out_conv, head.pyramid.mix)
    for number in range(3):
        give(theirs.fpn_lateral_blocks[2 - number].conv_norm_relu, head.laterals[number])
        give(theirs.fpn_conv_blocks[2 - number], head.smoothing[number])
    give(theirs.fusion_block, head.mix)
    maps = stages(strides)
    with torch.no_grad():
        expected = head.score(theirs([maps[0], maps[0], *maps]))
        found = head(features(maps))
    assert found.shape == (2, CLASSES, 40, 56)
    torch.testing.assert_close(found, expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


@pytest.mark.parametrize("strides", STRIDES)
def test_segformer_is_that_of_segmentation_models(strides: tuple[int, ...]) -> None:
    """Which has biases before the norm; these move its mean."""
    decoders = pytest.importorskip("segmentation_models_pytorch.decoders.segformer.decoder")
    head = build(SegFormerHead, strides)
    theirs = decoders.SegformerDecoder([0, 0, *CHANNELS], segmentation_channels=WIDTH).eval()
    give(theirs.double().fuse_stage, head.mix)
    # Theirs are in the order of their features, from the last stage on, side by side.
    weight = head.mix[0].weight.reshape(WIDTH, 4, WIDTH).flip(1)
    theirs.fuse_stage[0].weight.data = weight.reshape(WIDTH, 4 * WIDTH, 1, 1).clone()
    shift = torch.zeros(WIDTH, dtype=torch.float64)
    for number, stage in enumerate(theirs.mlp_stage):
        stage.linear.weight.data = head.project[3 - number].weight[:, :, 0, 0]
        shift += weight[:, number] @ stage.linear.bias
    theirs.fuse_stage[1].running_mean += shift.detach()
    maps = stages(strides)
    picture = torch.empty(2, 3, 160, 224)
    with torch.no_grad():
        expected = head.score(theirs([picture, torch.empty(2, 0, 80, 112), *maps]))
        found = head(features(maps))
    assert found.shape == (2, CLASSES, 40, 56)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_from_a_single_picture(kind: Any) -> None:
    torch.manual_seed(2)
    head = kind(CHANNELS, STRIDES[0], CLASSES, 16).train()
    sizes = ((17, 18), (9, 9), (5, 5), (3, 3))
    maps = [torch.randn(1, c, *size) for c, size in zip(CHANNELS, sizes, strict=True)]
    scores = head(features(maps))
    assert scores.shape == (1, CLASSES, 17, 18)
    F.cross_entropy(scores, torch.randint(CLASSES, (1, 17, 18))).backward()
    still = [n for n, p in head.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-7]
    assert not still


@pytest.mark.parametrize("head", ["upernet", "segformer"])
@pytest.mark.parametrize(
    ("backbone", "stride"),
    [("resnet18", 32), ("mobilenet_v2", 16), ("mobilenet_v3_large", 8), ("timm/test_convnext", 8)],
)
def test_a_picture_has_the_scores_that_it_has_in_a_batch(
    head: str, backbone: str, stride: int
) -> None:
    """At an odd size, by networks as the config builds them, with an auxiliary head beside it."""
    if backbone.startswith("timm"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    keys = {"backbone": backbone, "weights": "none", "head": head, "output_stride": stride,
            "head_channels": 16, "auxiliary_head": True}  # fmt: skip
    model = build_model(ModelConfig.model_validate(keys), DeformConfig(layers=2), 5)
    images = torch.rand(3, 3, 45, 71)
    randomize(model)
    output = model(images)
    assert output.logits.shape == output.auxiliary.shape == (3, 5, 45, 71)
    with torch.inference_mode():
        together = model.eval()(images).logits
        alone = torch.cat([model(each[None]).logits for each in images])
    assert (together[0] - together[1]).abs().max() > 1e-3 * together.abs().max()
    torch.testing.assert_close(alone, together, atol=1e-5 * together.abs().max().item(), rtol=1e-4)


def test_networks_whose_head_does_not_look_hold_no_second_features() -> None:
    given = {}
    for head in ("deeplab", "deeplabv3", "deeplabv3plus", "upernet", "segformer"):
        keys = {"backbone": "resnet18", "weights": "none", "head": head, "head_channels": 8}
        model = build_model(ModelConfig.model_validate(keys), DeformConfig(layers=0), 2).eval()
        with torch.inference_mode():
            given[head] = model.features(torch.rand(1, 3, 33, 40)).second is not None
    assert [head for head, is_given in given.items() if is_given] == ["upernet", "segformer"]
