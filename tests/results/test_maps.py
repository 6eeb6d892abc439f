"""Labels, confidence and probabilities against enlarging everything in float64."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from segdeform.config.schema import EvalConfig
from segdeform.errors import ResourceError, UsageError
from segdeform.inference import logits, predict_labels, predict_maps
from segdeform.models import DeepLab
from segdeform.models.backbones import build_backbone
from segdeform.models.heads import DeepLabV3PlusHead
from segdeform.results import maps
from segdeform.results.maps import Coarse, MapWriter, confidence_of, probabilities_of
from segdeform.windows import Window

_STATUS = Path("/proc/self/status")


def network(classes: int) -> DeepLab:
    torch.manual_seed(classes)
    backbone = build_backbone("mobilenet_v2", "none", 16)
    head = DeepLabV3PlusHead(320, 24, classes, 16, (2, 3, 4))
    torch.nn.init.normal_(head.score.weight, std=2.0)
    return DeepLab(backbone, head, stride=4).eval()


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def scores_of(coarse: Coarse) -> Tensor:  # [K, H, W] float64
    size = [side * coarse.stride for side in coarse.scores.shape[2:]]
    large = F.interpolate(coarse.scores.double(), size, mode="bilinear", align_corners=False)[0]
    height, width = coarse.window[2:]
    return large[:, coarse.above : coarse.above + height, coarse.left : coarse.left + width]


def coarse_case(classes: int, stride: int, cut: Any, probabilities: bool = False) -> Coarse:
    generator = torch.Generator().manual_seed(stride)
    scores = 3 * torch.randn(1, classes, 13, 17, generator=generator)
    if probabilities:
        scores = scores.softmax(1)
    above, left, below, right = cut
    window = Window(0, 0, 13 * stride - above - below, 17 * stride - left - right)
    return Coarse(scores, stride, window, above, left, probabilities)


@pytest.mark.parametrize("part", [1, 5000, 2**23])
@pytest.mark.parametrize(
    ("classes", "stride", "cut", "probabilities"),
    [(5, 4, (0, 0, 0, 0), False), (3, 8, (3, 11, 9, 2), False), (7, 1, (2, 0, 1, 3), True),
     (300, 4, (5, 1, 0, 7), False)],
)  # fmt: skip
def test_maps_are_those_of_the_scores_of_all_pixels(
    classes: int, stride: int, cut: Any, probabilities: bool, part: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(maps, "_PART", part)
    monkeypatch.setattr(maps, "_PLANES", 4 * part)
    coarse = coarse_case(classes, stride, cut, probabilities)
    writer = MapWriter(coarse.window[2:], confidence=True, probabilities=True, scratch=None)
    writer.add(coarse)
    found = writer.finish()
    scores = scores_of(coarse)
    expected = scores if probabilities else scores.softmax(0)
    assert found.confidence is not None and found.probabilities is not None
    assert found.labels.dtype == (np.uint8 if classes <= 255 else np.uint16)
    labels = torch.from_numpy(found.labels.astype(np.int64))
    chosen = scores.gather(0, labels[None])[0]
    torch.testing.assert_close(chosen, scores.amax(0), atol=1e-5, rtol=0)
    off = np.abs(found.confidence - 255 * expected.amax(0).numpy())
    assert off.max() <= 0.5 + 1e-3
    assert np.abs(found.probabilities - expected.numpy()).max() <= 2**-11  # half a step at 1
    np.testing.assert_array_equal(confidence_of(coarse), found.confidence)
    np.testing.assert_array_equal(probabilities_of(coarse), found.probabilities)


@pytest.mark.parametrize(
    "options",
    [EvalConfig(), EvalConfig(tile=48), EvalConfig(flip=True), EvalConfig(scales=(0.5,)),
     EvalConfig(scales=(0.75, 1.5), tile=60)],
)  # fmt: skip
def test_maps_of_every_way_of_seeing_a_picture(options: EvalConfig) -> None:
    model, image = network(6), picture(83, 101)
    found = predict_maps(model, image, options, "cpu", confidence=True, probabilities=True)
    pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
    expected = logits(model, pixels, options).softmax(0).numpy()
    assert found.confidence is not None and found.probabilities is not None
    assert found.probabilities.dtype == np.float16
    assert np.abs(found.probabilities - expected).max() < 1e-3
    assert np.abs(found.confidence - 255 * expected.max(0)).max() < 0.51
    assert (found.labels == expected.argmax(0)).mean() > 0.999
    np.testing.assert_array_equal(predict_labels(model, image, options, "cpu"), found.labels)


def test_scores_are_kept_for_later_where_a_picture_is_seen_whole() -> None:
    model, image = network(5), picture(50, 70)
    found = predict_maps(model, image, EvalConfig(), "cpu", confidence=True, keep_coarse=True)
    assert found.coarse is not None and found.confidence is not None
    assert found.coarse.scores.shape == (1, 5, 13, 18)
    np.testing.assert_array_equal(confidence_of(found.coarse), found.confidence)
    assert predict_maps(model, image, EvalConfig(), "cpu").coarse is None
    tiled = EvalConfig(tile=40)
    assert predict_maps(model, image, tiled, "cpu", keep_coarse=True).coarse is None


class Strict:
    """A raster that gives nothing but rectangles, each a fresh array, as readers of files do."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = pixels
        self.shape = pixels.shape

    def __getitem__(self, part: tuple[slice, slice]) -> NDArray[np.uint8]:
        rows, columns = part
        assert rows.step is columns.step is None
        assert 0 <= rows.start < rows.stop <= self.shape[0]
        assert 0 <= columns.start < columns.stop <= self.shape[1]
        return self._pixels[rows, columns].copy()


@pytest.mark.parametrize("options", [EvalConfig(), EvalConfig(tile=48)])
def test_a_picture_is_read_by_rectangles_alone(options: EvalConfig, tmp_path: Path) -> None:
    model, image = network(3), picture(60, 81)
    mapped = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=image.shape)
    mapped[:] = image
    expected = predict_labels(model, image, options, "cpu")
    np.testing.assert_array_equal(predict_labels(model, Strict(image), options, "cpu"), expected)
    np.testing.assert_array_equal(predict_labels(model, mapped, options, "cpu"), expected)


def test_large_maps_lie_in_files_without_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = network(4), picture(70, 90)
    known = predict_maps(model, image, EvalConfig(), "cpu", confidence=True, probabilities=True)
    monkeypatch.setattr(maps, "IN_MEMORY", 70 * 90)
    found = predict_maps(
        model, image, EvalConfig(), "cpu", confidence=True, probabilities=True, scratch=tmp_path
    )
    assert found.confidence is not None and known.confidence is not None
    assert type(found.labels) is type(found.confidence) is np.ndarray  # just small enough
    assert isinstance(found.probabilities, np.memmap)
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(found.labels, known.labels)
    np.testing.assert_array_equal(found.confidence, known.confidence)
    assert known.probabilities is not None
    np.testing.assert_array_equal(found.probabilities, known.probabilities)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells it there")
def test_what_is_filled_counts_no_more_as_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mapped() -> int:
        found = re.search(r"RssFile:\s+(\d+) kB\nRssShmem:\s+(\d+)", _STATUS.read_text())
        assert found is not None
        return int(found[1]) + int(found[2])

    monkeypatch.setattr(maps, "IN_MEMORY", 1)
    array = maps.new_map((2**24,), np.uint8, tmp_path)
    before = mapped()
    array[:] = 7
    assert mapped() - before > 15_000
    maps.release_pages(array)
    assert mapped() - before < 2_000
    assert (array == 7).all()
    maps.release_pages(np.zeros(3))  # is in memory and stays there


def test_a_scratch_that_takes_nothing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "IN_MEMORY", 1)
    with pytest.raises(UsageError, match="missing"):
        maps.new_map((4, 4), np.uint8, tmp_path / "missing")

    def full(*_: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(ResourceError, match="No space left"):
        maps.new_map((4, 4), np.uint8, tmp_path)


def test_threads_share_a_network() -> None:
    model = network(5)
    images = [picture(60 + 7 * i, 80 - 5 * i, seed=i) for i in range(6)]

    def labelled(image: NDArray[np.uint8]) -> NDArray[Any]:
        return predict_labels(model, image, EvalConfig(), "cpu")

    expected = [labelled(image) for image in images]
    with ThreadPoolExecutor(3) as pool:
        for found, known in zip(pool.map(labelled, images), expected, strict=True):
            np.testing.assert_array_equal(found, known)
