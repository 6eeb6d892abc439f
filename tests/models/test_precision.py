"""A network in bfloat16 says what it says in float32, and where it does is the same everywhere."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ops import layers as deformable
from segdeform.config.schema import DeformConfig, EvalConfig, ModelConfig
from segdeform.data.image_io import read_image, read_mask
from segdeform.errors import UsageError
from segdeform.evaluation.confusion import confusion_matrix, scores
from segdeform.inference import predict_labels
from segdeform.models import build_model
from segdeform.models.deeplab import DeepLab
from segdeform.models.deform import deformable_layers
from segdeform.models.folding import fold_batch_norm
from segdeform.models.heads import DeepLabHead
from segdeform.models.precision import compute_in, resolve_precision
from tests.conftest import external_data

CLASSES, VOID = 11, 11  # of CamVid


def network(weights: str) -> DeepLab:
    """Returns a folded network whose offsets are not zero."""
    torch.manual_seed(0)
    config = ModelConfig.model_validate(
        {"backbone": "mobilenet_v2", "weights": weights, "head": "deeplab", "head_channels": 128}
    )
    model = build_model(config, DeformConfig(layers=2), CLASSES).eval()
    for layer in deformable_layers(model).values():
        nn.init.normal_(layer.offset_conv.weight, std=0.003)
    fold_batch_norm(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


def lowered(model: DeepLab) -> DeepLab:
    copy = deepcopy(model)
    compute_in(copy, "bf16")
    return copy


@torch.no_grad()
def teach(model: DeepLab, root: Path, names: list[str]) -> None:
    """Fits the last layer to masks by least squares, which takes seconds where training takes
    minutes."""
    head = model.head
    assert isinstance(head, DeepLabHead)
    seen, truths = [], []
    for name in names:
        image = torch.tensor(read_image(root / "images" / f"{name}.jpg"))
        mask = torch.tensor(read_mask(root / "masks" / f"{name}.png").astype(np.int64))
        high = model.backbone((image.permute(2, 0, 1)[None] / 255 - model.mean) / model.std).high
        features = F.relu(head.project(high))[0].flatten(1).T  # [h * w, C]
        middles = mask[8::16, 8::16][: high.shape[2], : high.shape[3]]
        padded = F.pad(middles, (0, high.shape[3] - middles.shape[1], 0, 0), value=VOID)
        padded = F.pad(padded, (0, 0, 0, high.shape[2] - middles.shape[0]), value=VOID).flatten()
        seen.append(features[padded != VOID])
        truths.append(F.one_hot(padded[padded != VOID], CLASSES).float())
    features, truth = torch.cat(seen).double(), torch.cat(truths).double()
    features = torch.cat([features, torch.ones(len(features), 1)], 1)
    gram = features.T @ features + 10 * torch.eye(features.shape[1])
    solution = torch.linalg.solve(gram, features.T @ truth).float().T  # [K, C + 1]
    head.score.weight.copy_(solution[:, :-1, None, None])
    assert head.score.bias is not None
    head.score.bias.copy_(solution[:, -1])


def test_labels_and_scores_of_a_taught_network_are_those_of_float32() -> None:
    root = external_data("data/camvid")
    weights = external_data("weights/mobilenet_v2-imagenet-fp16.safetensors")
    model = network(str(weights))
    teach(model, root / "train", [p.stem for p in sorted((root / "train/images").iterdir())[::24]])
    low, equal, pixels = lowered(model), 0, 0
    counted = np.zeros((2, CLASSES, CLASSES), np.int64)
    for path in sorted((root / "val/images").iterdir())[::9]:
        truth = read_mask(root / "val" / "masks" / f"{path.stem}.png")
        image = read_image(path)
        full, short = (predict_labels(m, image, EvalConfig(), "cpu") for m in (model, low))
        equal, pixels = equal + int((full == short).sum()), pixels + full.size
        for k, labels in enumerate((full, short)):
            counted[k] += confusion_matrix(np.where(truth == VOID, 255, truth), labels, CLASSES)
    first, second = (scores(matrix).miou for matrix in counted)
    assert first > 0.2  # it knows what it sees: its labels are not those of noise
    assert 0.98 < equal / pixels < 1
    assert abs(first - second) < 0.003


def test_positions_stay_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest does not, whatever kind of layer it is."""
    kinds: list[list[torch.dtype]] = []
    inner = deformable.deform_conv2d

    def spy(
        x: Tensor, offset: Tensor, weight: Tensor, bias: Any, *rest: Any, **more: Any
    ) -> Tensor:
        kinds.append([t.dtype for t in (x, offset, weight, rest[3])])
        return inner(x, offset, weight, bias, *rest, **more)

    monkeypatch.setattr(deformable, "deform_conv2d", spy)
    low = lowered(network("none"))
    with torch.inference_mode():
        output = low(torch.rand(1, 3, 65, 97))
    short, full = torch.bfloat16, torch.float32
    assert kinds == [[short, full, short, full]] * 2
    assert output.logits.dtype == low.maps(torch.rand(1, 3, 33, 33)).dtype == full
    stored = {name: value.dtype for name, value in low.named_parameters()}
    assert {name for name, kind in stored.items() if kind == full} == {
        name for name in stored if "offset_conv" in name
    }


@pytest.mark.parametrize(
    ("device", "tiles", "capability", "expected"),
    [
        ("cpu", False, (0, 0), "fp32"),  # also with instructions for it that are slower
        ("cpu", True, (0, 0), "bf16"),
        ("cuda", False, (7, 5), "fp32"),
        ("cuda", True, (8, 0), "bf16"),
        ("cuda", False, (9, 0), "bf16"),
    ],
)
def test_auto_goes_by_the_hardware(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    tiles: bool,
    capability: tuple[int, int],
    expected: str,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")
    assert resolve_precision("auto", torch.device(device)) == expected
    assert resolve_precision("fp32", torch.device(device)) == "fp32"
    if device == "cuda" and expected == "fp32":
        with pytest.raises(UsageError, match="an old GPU"):
            resolve_precision("bf16", torch.device(device))
    else:
        assert resolve_precision("bf16", torch.device(device)) == "bf16"
