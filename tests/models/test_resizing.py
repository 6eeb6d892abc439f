"""Nothing shifts at any size: ramps, whose value says where a pixel lies, go in and come out."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segdeform.config.schema import EvalConfig
from segdeform.inference import logits
from segdeform.models.deeplab import DeepLab
from segdeform.models.features import Backbone, Features
from segdeform.models.grids import Whole
from segdeform.models.heads import DeepLabV3PlusHead
from segdeform.models.resizing import enlarge, stride_of
from segdeform.models.segformer import SegFormerHead
from segdeform.models.upernet import UPerNetHead

STRIDES = (4, 8, 16, 32)


def ramps(height: int, width: int) -> Tensor:  # [1, 3, height, width]: row, column, 1
    y = torch.arange(height, dtype=torch.float32)[:, None].expand(height, width)
    x = torch.arange(width, dtype=torch.float32).expand(height, width)
    return torch.stack((y, x, torch.ones_like(x)))[None]


def means(images: Tensor, stride: int) -> Tensor:
    """Averages squares of `stride` pixels, where the picture ends as if it went on."""
    height, width = images.shape[-2:]
    more = ramps(-(-height // stride) * stride, -(-width // stride) * stride)
    assert torch.equal(more[..., :height, :width], images)
    return F.avg_pool2d(more, stride)


class Means(Backbone):
    """Moves its maps as its pictures move: the mean of each square of pixels."""

    low_channels = second_channels = middle_channels = channels = 3

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride, self.middle_stride = stride, min(16, stride)

    def forward(self, x: Tensor) -> Features:
        strides = (4, self.middle_stride, self.stride, 8)
        return Features(*(means(x, stride) for stride in strides))


class Same(nn.Identity):
    """Is nothing, by a name of its own, so that copies of it in a list stay apart."""


class Take(nn.Module):
    """A head that takes one of the features for scores."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, features: Features) -> Tensor:
        maps: Tensor = getattr(features, self.name)
        return maps


def shift(scores: Tensor, stride: int) -> float:
    """Returns how far scores lie from where they belong, pixels, beside the first and last value.

    There interpolation has nothing to go on with, and repeats it.
    """
    margin = stride // 2
    height, width = scores.shape[-2:]
    inside = (..., slice(margin, max(margin, height - stride)), slice(margin, width - stride))
    difference = (scores - ramps(height, width))[:, :2][inside]
    return float(difference.detach().abs().max()) if difference.numel() else 0.0


def decoder(stride: int) -> nn.Module:
    """Returns DeepLabV3+'s head reduced to what it does with sizes: the last features' scores."""
    head = DeepLabV3PlusHead(3, 3, 3, 3, (1,), stride // 4)
    head.aspp, head.low_level = nn.Identity(), nn.Identity()
    head.decoder, head.score = nn.Sequential(), nn.Conv2d(6, 3, 1, bias=False)
    head.score.weight.data = torch.eye(3, 6)[:, :, None, None]
    return head


class First(nn.Module):
    """Takes the features in the place of the pyramid."""

    def forward(self, x: Tensor, whole: Whole | None) -> Tensor:
        return x


def upernet(strides: tuple[int, ...]) -> UPerNetHead:
    """Returns UPerNet's head reduced to what it does with sizes: four times the last features."""
    head = UPerNetHead((3,) * 4, strides, 3, 3)
    head.pyramid, head.smoothing, head.mix = First(), nn.ModuleList([Same()] * 3), Same()
    for lateral in head.laterals:
        lateral[0].weight.data.zero_()
    head.score = nn.Conv2d(12, 3, 1, bias=False)
    head.score.weight.data = torch.eye(3).repeat(1, 4)[:, :, None, None] / 4
    return head


def segformer(strides: tuple[int, ...]) -> SegFormerHead:
    """Returns SegFormer's head reduced to the mean of the four stages."""
    head = SegFormerHead((3,) * 4, strides, 3, 3)
    head.project = nn.ModuleList([Same()] * 4)
    mix = nn.Conv2d(12, 3, 1, bias=False)
    mix.weight.data = torch.eye(3).repeat(1, 4)[:, :, None, None] / 4
    head.mix, head.score = nn.Sequential(mix), nn.Conv2d(3, 3, 1, bias=False)
    head.score.weight.data = torch.eye(3)[:, :, None, None]
    return head


@pytest.mark.parametrize("stride", STRIDES[1:])
@pytest.mark.parametrize("head", [upernet, segformer])
def test_heads_over_four_stages_shift_nothing_at_any_height(
    head: Callable[[tuple[int, ...]], nn.Module], stride: int
) -> None:
    backbone = Means(stride)
    model = DeepLab(
        backbone, head(backbone.stage_strides), mean=(0, 0, 0), std=(1, 1, 1), stride=4
    ).eval()
    for height in range(4 * stride, 5 * stride + 1):
        logits = model(ramps(height, 4 * stride + 3)).logits
        assert shift(logits, 2 * stride) < 0.05, height


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("known", [True, False])
def test_a_covariant_network_shifts_nothing_at_any_height(stride: int, known: bool) -> None:
    model = DeepLab(
        Means(stride),
        Take("high"),
        mean=(0, 0, 0),
        std=(1, 1, 1),
        stride=stride if known else None,
    )
    for height in range(stride, 4 * stride + 1):
        output = model(ramps(height, 3 * stride + 5)).logits
        assert output.shape[-2:] == (height, 3 * stride + 5)
        assert shift(output, stride) < 0.05, height


@pytest.mark.parametrize("stride", STRIDES)
def test_neither_the_decoder_nor_the_auxiliary_head_shifts(stride: int) -> None:
    auxiliary = min(16, stride)
    model = DeepLab(
        Means(stride),
        decoder(stride),
        Take("middle"),
        (0, 0, 0),
        (1, 1, 1),
        stride=4,
        auxiliary_stride=auxiliary,
    ).train()
    for height in range(stride, 4 * stride + 1):
        output = model(ramps(height, 2 * stride + 3))
        assert output.auxiliary is not None
        assert shift(output.logits, stride + 4) < 0.05, height
        assert shift(output.auxiliary, auxiliary) < 0.05, height


def test_scales_and_flips_shift_nothing_at_odd_sizes() -> None:
    """Flipped scores say the mirrored column; the mean of the classes' odds is another matter."""
    model = DeepLab(Means(8), Take("high"), mean=(0, 0, 0), std=(1, 1, 1), stride=8)
    picture = ramps(61, 43)
    inside = (slice(None, 2), slice(8, 50), slice(8, 32))
    whole = logits(model, picture[0], EvalConfig())
    assert (whole - picture[0])[inside].abs().max() < 0.05
    # A window of a ramp is a ramp from elsewhere: what the network says must move with it.
    moved = model(picture[..., :37, :29]).logits[0]
    assert (moved - picture[0, :, :37, :29])[:, 8:26, 8:18][:2].abs().max() < 0.05


@pytest.mark.parametrize("stride", STRIDES)
def test_sizes_that_the_stride_divides_are_resized_as_ever(stride: int) -> None:
    maps = torch.randn(2, 5, 3, 7)
    size = (3 * stride, 7 * stride)
    expected = F.interpolate(maps, size, mode="bilinear", align_corners=False)
    assert torch.equal(enlarge(maps, stride, size), expected)


def test_the_stride_is_found_from_any_size() -> None:
    for stride in (1, 2, *STRIDES):
        for height in range(stride + 1, 150):
            for width in (1, stride, height):
                maps = torch.empty(1, 1, -(-height // stride), -(-width // stride))
                assert stride_of(maps, (height, width)) == stride


def test_maps_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="maps of 3x4 are not those of a picture of 49x64"):
        enlarge(torch.zeros(1, 2, 3, 4), 16, (49, 64))


class Convolutions(Backbone):
    """Four convolutions of stride 2."""

    low_channels = second_channels = middle_channels = channels = 3
    stride = middle_stride = 16

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(3, 3, 3, 2, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Features:
        maps = [x]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        return Features(maps[2], maps[4], maps[4], maps[3])


@pytest.mark.parametrize("strict", [False, True])
def test_exported_once_it_serves_every_size(strict: bool) -> None:
    torch.manual_seed(0)
    model = DeepLab(Convolutions(), decoder(16), stride=4).eval()
    height, width = (torch.export.Dim(name, min=17, max=500) for name in ("H", "W"))
    shapes = ({2: height, 3: width},)
    exported = torch.export.export(
        model, (torch.rand(2, 3, 77, 90),), dynamic_shapes=shapes, strict=strict
    ).module()
    for size in ((64, 80), (101, 77), (33, 250)):
        images = torch.rand(2, 3, *size)
        assert torch.equal(exported(images), model(images).logits)


def four_stages(kind: type[UPerNetHead | SegFormerHead]) -> nn.Module:
    head = kind((3,) * 4, Convolutions().stage_strides, 3, 4)
    nn.init.normal_(head.score.weight)
    return head


@pytest.mark.parametrize(
    ("head", "resizes"),
    [
        (lambda: decoder(16), 2),
        # Down to two stages, three beside the first, and the scores.
        (lambda: four_stages(UPerNetHead), 6),
        pytest.param(lambda: four_stages(SegFormerHead), 4, marks=pytest.mark.slow),
    ],
    ids=["deeplabv3plus", "upernet", "segformer"],
)
def test_onnx_resizes_alike_at_sizes_that_the_stride_does_not_divide(
    head: Callable[[], nn.Module], resizes: int
) -> None:
    """By Resize, the one resizing that runtimes are fast at."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = DeepLab(Convolutions(), head(), stride=4).eval()
    height, width = (torch.export.Dim(name, min=17, max=500) for name in ("H", "W"))
    program = torch.onnx.export(
        model,
        (torch.rand(1, 3, 77, 90),),
        dynamic_shapes=({2: height, 3: width},),
        opset_version=20,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    operators = [node.op_type for node in program.model_proto.graph.node]
    assert operators.count("Resize") == resizes and "GatherND" not in operators
    session = runtime.InferenceSession(program.model_proto.SerializeToString())
    for size in ((64, 80), (101, 77), (33, 250)):
        images = torch.rand(1, 3, *size)
        (scores,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(scores), model(images).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_enlarging_as_one_operator_has_the_same_bits(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    """Values, gradients and layout, where the size cuts off more of one side than of the other."""
    torch.manual_seed(0)
    maps = torch.randn(2, 5, 7, 9, dtype=dtype).to(memory_format=layout)
    one, two = (maps.clone().requires_grad_() for _ in range(2))
    expected = enlarge(one, 8, (53, 66))
    found = torch.ops.segdeform.enlarge(two, 8, 53, 66)
    assert torch.equal(found, expected) and found.stride() == expected.stride()
    slopes = torch.randn_like(expected)
    expected.backward(slopes)
    found.backward(slopes)
    assert two.grad is not None and torch.equal(two.grad, one.grad)
    assert two.grad.stride() == one.grad.stride()


def test_the_operators_of_enlarging_keep_torchs_rules() -> None:
    maps = torch.randn(2, 5, 7, 9, requires_grad=True)
    torch.library.opcheck(torch.ops.segdeform.enlarge.default, (maps, 8, 53, 66))
    slopes = torch.randn(2, 5, 53, 66).to(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.segdeform.enlarge_backward.default, (slopes, 8, 7, 9))
