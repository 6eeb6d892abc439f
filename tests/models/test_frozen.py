"""Frozen BatchNorm: learns nothing, computes the same, also folded into convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cuda_ops import DeformConv2d
from segdeform.models.backbones import build_backbone
from segdeform.models.deform import deformify
from segdeform.models.frozen import FoldedSequential, freeze_batch_norm


def test_frozen_batch_norm_stays_frozen_in_training() -> None:
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", "none", 16)
    backbone(torch.randn(4, 3, 32, 32))  # statistics of their own
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    expected = backbone.eval()(images).high
    freeze_batch_norm(backbone)
    backbone.train()
    high = backbone(images).high
    torch.testing.assert_close(high, expected)
    high.sum().backward()
    after = backbone.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    grown = {key for key, parameter in backbone.named_parameters() if parameter.grad is not None}
    assert (
        "conv1.weight" in grown and "bn1.weight" not in grown and "layer4.0.bn1.bias" not in grown
    )
    assert not any(p.requires_grad for k, p in backbone.named_parameters() if ".bn1." in k)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_freezing_changes_neither_features_nor_gradients(name: str) -> None:
    torch.manual_seed(0)
    backbone = deformify(build_backbone(name, "none", 16), 2)
    for layer in backbone.modules():
        if isinstance(layer, DeformConv2d):
            nn.init.normal_(layer.offset_conv.weight, std=0.1)
        if isinstance(layer, nn.BatchNorm2d):  # nothing trivial to fold
            nn.init.normal_(layer.weight, 1, 0.1)
            nn.init.normal_(layer.bias, 0, 0.1)
    backbone = backbone.double()
    backbone(torch.randn(4, 3, 64, 64, dtype=torch.float64))
    images = torch.randn(2, 3, 48, 32, dtype=torch.float64)

    def pass_through() -> list[torch.Tensor]:
        features = backbone.eval()(images)
        backbone.zero_grad()
        sum(f.square().mean() for f in features[:3]).backward()
        grads = [p.grad for k, p in backbone.named_parameters() if k in learning]
        return [*features[:3], *grads]

    norms = {id(p) for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)
             for p in m.parameters()}  # fmt: skip
    learning = {k for k, p in backbone.named_parameters() if id(p) not in norms}
    before = pass_through()
    freeze_batch_norm(backbone)
    assert any(isinstance(m, FoldedSequential) for m in backbone.modules())
    for value, expected in zip(pass_through(), before, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-12)
