from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segdeform.config.schema import TrainConfig
from segdeform.config.train import LossName
from segdeform.training.losses import cross_entropy, ohem, segmentation_loss


def _case(seed: int, ignored: float = 0.2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(2, 3, 4, 5, generator=generator)
    labels = torch.randint(0, 3, (2, 4, 5), generator=generator)
    return logits, labels.where(torch.rand(2, 4, 5, generator=generator) >= ignored, 255)


@pytest.mark.parametrize(
    ("weights", "smoothing"), [(None, 0.0), (None, 0.1), (torch.tensor([0.5, 2.0, 1.0]), 0.0)]
)
def test_cross_entropy_is_torchs_mean(weights: Tensor | None, smoothing: float) -> None:
    logits, labels = _case(0)
    expected = F.cross_entropy(logits, labels, weights, ignore_index=255, label_smoothing=smoothing)
    torch.testing.assert_close(cross_entropy(logits, labels, weights, smoothing), expected)


@pytest.mark.parametrize("weights", [(0.5, 2.0, 1.0), (0.0, 1.0, 3.0)])
@pytest.mark.parametrize("smoothing", [0.1, 0.7])
def test_weights_and_smoothing_are_a_weighted_mean(
    weights: tuple[float, ...], smoothing: float
) -> None:
    """Every pixel and class is a term of its own: -log p with the weight w[k] target[k]."""
    logits, labels = _case(0)
    terms, total = [], 0.0
    for n, y, x in zip(*torch.nonzero(labels != 255, as_tuple=True), strict=True):
        log_p = logits[n, :, y, x].double().log_softmax(0).tolist()
        for k, weight in enumerate(weights):
            share = smoothing / 3 + (1 - smoothing) * float(k == labels[n, y, x])
            terms.append(-log_p[k] * share * weight)
            total += share * weight
    found = cross_entropy(logits, labels, torch.tensor(weights), smoothing).item()
    assert found == pytest.approx(math.fsum(terms) / total, rel=1e-5)
    # A mean of -log p lies between the extremes of what it is a mean of.
    assert -logits.log_softmax(1).max() <= found <= -logits.log_softmax(1).min()


def test_a_pixel_of_a_class_without_weight_counts_as_much_as_its_target() -> None:
    logits = torch.tensor([[[[5.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.5]]]])  # [1, 3, 1, 2]
    labels = torch.tensor([[[0, 0]]])
    weights = torch.tensor([0.0, 1.0, 2.0])
    # Its target holds e / K of each class, so the mean is that of the weighted other classes.
    log_p = logits.log_softmax(1)[0, :, 0]
    expected = -(log_p[1].sum() * 1 + log_p[2].sum() * 2) / (2 * 3)
    torch.testing.assert_close(cross_entropy(logits, labels, weights, 0.1), expected)


@pytest.mark.parametrize("loss", get_args(LossName))
@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 2.0, 1.0])])
def test_no_labelled_pixel_costs_nothing(loss: str, weights: Tensor | None) -> None:
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    train = TrainConfig.model_validate({"loss": {loss: 2.0}})
    labels = torch.full((2, 4, 5), 255)
    for auxiliary in (logits, None):
        value = segmentation_loss(logits, auxiliary, labels, train, weights)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.item() == 0 and not gradient.any()


def _naive_ohem(logits: Tensor, labels: Tensor, keep: float, threshold: float) -> float:
    pixels = []  # (probability of the truth)
    for n in range(logits.shape[0]):
        for y in range(logits.shape[2]):
            for x in range(logits.shape[3]):
                label = int(labels[n, y, x])
                if label != 255:
                    scores = [math.exp(v) for v in logits[n, :, y, x].tolist()]
                    pixels.append(scores[label] / sum(scores))
    pixels.sort()
    least = math.ceil(keep * len(pixels) - 1e-6)
    kept = [p for rank, p in enumerate(pixels) if rank < least or p < threshold]
    return -sum(math.log(p) for p in kept) / len(kept) if kept else 0.0


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    keep=st.sampled_from([0.0, 0.1, 0.25, 0.5, 1.0]),
    threshold=st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]),
    ignored=st.sampled_from([0.0, 0.3, 0.95, 1.0]),
)
def test_ohem_is_the_naive_one(seed: int, keep: float, threshold: float, ignored: float) -> None:
    logits, labels = _case(seed, ignored)
    expected = _naive_ohem(logits, labels, keep, threshold)
    found = ohem(logits, labels, keep=keep, threshold=threshold).item()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_auxiliary_loss_is_weighted() -> None:
    logits, labels = _case(1)
    auxiliary, _ = _case(2)
    train = TrainConfig(auxiliary_weight=0.4)
    expected = F.cross_entropy(logits, labels, ignore_index=255) + 0.4 * F.cross_entropy(
        auxiliary, labels, ignore_index=255
    )
    torch.testing.assert_close(segmentation_loss(logits, auxiliary, labels, train, None), expected)


def test_of_many_classes_255_counts_and_65535_does_not() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = 2 * torch.randn(2, 300, 3, 5, generator=generator)
    labels = torch.randint(0, 300, (2, 3, 5), generator=generator)
    labels[0, 0] = 255
    labels[1, 1:] = 65535
    weights = torch.rand(300, generator=generator) + 0.5
    terms, total, log_p = [], 0.0, logits.double().log_softmax(1)
    for n, y, x in zip(*torch.nonzero(labels != 65535, as_tuple=True), strict=True):
        k = int(labels[n, y, x])
        terms.append(-float(log_p[n, k, y, x] * weights[k]))
        total += float(weights[k])
    assert len(terms) == 20
    expected = pytest.approx(math.fsum(terms) / total, rel=1e-5)
    assert cross_entropy(logits, labels, weights).item() == expected
    # All pixels kept, hard ones are all that are labelled.
    assert ohem(logits, labels, weights, keep=1.0, threshold=0.0).item() == expected
    half = ohem(logits, labels, keep=0.5, threshold=0.0).item()
    hardest = sorted(-float(log_p[n, int(labels[n, y, x]), y, x]) for n, y, x in _labelled(labels))
    assert half == pytest.approx(sum(hardest[10:]) / 10, rel=1e-5)


def _labelled(labels: Tensor) -> list[list[int]]:
    return torch.nonzero(labels != 65535).tolist()
