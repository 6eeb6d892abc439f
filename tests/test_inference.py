"""Tiles, scales and flips against whole pictures, naive loops and formulas written out."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from segdeform import blended, inference, windows
from segdeform.config.schema import EvalConfig
from segdeform.errors import NotFiniteError, ResourceError
from segdeform.inference import logits, predict_labels
from segdeform.room import Cost, Room, room_of


class Output(NamedTuple):
    logits: Tensor
    auxiliary: Tensor | None = None


class Convolution(nn.Module):
    """One convolution: pixelwise for kernel 1, aware of its surroundings for a larger one."""

    def __init__(self, kernel: int, classes: int = 4, symmetric: bool = False) -> None:
        super().__init__()
        torch.manual_seed(kernel)
        self.convolution = nn.Conv2d(3, classes, kernel, padding=kernel // 2)
        if symmetric:
            weight = self.convolution.weight
            weight.data = (weight + weight.flip(3)).detach()
        self.sizes: list[tuple[int, int]] = []

    def forward(self, images: Tensor) -> Output:
        self.sizes.append((images.shape[2], images.shape[3]))
        return Output(self.convolution(images))


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


def test_many_small_windows_are_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """Minutes of silence otherwise, on a network that is not as quick as this one."""
    network = Convolution(1)
    for _ in range(2):
        predict_labels(network, picture(101, 91), EvalConfig(tile=5), "cpu")
    assert [record.getMessage() for record in caplog.records] == [
        "a picture of 101x91 pixels takes 575 windows of 5x5: a larger --tile (config key "
        "eval.tile) is faster"
    ]
    predict_labels(network, picture(101, 91), EvalConfig(tile=64), "cpu")
    assert len(caplog.records) == 1
    assert len(network.sizes) == 2 * 575 + 4


@settings(max_examples=20, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    tile=st.integers(1, 40),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.83]),
    accumulator=st.sampled_from([1, 20_000, 2**29]),
)
def test_tiles_of_a_pixelwise_network_give_the_whole_picture(
    height: int, width: int, tile: int, overlap: float, accumulator: int
) -> None:
    tile = max(tile, 4) if overlap == 0.83 else tile
    model, image = Convolution(1), picture(height, width)
    whole = model(tensor(image)[None]).logits[0].detach()
    options = EvalConfig(tile=tile, overlap=overlap)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blended, "_ACCUMULATOR_BYTES", accumulator)
        torch.testing.assert_close(
            logits(model, tensor(image), options), whole, atol=1e-5, rtol=1e-5
        )
        labels = predict_labels(model, image, options, "cpu")
    chosen = whole.gather(0, torch.from_numpy(labels).long()[None])[0]
    torch.testing.assert_close(chosen, whole.amax(0), atol=1e-5, rtol=1e-5)


def naive_blend(
    model: nn.Module, image: Tensor, tile: int, stride: int, blend: str = "gaussian"
) -> Tensor:
    """Blends tiles in float64 pixel by pixel: equal or Gaussian weights, sigma a quarter tile."""
    _, height, width = image.shape
    total = torch.zeros(4, height, width, dtype=torch.float64)
    share = torch.zeros(height, width, dtype=torch.float64)
    tops = sorted({*range(0, height - tile, stride), height - tile})
    lefts = sorted({*range(0, width - tile, stride), width - tile})
    for top in tops:
        for left in lefts:
            out = model(image[None, :, top : top + tile, left : left + tile]).logits[0].double()
            for y in range(tile):
                for x in range(tile):
                    squares = (y - (tile - 1) / 2) ** 2 + (x - (tile - 1) / 2) ** 2
                    weight = np.exp(-0.5 * squares / (tile / 4) ** 2)
                    weight = 1.0 if blend == "uniform" else weight
                    total[:, top + y, left + x] += weight * out[:, y, x]
                    share[top + y, left + x] += weight
    return (total / share).float()


@pytest.mark.parametrize("blend", ["gaussian", "uniform"])
@pytest.mark.parametrize("accumulator", [1, 4 * 4 * 12 * 20, 2**29])
def test_blending_equals_a_naive_loop(
    accumulator: int, blend: Literal["gaussian", "uniform"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blended, "_ACCUMULATOR_BYTES", accumulator)
    model, image = Convolution(5), picture(29, 47)
    with torch.no_grad():
        expected = naive_blend(model, tensor(image), tile=12, stride=9, blend=blend)
    options = EvalConfig(tile=12, overlap=0.25, blend=blend)
    torch.testing.assert_close(logits(model, tensor(image), options), expected)
    labels = predict_labels(model, image, options, "cpu")
    np.testing.assert_array_equal(labels, expected.argmax(0).numpy())


def test_bands_change_memory_but_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = Convolution(5), tensor(picture(40, 90))
    options = EvalConfig(tile=16, overlap=0.4)
    whole = logits(model, image, options)
    once = len(model.sizes)
    monkeypatch.setattr(blended, "_ACCUMULATOR_BYTES", 1)
    assert torch.equal(logits(model, image, options), whole)
    assert len(model.sizes) > 2 * once  # the windows across cuts were computed twice
    assert set(model.sizes) == {(16, 16)}


def test_a_band_is_met_by_the_windows_that_have_columns_of_it() -> None:
    band = windows.Band(10, 20, torch.ones(3, 4))
    common = {x for x in range(40) if {*range(x, x + 4)} & {*range(10, 20)}}
    assert {x for x in range(40) if band.meets(x)} == common


@pytest.mark.parametrize("tile", [0, 31, 1000])
def test_a_tile_as_large_as_the_picture_is_the_whole_picture_exactly(tile: int) -> None:
    model, image = Convolution(5), picture(17, 31)
    whole = model(tensor(image)[None]).logits[0].detach()
    assert torch.equal(logits(model, tensor(image), EvalConfig(tile=tile)), whole)
    assert model.sizes == [(17, 31)] * 2
    labels = predict_labels(model, image, EvalConfig(tile=tile), "cpu")
    np.testing.assert_array_equal(labels, whole.argmax(0).numpy())


def room_for(model: nn.Module, pixels: float, monkeypatch: pytest.MonkeyPatch) -> Room:
    """Leaves a network room for so many pixels of one pass."""
    monkeypatch.setattr(inference, "_SMALL", 0)
    monkeypatch.setattr(inference, "_SMALL_OF_SEVERAL", 0)
    room = room_of(model, torch.device("cpu"), 3)
    room.bytes = math.ceil(pixels * room.cost.whole)
    return room


def test_very_large_pictures_are_tiled_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "AUTOMATIC_TILE", 8)
    model = Convolution(3)
    room_for(model, 100, monkeypatch)
    model.sizes.clear()
    predict_labels(model, picture(10, 10), EvalConfig(), "cpu")
    predict_labels(model, picture(10, 11), EvalConfig(), "cpu")
    assert model.sizes == [(10, 10), *[(8, 8)] * 4]


def test_windows_nobody_asked_for_fit_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Convolution(3)
    room_for(model, 25, monkeypatch)
    model.sizes.clear()
    predict_labels(model, picture(10, 11), EvalConfig(automatic_tile=9), "cpu")
    assert set(model.sizes) == {(5, 5)}


@pytest.mark.parametrize(
    ("height", "width", "scale"), [(24, 33, 0.5), (41, 24, 0.5), (12, 99, 1.0), (11, 7, 1.0)]
)
@pytest.mark.parametrize("flip", [False, True])
def test_pictures_with_a_longer_shorter_side_are_seen_reduced(
    height: int, width: int, scale: float, flip: bool
) -> None:
    """As by a scale, which smaller pictures do not get."""
    model, image = Convolution(5), picture(height, width)
    model.sizes.clear()
    found = predict_labels(model, image, EvalConfig(shorter_side=12, flip=flip), "cpu")
    assert set(model.sizes) == {(round(scale * height), round(scale * width))}
    expected = predict_labels(model, image, EvalConfig(scales=(scale,), flip=flip), "cpu")
    np.testing.assert_array_equal(found, expected)
    scores = logits(model, tensor(image), EvalConfig(shorter_side=12, flip=flip))
    np.testing.assert_array_equal(scores.argmax(0).numpy(), expected)


def test_scales_are_of_the_reduced_picture_and_windows_grow_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Convolution(3)
    options = EvalConfig(shorter_side=12, scales=(0.5, 1.0))
    predict_labels(model, picture(48, 60), options, "cpu")
    assert set(model.sizes) == {(6, 8), (12, 15)}
    room_for(model, 48 * 48 * 3, monkeypatch)
    model.sizes.clear()
    options = EvalConfig(shorter_side=24, automatic_tile=20, overlap=0)
    predict_labels(model, picture(48, 280), options, "cpu")
    assert set(model.sizes) == {(20, 20)}  # of windows of 40, as a picture of half the size shows


@pytest.mark.parametrize(
    ("classes", "scales", "flip", "pixels"),  # how many of one pass the passes count as
    [(3, (1.0,), False, 1), (300, (1.0,), False, 1), (3, (0.5,), False, 1),
     (300, (0.5,), False, 1.5), (3, (1.0,), True, 1.5), (300, (1.0, 0.5), False, 2),
     (300, (1.25,), False, 2)],
)  # fmt: skip
def test_passes_that_hold_scores_of_all_pixels_have_less_room(
    classes: int,
    scales: tuple[float, ...],
    flip: bool,
    pixels: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bound is in bytes: of what the network takes, and of the scores of several passes."""
    model = Convolution(3, classes)
    options = EvalConfig(scales=scales, flip=flip)
    room = room_for(model, 1000, monkeypatch)
    assert room.cost.classes == classes
    assert 4 * classes <= room.cost.whole <= 4 * (2 * classes + 12)  # the scores, and a copy
    taken = inference._bytes_a_pixel(room.cost, options) / room.cost.whole
    assert taken >= pixels
    source = windows.Source(lambda window: torch.zeros(0), (10, 100), 3, torch.device("cpu"))
    assert inference._fits(model, source, options) == (taken <= 1)


def test_a_reduced_picture_takes_what_the_network_sees_of_it() -> None:
    """Else a photograph is cut into windows of which the network is shown a few pixels."""
    cost = Cost(whole=200.0, classes=3, given=12.0)
    reduced = inference._bytes_a_pixel(cost, EvalConfig(scales=(0.125,)))
    assert 12 + 2 * 4 * 3 <= reduced < 50  # the picture and its scores, and a little
    assert inference._bytes_a_pixel(cost, EvalConfig(scales=(2.0,))) > 4 * 200
    both = inference._bytes_a_pixel(cost, EvalConfig(scales=(0.125, 1.0)))
    assert both > 200  # the largest counts


def test_flip_changes_nothing_for_a_mirror_symmetric_network() -> None:
    model, image = Convolution(5, symmetric=True), tensor(picture(20, 33))
    plain = logits(model, image, EvalConfig()).softmax(0)
    flipped = logits(model, image, EvalConfig(flip=True)).exp()
    torch.testing.assert_close(flipped, plain)


def test_flips_and_scales_average_probabilities() -> None:
    model, image = Convolution(5), tensor(picture(20, 33))
    expected = torch.zeros(4, 20, 33)
    with torch.no_grad():
        for size in ((10, 16), (20, 33), (30, 50)):
            images = F.interpolate(
                image[None], size, mode="bilinear", align_corners=False, antialias=True
            )
            for axes in ([], [3]):
                out = model(images.flip(axes)).logits.flip(axes)
                out = F.interpolate(out, (20, 33), mode="bilinear", antialias=True)
                expected += out[0].softmax(0) / 6
    options = EvalConfig(scales=(0.5, 1.0, 1.5), flip=True)
    result = logits(model, image, options)
    torch.testing.assert_close(result, expected.log())
    torch.testing.assert_close(result.exp().sum(0), torch.ones(20, 33))


def test_certain_probabilities_have_finite_logarithms() -> None:
    model = Convolution(1)
    model.convolution.weight.data *= 1e4
    result = logits(model, tensor(picture(8, 8)), EvalConfig(flip=True))
    assert result.isfinite().all()


def test_equal_scores_choose_the_lowest_class() -> None:
    model = Convolution(1)
    model.convolution.weight.data.zero_()
    model.convolution.bias = nn.Parameter(torch.tensor([0.0, 2.0, 2.0, 2.0]))
    for options in (EvalConfig(), EvalConfig(tile=8), EvalConfig(flip=True)):
        labels = predict_labels(model, picture(20, 20), options, "cpu")
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, 1)


def test_read_only_pictures_are_taken_and_left_alone() -> None:
    image = picture(5, 6)
    before = image.copy()
    image.flags.writeable = False
    predict_labels(Convolution(3), image, EvalConfig(), "cpu")
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_scores_that_are_no_numbers_are_refused(value: float) -> None:
    model = Convolution(1)
    assert model.convolution.bias is not None
    model.convolution.bias.data[2] = value
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        predict_labels(model, picture(9, 9), EvalConfig(tile=4), "cpu")


class Hungry(nn.Module):
    def forward(self, images: Tensor) -> Output:
        return Output(torch.empty(10**15))


class Broken(nn.Module):
    def forward(self, images: Tensor) -> Output:
        raise RuntimeError("shapes do not fit")


def test_memory_that_ends_names_the_way_out() -> None:
    with pytest.raises(ResourceError, match=r"30x40 pixels.*--tile"):
        predict_labels(Hungry(), picture(30, 40), EvalConfig(), "cpu")
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        predict_labels(Broken(), picture(30, 40), EvalConfig(), "cpu")


class Limited(Convolution):
    """Has memory for so many pixels."""

    most = 400 * 400

    def forward(self, images: Tensor) -> Output:
        if images.shape[2] * images.shape[3] > self.most:
            raise MemoryError
        return super().forward(images)


def test_windows_become_smaller_where_memory_ends(caplog: pytest.LogCaptureFixture) -> None:
    model, image = Limited(1), picture(390, 870)
    labels = predict_labels(model, image, EvalConfig(automatic_tile=600), "cpu")
    np.testing.assert_array_equal(
        labels, model.convolution(tensor(image)[None])[0].argmax(0).numpy()
    )
    assert next(record.getMessage() for record in caplog.records) == (
        "memory ended on a picture of 390x870 pixels: it is seen in smaller windows, which takes "
        "longer"
    )
    caplog.clear()
    predict_labels(model, image, EvalConfig(automatic_tile=600), "cpu")
    assert not caplog.records  # it is known by now


def test_windows_that_are_asked_for_are_not_made_smaller() -> None:
    with pytest.raises(ResourceError, match=r"390x870 pixels.*smaller ones"):
        predict_labels(Limited(1), picture(390, 870), EvalConfig(tile=600), "cpu")


def test_work_in_hand_does_not_grow_with_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """No block of scores is taller than a window or wider than the accumulator allows."""
    monkeypatch.setattr(blended, "_ACCUMULATOR_BYTES", 4 * 4 * 16 * 40)
    model, image = Convolution(1), tensor(picture(100, 300))
    options = EvalConfig(tile=16, overlap=0.25)
    covered = torch.zeros(100, 300)

    def read(window: windows.Window) -> Tensor:
        top, left, height, width = window
        return image[None, :, top : top + height, left : left + width]

    source = windows.Source(read, (100, 300), 3, torch.device("cpu"))
    for piece in inference._pieces(model, source, options):
        top, left, height, width = piece.window
        assert piece.scores.shape == (1, 4, height, width)
        assert height <= 16
        assert width <= 40 + 16
        covered[top : top + height, left : left + width] += 1
    assert (covered == 1).all()
