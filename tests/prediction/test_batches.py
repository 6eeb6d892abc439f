"""Pictures seen by the network together come in order, fail alone, and are labelled the same."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from segdeform.config.schema import EvalConfig
from segdeform.errors import PartialFailureError
from segdeform.inference import coarse_together, predict_maps
from segdeform.prediction import batches
from segdeform.prediction.predict import predict
from segdeform.prediction.reading import Seen
from segdeform.prediction.records import InputFile
from tests.models.test_precision import network
from tests.prediction.test_predict import save_picture, segmenter

__all__ = ["segmenter"]  # a fixture


def read(size: tuple[int, int] | None, failure: Exception | None = None) -> Future[Seen | None]:
    future: Future[Seen | None] = Future()
    if failure is not None:
        future.set_exception(failure)
    else:
        image = None if size is None else np.zeros((*size, 3), np.uint8)
        future.set_result(Seen(image, 1, InputFile(0, 0, "")))
    return future


def test_neighbours_of_a_size_are_grouped_and_the_order_kept() -> None:
    small, wide = (5, 7), (7, 5)
    nothing: Future[Seen | None] = Future()
    nothing.set_result(None)  # the end of a video
    readings = [
        *[("a", read(small)), ("b", read(small)), ("c", read(wide)), ("d", read(small))],
        *[("e", read(None)), ("f", read(small)), ("g", read(None, PartialFailureError("bad")))],
        *[("h", read(wide)), ("i", read(wide)), ("j", read(wide)), ("k", read(wide))],
        *[("l", nothing), ("m", read(small))],
    ]
    groups = batches.grouped(readings, lambda size: 3 if size == wide else 2)
    names = ["".join(item for item, _ in group) for group in groups]
    assert names == ["ab", "c", "d", "e", "f", "g", "hij", "k", "l", "m"]


@pytest.mark.parametrize(
    ("device", "compiled", "size", "expected"),
    [
        ("cpu", False, (20, 30), 4),
        ("cpu", False, (256, 256), 4),
        ("cpu", False, (300, 300), 2),
        ("cpu", False, (512, 512), 1),
        ("cpu", False, (5000, 5000), 1),
        ("cuda", False, (512, 512), 8),
        ("cuda", False, (1024, 2048), 1),
        ("cuda", True, (20, 30), 1),
    ],
)
def test_so_many_are_seen_at_once(
    segmenter: Any, device: str, compiled: bool, size: tuple[int, int], expected: int
) -> None:
    segmenter.device, segmenter.compiled = torch.device(device), compiled
    assert batches.at_once(segmenter, size) == expected


def test_labels_are_those_of_each_picture_alone() -> None:
    """But for the last bits of sums that are added up in another order."""
    model = network("none")
    rng = np.random.default_rng(0)
    pictures = [
        np.asarray(Image.fromarray(rng.integers(0, 256, (9, 7, 3), np.uint8)).resize((97, 129)))
        for _ in range(4)
    ]
    together = coarse_together(model, pictures, EvalConfig(), "cpu")
    equal = 0
    for picture, coarse in zip(pictures, together, strict=True):
        assert coarse is not None
        alone = predict_maps(model, picture, EvalConfig(), "cpu", confidence=True)
        batched = predict_maps(model, picture, EvalConfig(), "cpu", coarse=coarse, confidence=True)
        equal += int((alone.labels == batched.labels).sum())
        assert alone.confidence is not None and batched.confidence is not None
        np.testing.assert_allclose(alone.confidence, batched.confidence, atol=1)
    assert equal >= 0.99999 * 4 * 97 * 129


@pytest.mark.parametrize("options", [{"tile": 64}, {"flip": True}, {"scales": (0.5,)}])
def test_windows_and_several_passes_are_seen_alone(options: dict[str, Any]) -> None:
    pictures = [np.zeros((65, 65, 3), np.uint8)] * 2
    found = coarse_together(network("none"), pictures, EvalConfig(**options), "cpu")
    assert found == [None, None]


def test_a_picture_fails_alone_and_memory_that_ends_is_none_of_the_others(
    segmenter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network("none")
    plain, seen = model.maps, []

    def maps(images: Tensor) -> Tensor:
        seen.append(len(images))
        if len(images) == 3:
            raise MemoryError
        scores = plain(images)
        scores[(images.mean((1, 2, 3)) > 0.9)] = float("nan")  # of the white one
        return scores

    monkeypatch.setattr(model, "maps", maps)
    segmenter.model = model
    segmenter.classes, segmenter.palette = tuple("abcdefghijk"), ((9, 9, 9),) * 11
    for k in range(7):
        save_picture(tmp_path / "in" / f"{k}.png", k, (40, 33))
    Image.fromarray(np.full((40, 33, 3), 255, np.uint8)).save(tmp_path / "in" / "2.png")
    summary = predict(segmenter, [tmp_path / "in"], tmp_path / "out", outputs=["masks"])
    assert seen == [4, 3, 1, 1, 1]
    assert [done.name for done in summary.done] == ["0", "1", "3", "4", "5", "6"]
    assert [path.name for path, _ in summary.failed] == ["2.png"]
    assert "NaN" in summary.failed[0][1]
