"""The poolers of detection models against torchvision, the reference operator and hand counts."""

from __future__ import annotations

import io
from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torchvision")
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import MultiScaleRoIAlign, roi_align

from cuda_ops import MultiScaleDeformRoIPool, MultiScaleRoIPool, reference

NAMES = ("a", "b", "c")
STRIDES = (4, 8, 16)
SHAPES = [(96, 120), (90, 128)]
CANONICAL = {"canonical_scale": 40, "canonical_level": 3}


def pyramid(dtype: torch.dtype = torch.float64, channels: int = 5) -> OrderedDict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    levels = OrderedDict(
        (name, torch.randn(2, channels, 96 // s, 128 // s, generator=generator).to(dtype))
        for name, s in zip(NAMES, STRIDES, strict=True)
    )
    return OrderedDict(unused=torch.zeros(2, 1, 3, 3)) | levels


def some_boxes(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    first = [(3, 5, 22, 31), (10.5, 8, 100, 90), (0, 0, 120, 96), (50, 40, 58, 47)]
    second = [(20, 10, 61, 49), (70, 20, 127, 89), (5, 60, 17, 64)]
    return [torch.tensor(rows, dtype=dtype) for rows in (first, second)]


def fresh(channels: int = 5, **more: int) -> MultiScaleDeformRoIPool:
    torch.manual_seed(0)
    return MultiScaleDeformRoIPool(NAMES, (3, 2), channels, hidden=8, **CANONICAL, **more).double()


def awakened(channels: int = 5) -> MultiScaleDeformRoIPool:
    pooler = fresh(channels)
    nn.init.normal_(pooler.offset_fc[-1].weight, std=1.0)
    nn.init.normal_(pooler.offset_fc[-1].bias, std=1.0)
    return pooler


def half_a_pixel(boxes: list[Tensor], level_of: Tensor) -> list[Tensor]:
    """Moves boxes so that aligned=False reads them where aligned=True does."""
    shift = torch.tensor(STRIDES)[level_of][:, None] / 2
    moved = torch.cat(boxes) - shift
    return list(moved.split([len(b) for b in boxes]))


def torchvision_levels(boxes: list[Tensor], pooler: MultiScaleRoIAlign) -> Tensor:
    pooler(pyramid(), boxes, SHAPES)
    levels: Tensor = pooler.map_levels(boxes)
    return levels


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_without_offsets_it_is_multi_scale_roi_align_but_for_half_a_pixel(
    sampling_ratio: int,
) -> None:
    theirs = MultiScaleRoIAlign(list(NAMES), (3, 2), sampling_ratio, **CANONICAL)
    boxes = some_boxes()
    levels = torchvision_levels(boxes, theirs)
    assert levels.unique().tolist() == [0, 1, 2]
    # aligned=False puts a box 0.5 feature pixels lower right; no box is below one feature pixel.
    expected = theirs(pyramid(), half_a_pixel(boxes, levels), SHAPES)
    for ours in (
        MultiScaleRoIPool(NAMES, (3, 2), sampling_ratio, **CANONICAL),
        fresh(sampling_ratio=sampling_ratio),
    ):
        torch.testing.assert_close(ours(pyramid(), boxes, SHAPES), expected)
    assert not torch.allclose(theirs(pyramid(), boxes, SHAPES), expected, atol=1e-3)


def test_one_level_is_aligned_roi_align() -> None:
    features, boxes = {"x": pyramid()["b"]}, some_boxes()
    pooler = MultiScaleRoIPool(["x"], 4, 2)
    rois = torch.cat([torch.tensor([0.0] * 4 + [1.0] * 3).double()[:, None], torch.cat(boxes)], 1)
    expected = roi_align(features["x"], rois, 4, 1 / 8, 2, aligned=True)
    torch.testing.assert_close(pooler(features, boxes, SHAPES), expected)


def test_offsets_move_bins_as_the_reference_operator_does_on_each_level() -> None:
    pooler, features, boxes = awakened(), pyramid(), some_boxes()
    offsets = pooler.offsets(features, boxes, SHAPES)
    assert offsets.shape == (7, 2, 3, 2) and offsets.std() > 0.5
    levels = torchvision_levels(boxes, MultiScaleRoIAlign(list(NAMES), (3, 2), 2, **CANONICAL))
    found = pooler(features, boxes, SHAPES)
    images = [0, 0, 0, 0, 1, 1, 1]
    for number, (image, box) in enumerate(zip(images, torch.cat(boxes), strict=True)):
        level = int(levels[number])
        roi = torch.cat([torch.tensor([float(image)]).double(), box])[None]
        expected = reference.deform_roi_pool(
            features[NAMES[level]], roi, offsets[[number]], (3, 2), 1 / STRIDES[level], 2, 0.1
        )
        torch.testing.assert_close(found[[number]], expected)
    assert not torch.allclose(found, fresh()(features, boxes, SHAPES), atol=1e-3)


@pytest.mark.parametrize(
    ("side", "level"),
    [(223, 3), (224, 4), (447, 4), (448, 5), (112, 3), (111, 2), (5, 2), (5000, 5), (0, 2)],
)
def test_a_box_goes_to_the_level_of_equation_1(side: float, level: int) -> None:
    pooler = MultiScaleRoIPool(("2", "3", "4", "5"), 1, 1)
    features = {str(k): torch.full((1, 1, 256 >> k, 256 >> k), float(k)) for k in (2, 3, 4, 5)}
    # The area counts, not the sides: twice as wide, half as high.
    boxes = [torch.tensor([[0.0, 0, 2 * side, side / 2]])]
    dealt = pooler.deal(features, boxes, [(256, 256)])
    (found,) = [k + 2 for k, places in enumerate(dealt.places) if len(places)]
    assert found == level and dealt.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


def test_no_boxes_give_no_rows_and_gradients_of_zero() -> None:
    pooler = awakened()
    none, some = torch.zeros(0, 4).double(), some_boxes()[1]
    output = pooler(pyramid(), [none, none], SHAPES)
    assert output.shape == (0, 5, 3, 2)
    output.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in pooler.parameters())
    both = pooler(pyramid(), [none, some], SHAPES)
    whole = pooler(pyramid(), some_boxes(), SHAPES)
    torch.testing.assert_close(both, whole[4:])


def test_a_box_without_numbers_gives_nan_and_spares_the_others() -> None:
    boxes = some_boxes()
    boxes[0][1] = float("nan")
    output = awakened()(pyramid(), boxes, SHAPES)
    assert output.isnan().flatten(1).all(1).tolist() == [False, True] + [False] * 5
    assert not output[[0, 2, 3, 4, 5, 6]].isnan().any()


def test_gradients_reach_features_and_the_layers_of_the_offsets() -> None:
    pooler, features = fresh(), pyramid()
    for name in NAMES:
        features[name].requires_grad_()
    torch.manual_seed(1)
    output = pooler(features, some_boxes(), SHAPES)
    (output * torch.randn_like(output)).sum().backward()
    last = pooler.offset_fc[-1]
    assert last.weight.grad.abs().max() > 0 and last.bias.grad.abs().max() > 0
    assert all(features[name].grad.abs().max() > 0 for name in NAMES)
    # The last layer is zero, and so is what reaches the layers before it; after a step it is not.
    assert not pooler.offset_fc[0].weight.grad.any()
    torch.optim.SGD(pooler.parameters(), 0.1).step()
    pooler(features, some_boxes(), SHAPES).square().sum().backward()
    assert pooler.offset_fc[0].weight.grad.any()


def test_gradient_of_the_offset_layers_by_differences() -> None:
    pooler, features, boxes = awakened(2), pyramid(channels=2), some_boxes()
    weights = torch.randn(7, 2, 3, 2, generator=torch.Generator().manual_seed(4)).double()
    bias = pooler.offset_fc[-1].bias

    def value() -> Tensor:
        return (pooler(features, boxes, SHAPES) * weights).sum()

    value().backward()
    for k in (0, 5, 8):
        with torch.no_grad():
            bias[k] += 1e-6
            above = value()
            bias[k] -= 2e-6
            below = value()
            bias[k] += 1e-6
        assert bias.grad[k].item() == pytest.approx(((above - below) / 2e-6).item(), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    pooler = awakened().float()
    exact = pooler(pyramid(torch.float32), some_boxes(torch.float32), SHAPES)
    with torch.autocast("cpu", dtype):
        cast = pooler(pyramid(torch.float32), some_boxes(torch.float32), SHAPES)
        assert pooler.offsets(pyramid(dtype), some_boxes(torch.float32), SHAPES).dtype == (
            torch.float32
        )
    low = pooler.to(dtype)(pyramid(dtype), some_boxes(torch.float32), SHAPES)
    for output in (cast, low):
        assert output.dtype == dtype
        assert (output.float() - exact).abs().mean() < 0.02 * exact.abs().mean()


def test_levels_of_mixed_precision_come_out_in_that_of_the_first() -> None:
    features = pyramid(torch.float32)
    features["b"] = features["b"].bfloat16()
    output = MultiScaleRoIPool(NAMES, 2, **CANONICAL)(features, some_boxes(torch.float32), SHAPES)
    assert output.dtype == torch.float32 and output.isfinite().all()


def test_state_dict_round_trip() -> None:
    file = io.BytesIO()
    pooler = awakened()
    torch.save(pooler.state_dict(), file)
    file.seek(0)
    other = fresh()
    other.load_state_dict(torch.load(file, weights_only=True))
    arguments = (pyramid(), some_boxes(), SHAPES)
    assert torch.equal(other.eval()(*arguments), pooler.train()(*arguments))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match="must hold 'b'; they hold a"):
        fresh()({"a": torch.zeros(1, 5, 4, 4)}, [torch.zeros(0, 4)], [(16, 16)])
    with pytest.raises(ValueError, match="must have 6 channels, not 5"):
        fresh(6)(pyramid(), some_boxes(), SHAPES)
    with pytest.raises(ValueError, match="hidden must be an integer >= 1"):
        MultiScaleDeformRoIPool(NAMES, 2, 5, hidden=0)


class TinyBackbone(nn.Module):
    """Two levels, strides 4 and 8."""

    out_channels = 6

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 5, 4, 2)
        self.second = nn.Conv2d(6, 6, 3, 2, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        fine = self.first(x).relu()
        return OrderedDict(a=fine, b=self.second(fine).relu())


def tiny_detector(**parts: nn.Module) -> FasterRCNN:
    return FasterRCNN(
        TinyBackbone(),
        min_size=64,
        max_size=96,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,)), ((0.5, 1.0, 2.0),) * 2),
        rpn_post_nms_top_n_train=30,
        rpn_post_nms_top_n_test=20,
        box_batch_size_per_image=16,
        **parts,
    )


def tiny_batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    torch.manual_seed(7)
    pictures = [torch.rand(3, 64, 80), torch.rand(3, 70, 64)]
    boxes = torch.tensor([[5.0, 8, 40, 50], [30, 20, 70, 60]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    return pictures, targets


def test_a_faster_rcnn_trains_with_it_and_starts_as_the_plain_one() -> None:
    def first_losses(pooler: MultiScaleRoIPool) -> tuple[FasterRCNN, dict[str, Tensor]]:
        torch.manual_seed(5)
        model = tiny_detector(box_roi_pool=pooler, num_classes=3).train()
        torch.manual_seed(6)
        return model, model(*tiny_batch())

    pooler = MultiScaleDeformRoIPool("ab", 3, 6, hidden=16)
    model, losses = first_losses(pooler)
    _, plain = first_losses(MultiScaleRoIPool("ab", 3))
    for name, loss in losses.items():
        assert loss.item() == pytest.approx(plain[name].item(), rel=1e-5)
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    sum(losses.values()).backward()
    optimizer.step()
    assert pooler.offset_fc[-1].weight.any()
    again = model(*tiny_batch())
    assert all(loss.isfinite() for loss in again.values())
    found = model.eval()(tiny_batch()[0])
    assert len(found) == 2 and all(f["boxes"].shape[1] == 4 for f in found)
