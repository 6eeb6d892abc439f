"""Sampling points against gradients: a sample is where the image has an influence."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from cuda_ops.layers import DeformConv2d, ModulatedDeformConv2d
from segdeform.errors import DataError, ModelError, NotFiniteError
from segdeform.explaining import sampling
from segdeform.explaining.sampling import LayerSampling, follow, place_of, record
from segdeform.explaining.statistics import LayerStatistics, _plain, labels_at
from segdeform.segmenter import Segmenter, load
from tests.explaining.conftest import model_folder


def layer_of(layer: DeformConv2d, x: torch.Tensor, stride: int) -> LayerSampling:
    with torch.no_grad():
        offset, mask = layer.sampling(x)
    return sampling._layer_sampling("layer", layer, stride, (x.shape[2], x.shape[3]), offset, mask)


def test_followed_points_are_the_pixels_with_an_influence() -> None:
    """Whole offsets: no interpolation, so that the gradient is not 0 at the samples alone."""
    torch.manual_seed(0)
    layers = [
        ModulatedDeformConv2d(1, 1, 3, padding=(2, 1), dilation=(2, 1)),
        DeformConv2d(1, 1, (3, 2), stride=2, padding=(1, 0)),
    ]
    for layer in layers:
        nn.init.uniform_(layer.weight, 0.5, 1)
        assert layer.offset_conv.bias is not None
        positions = 2 * layer.kernel_size[0] * layer.kernel_size[1]
        with torch.no_grad():
            layer.offset_conv.bias[:positions] = torch.randint(-3, 4, (positions,)).float()
            layer.offset_conv.bias[positions:] = torch.randn(
                len(layer.offset_conv.bias) - positions
            )
    image = torch.rand(1, 1, 16, 14, requires_grad=True)
    middle = layers[0](image)
    output = layers[1](middle)
    recorded = [layer_of(layers[0], image, 1), layer_of(layers[1], middle, 1)]
    assert recorded[1].output_stride == 2
    for place in ((0, 0), (3, 2), (7, 5)):
        (grad,) = torch.autograd.grad(output[0, 0, *place], image, retain_graph=True)
        points = follow(recorded, place)
        reached = np.zeros((16, 14), bool)
        reached[points.y.astype(int), points.x.astype(int)] = True
        assert np.array_equal(reached, grad[0, 0].numpy() != 0)
        assert len(points.y) + points.lost == 54
        scale = layers[0].weight.flatten().outer(layers[1].weight.flatten())
        assert points.weight.min() > 0 and scale.shape == (9, 6)


def test_weights_are_the_products_of_the_modulations() -> None:
    layer = ModulatedDeformConv2d(1, 1, (2, 1))
    with torch.no_grad():
        assert layer.offset_conv.bias is not None
        layer.offset_conv.bias[4:] = torch.tensor([0.0, 100.0])  # modulations 1 and 2
    x = torch.rand(1, 1, 6, 5)
    one = layer_of(layer, x, 1)
    points = follow([one, one], (0, 0))
    assert sorted(points.weight.tolist()) == [1, 2, 2, 4]
    assert sorted(points.y.tolist()) == [0, 1, 1, 2] and set(points.x.tolist()) == {0}


def plain_layer(
    dilation: tuple[int, int] = (2, 2), size: tuple[int, int] = (5, 6)
) -> LayerSampling:
    return LayerSampling(
        "plain", (3, 3), (1, 1), dilation, dilation, size, 4,
        np.zeros((1, 9, 2, *size), np.float32), np.ones((1, 9, *size), np.float32),
    )  # fmt: skip


def test_a_plain_layer_has_its_dilation_and_moves_nothing() -> None:
    layer = plain_layer((3, 3))
    assert np.allclose(layer.effective_dilation(), 3)
    assert np.array_equal(layer.offset_length(), np.zeros((5, 6)))
    # 3 of 9 taps lie above the first three rows, and so on: count them one by one.
    ys, xs = (np.add.outer(np.arange(n), [-3, 0, 3]) for n in (5, 6))
    out_y, out_x = (ys <= -1) | (ys >= 5), (xs <= -1) | (xs >= 6)
    assert layer.outside().sum() == (out_y[:, None, :, None] | out_x[None, :, None, :]).sum()


def test_a_sample_between_border_and_picture_still_reads_a_part_of_it() -> None:
    layer = plain_layer((1, 1))
    layer.offset[0, 4, :, 0, 0] = (-0.5, 0)  # the middle tap: half of the first row's weight
    layer.offset[0, 4, :, 0, 1] = (-1, 0)  # none of it
    layer.offset[0, 4, :, 4, 5] = (0.5, 0.5)
    layer.offset[0, 4, :, 4, 4] = (1, 0)
    middle = layer.outside()[0, 4]
    assert np.argwhere(middle).tolist() == [[0, 1], [4, 4]]


def test_effective_dilation_by_hand() -> None:
    """A tap pulled away: by Pythagoras, its distance to four neighbours changes."""
    layer = plain_layer((1, 1))
    layer.offset[0, 4, :, 2, 3] = (0, 0.5)  # the middle tap moves to the right
    expected = (8 * 1 + 0.5 + 1.5 + 2 * np.sqrt(1.25)) / 12
    assert layer.effective_dilation()[0, 2, 3] == pytest.approx(expected)
    assert layer.effective_dilation()[0, 0, 0] == 1
    assert layer.offset_length()[2, 3] == pytest.approx(4 * 0.5 / 9)


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_recording_leaves_the_network_as_it_was(
    stride: int, image: NDArray[np.uint8], tmp_path: Path
) -> None:
    segmenter = load(model_folder(tmp_path / "m", 4, stride), "cpu")
    before = segmenter.predict(image)
    layers, labels = record(segmenter, image)
    assert np.array_equal(labels, before) and np.array_equal(segmenter.predict(image), before)
    assert [layer.name for layer in layers] == [
        f"features.{number}.conv.1.0" for number in (14, 15, 16, 17)
    ]
    for layer, after in pairwise(layers):
        assert layer.size == after.input_size and layer.output_stride == after.input_stride
    assert layers[-1].output_stride == stride
    assert layers[-1].size == (-(-150 // stride), -(-210 // stride))
    assert place_of(layers[-1], (149, 0))[0] == layers[-1].size[0] - 1


def test_what_cannot_be_explained_is_refused(
    segmenter: Segmenter, image: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"no deformable layers.*deform.layers=3"):
        record(load(model_folder(tmp_path / "plain", 0), "cpu"), image)
    for layers in ("features.16.*", ["features.15.*", "features.17.*"]):
        apart = load(model_folder(tmp_path / "apart", layers), "cpu")
        with pytest.raises(ModelError, match="other convolutions between its deformable layers"):
            record(apart, image)
        shutil.rmtree(tmp_path / "apart")
    named = load(model_folder(tmp_path / "named", ["features.1[67].*"]), "cpu")
    assert len(record(named, image)[0]) == 2
    monkeypatch.setattr(sampling, "WHOLE_LIMIT", 1000)
    with pytest.raises(DataError, match="150x210 pixels is too large"):
        record(segmenter, image)


def test_offsets_that_are_no_numbers_are_named(image: NDArray[np.uint8], tmp_path: Path) -> None:
    segmenter = load(model_folder(tmp_path / "m", 1), "cpu")
    for name, parameter in segmenter.model.named_parameters():
        if name.endswith("offset_conv.bias"):
            parameter.data[3] = float("nan")
    with pytest.raises(NotFiniteError, match=r"features\.17"):
        record(segmenter, image)


def test_the_plain_dilation_is_the_mean_over_neighbouring_taps() -> None:
    """3 x 2 taps: four pairs below each other, three beside each other."""
    layer = LayerSampling(
        "plain", (3, 2), (1, 1), (2, 1), (2, 1), (5, 6), 4,
        np.zeros((1, 6, 2, 5, 6), np.float32), np.ones((1, 6, 5, 6), np.float32),
    )  # fmt: skip
    assert _plain(layer) == pytest.approx((4 * 2 + 3 * 1) / 7)
    assert layer.effective_dilation() == pytest.approx(_plain(layer))


def test_statistics_equal_a_naive_loop(segmenter: Segmenter, image: NDArray[np.uint8]) -> None:
    rng = np.random.default_rng(1)
    mask = rng.choice([0, 1, 255], image.shape[:2]).astype(np.uint8)
    layer = record(segmenter, image)[0][-1]
    k = len(segmenter.classes)
    statistics = LayerStatistics(layer.name, 2.0, np.zeros(k, np.int64), np.zeros(k), np.zeros(k))
    for _ in range(2):
        statistics.add(layer, labels_at(layer, mask))
    seen: dict[int, list[float]] = {0: [], 1: [], 2: []}
    dilation = layer.effective_dilation()[0]
    for row in range(layer.size[0]):
        for column in range(layer.size[1]):
            label = int(mask[min(16 * row, 149), min(16 * column, 209)])
            if label != 255:
                seen[label].append(float(dilation[row, column]))
    facts = statistics.to_json(segmenter.classes)
    for label, values in seen.items():
        row_facts = facts["classes"][label]
        assert row_facts["places"] == 2 * len(values)
        if values:
            assert row_facts["mean"] == pytest.approx(np.mean(values))
            assert row_facts["std"] == pytest.approx(np.std(values), abs=1e-6)
        else:
            assert row_facts["mean"] is None
    assert facts["share_outside"] == pytest.approx(layer.outside().mean())
    assert facts["mean_offset_pixels"] == pytest.approx(layer.offset_length().mean(), rel=1e-5)
