"""Dice, Lovász, focal and boundary losses, against other libraries and against loops."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import segmentation_models_pytorch.losses as smp
import torch
import torch.nn.functional as F
from torch import Tensor

from segdeform.config.loading import dump_config, load_config, load_draft
from segdeform.config.schema import TrainConfig
from segdeform.config.train import LossName
from segdeform.errors import ConfigError
from segdeform.training.losses import denominators, needs_whole_batch, segmentation_loss
from segdeform.training.losses.pixels import boundary_weight

VOID = 255


def case(seed: int = 0, classes: int = 5) -> tuple[Tensor, Tensor]:
    """Returns scores [3, classes, 7, 11] and labels, a fifth void, no last class."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(3, classes, 7, 11, generator=generator)
    labels = torch.randint(0, classes - 1, (3, 7, 11), generator=generator)
    return logits, labels.where(torch.rand(3, 7, 11, generator=generator) >= 0.2, VOID)


def loss_of(
    logits: Tensor, labels: Tensor, loss: Any, weights: Tensor | None = None, **keys: Any
) -> Tensor:
    train = TrainConfig.model_validate({"loss": loss, **keys})
    return segmentation_loss(logits, None, labels, train, weights)


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, logits)
    return found


def test_dice_is_that_of_segmentation_models() -> None:
    """But for absent classes, which count there as if they were perfect."""
    logits, labels = case()
    logits.requires_grad_()
    theirs = smp.DiceLoss("multiclass", ignore_index=VOID)(logits, labels) * 5 / 4
    ours = loss_of(logits, labels, "dice")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        gradient(ours, logits), gradient(theirs, logits), rtol=1e-4, atol=1e-7
    )


def test_lovasz_is_that_of_segmentation_models() -> None:
    logits, labels = case(1)
    logits.requires_grad_()
    # It takes ignored pixels out, and the mean over the classes that occur.
    theirs = smp.LovaszLoss("multiclass", ignore_index=VOID)(logits, labels)
    ours = loss_of(logits, labels, "lovasz")
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        gradient(ours, logits), gradient(theirs, logits), rtol=1e-4, atol=1e-7
    )


def test_lovasz_of_certain_predictions_is_one_minus_iou() -> None:
    """What the closure of a function of sets is for."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 3, (2, 6, 9), generator=generator)
    found = torch.randint(0, 3, (2, 6, 9), generator=generator)
    labels[0, :2] = VOID
    logits = 1e4 * F.one_hot(found, 3).permute(0, 3, 1, 2).float()
    seen, ious = labels != VOID, []
    for k in range(3):
        common = int(((found == k) & (labels == k)).sum())
        ious.append(common / int((((found == k) | (labels == k)) & seen).sum()))
    assert loss_of(logits, labels, "lovasz").item() == pytest.approx(1 - sum(ious) / 3, rel=1e-5)
    weights = torch.tensor([1.0, 0.0, 3.0])
    expected = 1 - (ious[0] + 3 * ious[2]) / 4
    assert loss_of(logits, labels, "lovasz", weights).item() == pytest.approx(expected, rel=1e-5)


def test_dice_of_certain_predictions_counts_pixels() -> None:
    labels = torch.tensor([[[0, 0, 1, VOID, 1, 1]]])
    found = torch.tensor([[[0, 1, 1, 1, 0, 1]]])
    logits = 1e4 * F.one_hot(found, 3).permute(0, 3, 1, 2).float()
    dices = [2 * 1 / (2 + 2), 2 * 2 / (3 + 3)]
    expected = 1 - sum(dices) / 2
    assert loss_of(logits, labels, "dice").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 3.5])
@pytest.mark.parametrize("weights", [None, (0.5, 2.0, 0.0, 1.0, 3.0)])
def test_focal_is_a_weighted_mean(gamma: float, weights: tuple[float, ...] | None) -> None:
    logits, labels = case(3)
    terms, total = [], 0.0
    for n, y, x in torch.nonzero(labels != VOID).tolist():
        k = int(labels[n, y, x])
        p = float(logits[n, :, y, x].double().softmax(0)[k])
        weight = 1.0 if weights is None else weights[k]
        terms.append(-weight * (1 - p) ** gamma * math.log(p))
        total += weight
    given = None if weights is None else torch.tensor(weights)
    found = loss_of(logits, labels, "focal", given, focal_gamma=gamma).item()
    assert found == pytest.approx(math.fsum(terms) / total, rel=1e-5)


def test_pixels_near_another_class_weigh_more() -> None:
    labels = torch.full((2, 5, 9), 1)
    labels[0, :, 6:] = 0
    labels[0, 0, 5:7] = VOID  # parts nothing by itself
    labels[1, 2, 2] = VOID
    expected = torch.ones(2, 5, 9)
    expected[0, :, 5:7] = 4.5
    expected[0, 0, 5:7] = 4.5  # void between the two: near both, and not counted anyway
    found = boundary_weight(labels, 2, 1, 3.5)
    seen = labels != VOID
    assert torch.equal(found[seen], expected[seen])
    wide = boundary_weight(labels, 2, 2, 3.5)
    assert torch.equal(wide[0, 1] > 1, torch.tensor([*[False] * 4, *[True] * 4, False]))

    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 2, 5, 9, generator=generator)
    costs = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="none")
    mean = (costs * expected)[seen].sum() / expected[seen].sum()
    ours = loss_of(logits, labels, "boundary", boundary_width=1, boundary_strength=3.5)
    torch.testing.assert_close(ours, mean)


@pytest.mark.parametrize("loss", ["dice", "lovasz", "focal", "boundary"])
def test_gradients_are_those_of_the_values(loss: str) -> None:
    logits, labels = case(5, classes=3)
    logits, labels = logits[:1, :, :3, :4].double().requires_grad_(), labels[:1, :3, :4]
    for weights in (None, torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)):
        assert torch.autograd.gradcheck(
            lambda x, weights=weights: loss_of(x, labels, loss, weights), logits
        )


@pytest.mark.parametrize("loss", get_args(LossName))
@pytest.mark.parametrize("scale", [1e-30, 1e4])
def test_extreme_scores_give_finite_numbers(loss: str, scale: float) -> None:
    logits, labels = case(6)
    logits = (scale * logits).requires_grad_()
    value = loss_of(logits, labels, loss)
    assert torch.isfinite(value) and torch.isfinite(gradient(value, logits)).all()


@pytest.mark.parametrize("loss", get_args(LossName))
def test_what_is_ignored_has_no_influence(loss: str) -> None:
    logits, labels = case(7)
    other = logits.clone()
    other.permute(0, 2, 3, 1)[labels == VOID] = 50 * torch.randn(int((labels == VOID).sum()), 5)
    other.requires_grad_()
    value = loss_of(other, labels, loss, boundary_width=1)
    torch.testing.assert_close(value, loss_of(logits, labels, loss, boundary_width=1))
    assert not gradient(value, other).permute(0, 2, 3, 1)[labels == VOID].any()


@pytest.mark.parametrize("loss", get_args(LossName))
def test_a_perfect_prediction_costs_less_than_any_other(loss: str) -> None:
    logits, labels = case(8)
    perfect = 30 * F.one_hot(labels.where(labels != VOID, 0), 5).permute(0, 3, 1, 2).float()
    assert loss_of(perfect, labels, loss).item() < 1e-4 < loss_of(logits, labels, loss).item()


def test_sums_are_sums() -> None:
    logits, labels = case(9)
    weights = torch.tensor([1.0, 0.2, 3.0, 1.0, 1.0])
    parts = {"cross_entropy": 1.0, "dice": 0.5, "focal": 3.0}
    expected = sum(
        weight * loss_of(logits, labels, name, weights).item() for name, weight in parts.items()
    )
    assert loss_of(logits, labels, parts, weights).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", {"focal": 1, "boundary": 2}])
def test_parts_of_a_batch_add_up(loss: Any) -> None:
    logits, labels = case(10)
    labels[1] = VOID
    labels[2, 3:] = VOID
    keys = {"label_smoothing": 0.1} if loss == "cross_entropy" else {}
    train = TrainConfig.model_validate({"loss": loss, **keys})
    weights = torch.tensor([1.0, 0.2, 3.0, 1.0, 1.0])
    assert not needs_whole_batch(train)
    whole = denominators(labels, 5, train, weights)
    parts = [
        segmentation_loss(logits[n : n + 1], None, labels[n : n + 1], train, weights, whole=whole)
        for n in range(3)
    ]
    expected = segmentation_loss(logits, None, labels, train, weights)
    torch.testing.assert_close(sum(parts), expected)
    assert parts[1] == 0


def test_losses_of_regions_ask_for_the_whole_batch() -> None:
    for loss in get_args(LossName):
        train = TrainConfig.model_validate({"loss": {"cross_entropy": 1, loss: 2}})
        assert needs_whole_batch(train) == (loss in ("ohem", "dice", "lovasz"))


def test_of_many_classes_all_losses_leave_out_65535() -> None:
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(1, 300, 3, 4, generator=generator)
    labels = torch.randint(0, 300, (1, 3, 4), generator=generator)
    labels[0, 0, 0], labels[0, 1] = 255, 65535
    cut = torch.cat((labels[:, :1], labels[:, 2:]), 1)
    for loss in get_args(LossName):
        keys = {"boundary_width": 9}  # all pixels are near
        found = loss_of(logits, labels, loss, **keys)
        expected = loss_of(torch.cat((logits[:, :, :1], logits[:, :, 2:]), 2), cut, loss, **keys)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class TestConfig:
    def test_a_sum_is_read_and_written(self, tmp_path: Any) -> None:
        config = load_config("shapes", ["train.loss={cross_entropy: 1, dice: 0.5}"])
        assert config.train.losses == {"cross_entropy": 1.0, "dice": 0.5}
        (tmp_path / "again.yaml").write_text(dump_config(config))
        assert load_config(tmp_path / "again.yaml") == config
        assert load_config("shapes").train.losses == {"cross_entropy": 1.0}

    @pytest.mark.parametrize(
        ("overrides", "says"),
        [
            (["train.loss=dise"], "Did you mean 'dice'"),
            (["train.loss={dise: 1}"], "Did you mean 'dice'"),
            (["train.loss={dice: 0}"], "the weight of dice must be a number above 0"),
            (["train.loss={dice: .inf}"], "the weight of dice must be a number above 0"),
            (["train.loss={dice: much}"], "the weight of dice must be a number above 0"),
            (["train.loss=[dice]"], "name a loss, or several as"),
            (["train.loss={}"], "name a loss"),
            (["train.loss=dice", "train.label_smoothing=0.1"], "not of dice"),
        ],
    )
    def test_what_makes_no_sense_is_one_line(self, overrides: list[str], says: str) -> None:
        with pytest.raises(ConfigError, match=says) as raised:
            load_draft("shapes", overrides)
        assert "\n" not in str(raised.value) and "train.l" in str(raised.value)
