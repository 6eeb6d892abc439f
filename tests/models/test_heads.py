from __future__ import annotations

import pytest
import torch
from torch import nn

from segdeform.models.features import Features
from segdeform.models.heads import (
    ASPP,
    AuxiliaryHead,
    DeepLabHead,
    DeepLabV3Head,
    DeepLabV3PlusHead,
)


@pytest.fixture
def features() -> Features:
    torch.manual_seed(0)
    return Features(torch.randn(1, 8, 20, 17), torch.randn(1, 12, 5, 5), torch.randn(1, 16, 5, 5))


def test_the_2017_head_is_a_perceptron_of_each_pixel(features: Features) -> None:
    head = DeepLabHead(16, 3, 10)
    scores = head(features)
    pixel = features.high[0, :, 2, 3]
    weights = [layer.weight[:, :, 0, 0] for layer in (head.project, head.score)]
    expected = weights[1] @ (weights[0] @ pixel).relu()
    torch.testing.assert_close(scores[0, :, 2, 3], expected)


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (DeepLabHead(16, 7, 8), (5, 5)),
        (DeepLabV3Head(16, 7, 8, (1, 2, 3)), (5, 5)),
        (DeepLabV3PlusHead(16, 8, 7, 8, (1, 2, 3)), (20, 17)),
        (AuxiliaryHead(12, 7, 8), (5, 5)),
    ],
)
def test_heads_train_on_a_batch_of_one(
    head: nn.Module, size: tuple[int, int], features: Features
) -> None:
    scores = head.train()(features)
    assert scores.shape == (1, 7, *size)
    scores.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("separable", [False, True])
def test_the_pyramid_sees_its_rates_and_the_whole_picture(separable: bool) -> None:
    """Moves one input pixel and finds where the branches' outputs change."""
    torch.manual_seed(0)
    aspp = ASPP(4, 4, (2, 5), separable=separable, dropout=0.0).eval()
    images = torch.randn(1, 4, 13, 13)
    moved = images.clone()
    moved[0, :, 6, 6] += 10

    def changed(branch: nn.Module) -> set[int]:
        difference = (branch(moved) - branch(images)).abs().sum((0, 1)).sum(0)
        return set(difference.nonzero().flatten().tolist())

    with torch.no_grad():
        assert changed(aspp.branches[0]) == {6}
        assert changed(aspp.branches[1]) == {4, 6, 8}
        assert changed(aspp.branches[2]) == {1, 6, 11}
        assert changed(aspp) == set(range(13))


def test_low_level_features_reach_the_scores(features: Features) -> None:
    head = DeepLabV3PlusHead(16, 8, 7, 8, (1, 2, 3)).eval()
    other = features._replace(low=features.low.flip(3))
    assert not torch.allclose(head(features), head(other))
