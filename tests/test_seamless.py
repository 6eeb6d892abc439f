"""Pictures seen in windows against the same seen whole."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segdeform import inference, room, seamless
from segdeform.config.schema import EvalConfig
from segdeform.errors import InterruptedByUserError, ResourceError
from segdeform.inference import logits, predict_labels, predict_maps
from segdeform.models import DeepLab, deformify
from segdeform.models.backbones import ResNet
from segdeform.models.blocks import BasicBlock
from segdeform.models.folding import fold_batch_norm
from segdeform.models.heads import DeepLabHead, DeepLabV3Head, DeepLabV3PlusHead, Head
from segdeform.models.segformer import SegFormerHead
from segdeform.models.upernet import UPerNetHead
from segdeform.room import Room, room_of


def network(head: str, stride: int, layers: int = 0) -> DeepLab:
    """Builds a ResNet of one block a stage: it looks 97 pixels far at stride 16."""
    torch.manual_seed(stride)
    backbone = ResNet(BasicBlock, (1, 1, 1, 1), stride)
    deformify(backbone, layers)
    sizes = {"classes": 6, "head_channels": 8}
    built_head: Head
    match head:
        case "deeplab":
            built_head = DeepLabHead(512, **sizes)
        case "deeplabv3":
            built_head = DeepLabV3Head(512, rates=(1, 2), **sizes)
        case "deeplabv3plus":
            built_head = DeepLabV3PlusHead(512, 64, rates=(1, 2), ratio=stride // 4, **sizes)
        case _:
            kind = UPerNetHead if head == "upernet" else SegFormerHead
            built_head = kind(backbone.stage_channels, backbone.stage_strides, **sizes)
            backbone.gives_second = True
    nn.init.normal_(built_head.score.weight)
    for name, values in backbone.named_parameters():
        if name.endswith("offset_conv.weight"):
            nn.init.normal_(values, std=0.02)  # about a pixel of the map
    low = stride if head in ("deeplab", "deeplabv3") else 4
    model = DeepLab(backbone, built_head, stride=low).eval()
    fold_batch_norm(model)
    return model


def picture(height: int, width: int) -> NDArray[np.uint8]:
    """Draws blobs of several sizes, so that labels change from place to place."""
    generator = torch.Generator().manual_seed(height)
    total = torch.zeros(3, height, width)
    for side in (3, 9, 40):
        noise = torch.rand(1, 3, side, side, generator=generator)
        total += nn.functional.interpolate(noise, (height, width), mode="bicubic")[0]
    return (total / 3).clamp(0, 1).mul(255).byte().permute(1, 2, 0).numpy().copy()


def tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).float() / 255


class Counted:
    """Counts what the backbone and the head are shown: pixels each time."""

    def __init__(self, model: DeepLab) -> None:
        self.windows: list[int] = []
        self.decoded = 0
        model.backbone.register_forward_pre_hook(self._note)
        model.head.score.register_forward_pre_hook(self._note_head)  # type: ignore[union-attr]

    def _note_head(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.decoded += 1

    def _note(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.windows.append(given[0].shape[2] * given[0].shape[3])


def small_room(model: DeepLab, pixels: int, kept: float, patch: pytest.MonkeyPatch) -> Room:
    """Leaves room for so many pixels of the backbone beside the kept features of others."""
    patch.setattr(inference, "_SMALL", 0)
    patch.setattr(inference, "_SMALL_OF_SEVERAL", 0)
    found = room_of(model, torch.device("cpu"), 3)
    # A head as narrow as this one would look at everything at once.
    found.cost = found.cost._replace(head=found.cost.backbone)
    found.bytes = int(pixels * found.cost.backbone + kept * found.cost.kept)
    return found


@pytest.mark.parametrize(
    ("head", "stride", "chunked"),
    [("deeplabv3plus", 16, False), ("deeplabv3plus", 8, True), ("deeplabv3", 16, False),
     ("deeplabv3plus", 32, False), ("deeplab", 8, False), ("upernet", 16, False),
     ("upernet", 32, True), ("segformer", 16, False)],
)  # fmt: skip
def test_windows_give_the_scores_of_the_whole(
    head: str, stride: int, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = network(head, stride), picture(403, 507)
    whole = logits(model, tensor(image), EvalConfig())
    labels = predict_labels(model, image, EvalConfig(), "cpu")
    assert len(np.unique(labels)) >= 2
    if not chunked or head == "upernet":  # which keeps less at stride 32 than others at 8
        monkeypatch.setattr(seamless, "_KEPT_SHARE", 0.2 if chunked else 1.0)
    small_room(model, 360 * 360, 0 if chunked else 403 * 507, monkeypatch)
    seen = Counted(model)
    found = logits(model, tensor(image), EvalConfig())
    assert len(seen.windows) >= (6 if chunked else 3)
    assert max(seen.windows) <= 390 * 390
    assert not chunked or sum(seen.windows) > 2 * 403 * 507  # once before, for the means
    assert seen.decoded >= 2
    torch.testing.assert_close(found, whole, atol=2e-5 * float(whole.abs().max()), rtol=0)
    tiled = predict_labels(model, image, EvalConfig(), "cpu")
    assert (tiled == labels).mean() >= 0.9999


def test_deformable_layers_look_hardly_farther(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = network("deeplabv3plus", 16, layers=3), picture(403, 507)
    labels = predict_labels(model, image, EvalConfig(), "cpu")
    small_room(model, 390 * 390, 403 * 507, monkeypatch)
    assert (predict_labels(model, image, EvalConfig(), "cpu") == labels).mean() >= 0.999


def test_confidence_and_probabilities_are_those_of_the_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, image = network("deeplabv3", 16), picture(403, 507)

    def maps() -> tuple[NDArray[Any], ...]:
        found = predict_maps(model, image, EvalConfig(), "cpu", confidence=True, probabilities=True)
        assert found.confidence is not None and found.probabilities is not None
        return found.confidence.astype(int), found.probabilities

    whole = maps()
    small_room(model, 390 * 390, 403 * 507, monkeypatch)
    found = maps()
    assert np.abs(found[0] - whole[0]).max() <= 1
    assert np.abs(found[1] - whole[1]).max() <= 2e-3


def limit_backbone(model: DeepLab, most: int) -> None:
    def refuse(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        if given[0].shape[2] * given[0].shape[3] > most:
            raise MemoryError

    model.backbone.register_forward_pre_hook(refuse)


@pytest.mark.parametrize("whole", [True, False])
def test_windows_become_smaller_until_they_fit(
    whole: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the whole is too much, and where the windows are that it is seen in instead."""
    image = picture(403, 507)
    expected = predict_labels(network("deeplabv3plus", 16), image, EvalConfig(), "cpu")
    model = network("deeplabv3plus", 16)
    limit_backbone(model, 360 * 360)
    if not whole:
        small_room(model, 400 * 400, 403 * 507, monkeypatch)
    found = predict_labels(model, image, EvalConfig(), "cpu")
    assert (found == expected).mean() >= 0.9999
    told = [record.getMessage() for record in caplog.records]
    assert told and set(told) == {
        "memory ended on a picture of 403x507 pixels: it is seen in smaller windows, which takes "
        "longer"
    }
    caplog.clear()
    predict_labels(model, image, EvalConfig(), "cpu")
    assert not caplog.records  # what fits is known by now


def test_without_memory_for_any_window_the_picture_fails() -> None:
    model = network("deeplabv3plus", 16)
    limit_backbone(model, 200 * 200)
    with pytest.raises(ResourceError, match=r"memory ended on a picture of 403x507 pixels"):
        predict_labels(model, picture(403, 507), EvalConfig(), "cpu")


def test_a_stop_ends_between_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = network("deeplabv3plus", 16), picture(403, 507)
    small_room(model, 360 * 360, 403 * 507, monkeypatch)
    seen = Counted(model)
    with pytest.raises(InterruptedByUserError):
        predict_labels(model, image, EvalConfig(), "cpu", stop=lambda: len(seen.windows) == 2)
    assert len(seen.windows) == 2


def test_a_picture_that_takes_minutes_is_told_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, image = network("deeplab", 16), picture(403, 507)
    small_room(model, 390 * 390, 403 * 507, monkeypatch)
    monkeypatch.setattr(seamless.time, "monotonic", iter([100.0, 160.0]).__next__)
    predict_labels(model, image, EvalConfig(), "cpu")
    (record,) = caplog.records
    found = re.fullmatch(
        r"a picture of 403x507 pixels is seen in about (\d+) windows of (\d+)x(\d+) and more "
        r"around them: by the first one it takes about (\d+) minutes",
        record.getMessage(),
    )
    assert found is not None
    count, height, width, minutes = map(int, found.groups())
    assert count == math.ceil(403 * 507 / (height * width)) >= 2
    assert minutes == pytest.approx(count * 1.5, abs=2)  # a minute for each, and the head's share


def test_the_bytes_of_a_network_are_those_of_its_tensors() -> None:
    """Written out for one 1x1 convolution: what is shown, the normalised, twice, the scores."""
    cost = room_of(network("deeplab", 16), torch.device("cpu"), 3).cost
    assert cost.classes == 6
    # ResNet: 64 channels at stride 2 before and after pooling, beside the picture itself.
    assert 12 + 64 <= cost.backbone <= cost.whole <= 12 + 24 + 64 + 64
    assert cost.kept == pytest.approx(4 * 6 / 16**2)


def test_room_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("deeplab", 16)
    found = room_of(model, torch.device("cpu"), 3)
    monkeypatch.setattr(room, "_cost", None)
    assert room_of(model, torch.device("cpu"), 3) is found
