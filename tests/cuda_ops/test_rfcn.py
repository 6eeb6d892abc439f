"""R-FCN's head against loops over its definition, and inside torchvision's detector."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchvision")
from torchvision.models.detection.roi_heads import fastrcnn_loss

from cuda_ops import AverageVote, PSDeformRoIPool, RFCNPool, RFCNPredictor, reference
from tests.cuda_ops.test_poolers import tiny_batch, tiny_detector

BOXES = [torch.tensor([[3.2, 5.7, 41.0, 50.4], [20.5, 0.0, 63.0, 30.0]]).double(),
         torch.tensor([[8.0, 16.0, 31.0, 62.0]]).double()]  # fmt: skip
SHAPES = [(64, 64), (64, 64)]


def features() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {"x": torch.randn(2, 5, 16, 16, generator=generator).double()}


def head(num_classes: int, deformable: bool, bins: int = 3) -> RFCNPool:
    torch.manual_seed(0)
    pool = RFCNPool(["x"], 5, num_classes, bins, deformable, hidden=4, sample_per_part=2)
    return pool.double()


def bilinear(plane: Tensor, y: float, x: float) -> float:
    height, width = plane.shape
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    b, r = y - top, x - left
    upper = plane[top, left] * (1 - r) + plane[top, right] * r
    lower = plane[below, left] * (1 - r) + plane[below, right] * r
    return float(upper * (1 - b) + lower * b)


def vote(maps: Tensor, box: Tensor, scale: float, k: int, samples: int) -> list[float]:
    """R-FCN's equations 1 and 2 for one box and the maps [O*k*k, H, W] of its picture."""
    x1, y1, x2, y2 = (math.floor(v + 0.5) for v in box.tolist())
    left, top = x1 * scale - 0.5, y1 * scale - 0.5
    wide, high = (x2 + 1 - x1) * scale / k, (y2 + 1 - y1) * scale / k
    votes = []
    for channel in range(len(maps) // k**2):
        total = 0.0
        for i in range(k):
            for j in range(k):
                plane = maps[(channel * k + i) * k + j]
                seen = []
                for a in range(samples):
                    for b in range(samples):
                        y = top + (i + a / samples) * high
                        x = left + (j + b / samples) * wide
                        if -0.5 <= y <= 15.5 and -0.5 <= x <= 15.5:
                            seen.append(bilinear(plane, y, x))
                total += sum(seen) / len(seen) if seen else 0.0
        votes.append(total / k**2)
    return votes


def test_the_head_votes_as_the_paper_says() -> None:
    pool, predictor = head(3, deformable=False), RFCNPredictor(3)
    nn.init.normal_(pool.scores.maps.bias)
    scores, changes = predictor(AverageVote()(pool(features(), BOXES, SHAPES)))
    assert scores.shape == (3, 3) and changes.shape == (3, 12)
    reduce, k = pool.reduction[0], 3
    row = 0
    for picture, boxes in enumerate(BOXES):
        x = features()["x"][picture]
        hidden = torch.einsum("oc,chw->ohw", reduce.weight[:, :, 0, 0], x)
        hidden = (hidden + reduce.bias[:, None, None]).clamp(min=0)
        for box in boxes:
            for layer, found in ((pool.scores, scores[row]), (pool.changes, changes[row, :4])):
                weight, bias = layer.maps.weight[:, :, 0, 0], layer.maps.bias
                maps = torch.einsum("oc,chw->ohw", weight, hidden) + bias[:, None, None]
                expected = vote(maps.detach(), box, 0.25, k, 2)
                torch.testing.assert_close(found.tolist(), expected)
            torch.testing.assert_close(changes[row].reshape(3, 4), changes[row, :4].repeat(3, 1))
            row += 1


def test_fresh_offsets_change_nothing_and_draw_no_random_number() -> None:
    fixed, moving = head(3, deformable=False), head(3, deformable=True)
    for name, value in fixed.state_dict().items():
        assert torch.equal(value, moving.state_dict()[name])
    arguments = (features(), BOXES, SHAPES)
    torch.testing.assert_close(fixed(*arguments), moving(*arguments))


def test_offset_fields_move_each_class_as_the_reference_operator_does() -> None:
    torch.manual_seed(1)
    layer = PSDeformRoIPool(5, 6, bins=3, offset_classes=3, sample_per_part=2).double()
    assert layer.offset_maps is not None and layer.offset_maps.out_channels == 2 * 3 * 9
    nn.init.normal_(layer.offset_maps.weight)
    x = features()["x"]
    rois = torch.cat([torch.tensor([[0.0], [0], [1]]).double(), torch.cat(BOXES)], 1)
    fields = layer.offset_maps(x)
    trans = reference.ps_deform_roi_pool(fields, rois, None, 0.25, 6, 3, 3, 3, 2)
    assert trans.abs().mean() > 0.1
    expected = reference.ps_deform_roi_pool(layer.maps(x), rois, trans, 0.25, 6, 3, 3, 3, 2, 0.1)
    torch.testing.assert_close(layer(x, rois, 0.25), expected)
    still = reference.ps_deform_roi_pool(layer.maps(x), rois, None, 0.25, 6, 3, 3, 3, 2, 0.1)
    assert not torch.allclose(expected, still, atol=1e-3)


@pytest.mark.parametrize("deformable", [False, True])
def test_a_detector_trains_with_the_head(deformable: bool) -> None:
    torch.manual_seed(0)
    pool = RFCNPool("ab", 6, 4, 3, deformable, hidden=8, sample_per_part=2)
    predictor = RFCNPredictor(4)
    model = tiny_detector(box_roi_pool=pool, box_head=AverageVote(), box_predictor=predictor)
    losses = model.train()(*tiny_batch())
    assert losses["loss_classifier"].item() == pytest.approx(math.log(4), rel=0.05)  # no vote yet
    sum(losses.values()).backward()
    learners = dict(pool.named_parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in learners.values())
    moving = [name for name in learners if "offset_maps" in name]
    assert len(moving) == (4 if deformable else 0)
    assert all(learners[name].grad.abs().max() > 0 for name in moving)
    assert len(model.eval()(tiny_batch()[0])) == 2


def test_all_classes_share_the_box_changes_in_torchvisions_loss() -> None:
    votes = torch.zeros(2, 3 + 4)
    votes[:, 3:] = torch.tensor([0.1, -0.2, 0.3, 0.4])
    scores, changes = RFCNPredictor(3)(votes)
    target = [torch.tensor([[0.1, -0.2, 0.3, 0.4]] * 2)]
    for label in (1, 2):
        _, loss = fastrcnn_loss(scores, changes, [torch.tensor([label, label])], target)
        assert loss.item() == 0


def test_no_boxes() -> None:
    output = head(3, deformable=True)(features(), [torch.zeros(0, 4).double()] * 2, SHAPES)
    assert AverageVote()(output).shape == (0, 7)


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ValueError, match="must divide the 4 output channels, not 3"):
        PSDeformRoIPool(8, 4, offset_classes=3)
    with pytest.raises(ValueError, match="bins must be an integer >= 1, not 0"):
        PSDeformRoIPool(8, 4, bins=0)
