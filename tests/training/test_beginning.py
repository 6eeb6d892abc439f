"""Trainings that begin with a model folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from segdeform.cli import main
from segdeform.config.schema import Config
from segdeform.data import voc
from segdeform.errors import ConfigError, ModelError
from segdeform.importing.import_model import import_model
from segdeform.models import build_model
from segdeform.segmenter import load
from segdeform.training.beginning import begin_with_folder
from segdeform.training.loop import train
from segdeform.training.start import refuse_weights
from tests.training.conftest import ReporterThat, tiny_config


def changed(config: Config, section: str, **keys: Any) -> Config:
    values = config.model_dump(mode="json")
    values[section] |= keys
    return Config.model_validate(values)


def train_quietly(config: Config, data: Path, run: Path) -> None:
    train(config, data, run, device="cpu", workers=0, reporter=ReporterThat())


@pytest.fixture(scope="module")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    train(
        tiny_config(steps=3, lr=0.05),
        shapes,
        folder,
        device="cpu",
        workers=0,
        reporter=ReporterThat(),
    )
    return folder


def going_on(run: Path, **train: Any) -> Config:
    """Returns the config of a training that begins with a run's network."""
    rates = load(run, "cpu").info["model"]["aspp_rates"]
    return changed(tiny_config(**train), "model", weights=str(run), aspp_rates=rates)


def test_a_run_is_trained_further_with_more_deformable_layers(
    run: Path, shapes: Path, tmp_path: Path
) -> None:
    config = changed(going_on(run, steps=1, lr=1e-12), "deform", layers=4)
    train_quietly(config, shapes, tmp_path / "run")
    before, after = (load(path, "cpu", trainable=True) for path in (run, tmp_path / "run"))
    assert len(before.info["deformable_layers"]) == 2 and len(after.info["deformable_layers"]) == 4
    assert after.info["training"]["weights_sha256"] == before.info["sha256"]
    theirs = dict(before.model.named_parameters())
    assert any("offset_conv" in name and value.any() for name, value in theirs.items())
    for name, value in after.model.named_parameters():
        expected = theirs.get(name, torch.zeros_like(value))
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)
        assert name in theirs or "offset_conv" in name


def test_it_begins_by_computing_what_the_folder_computes(run: Path, shapes: Path) -> None:
    config = changed(changed(going_on(run), "deform", layers=5), "model", auxiliary_head=True)
    segmenter = load(run, "cpu", trainable=True)
    torch.manual_seed(9)
    model = build_model(config.model, config.deform, len(segmenter.classes), pretrained=False)
    assert begin_with_folder(model, config, segmenter.classes) == segmenter.info["sha256"]
    images = torch.rand(1, 3, 45, 70)
    with torch.inference_mode():
        expected = segmenter.model(images).logits
        torch.testing.assert_close(model.eval()(images).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("section", "keys", "message"),
    [
        ("model", {"backbone": "resnet18"}, '--set model.backbone="mobilenet_v2"'),
        ("model", {"head": "deeplabv3"}, '--set model.head="deeplabv3plus"'),
        ("model", {"head_channels": 24, "output_stride": 8}, "head_channels=16 --set model.output"),
        ("deform", {"variant": "v1"}, '--set deform.variant="v2"'),
        ("deform", {"layers": 1}, "other layers are deformable, too: --set deform.layers=2"),
        ("data", {"mean": [0.5] * 3, "std": [0.2] * 3}, r"--set data.mean=\[0.485,0.456,0.406\]"),
    ],
)
def test_another_network_is_refused_with_the_keys_to_set(
    run: Path, section: str, keys: dict[str, Any], message: str
) -> None:
    config = changed(going_on(run), section, **keys)
    segmenter = load(run, "cpu")
    mean, std = (
        config.data.mean or (0.485, 0.456, 0.406),
        config.data.std or (0.229, 0.224, 0.225),
    )
    count = len(segmenter.classes)
    model = build_model(config.model, config.deform, count, pretrained=False, mean=mean, std=std)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        begin_with_folder(model, config, segmenter.classes)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_other_classes_and_folders_without_a_model_are_refused(run: Path, tmp_path: Path) -> None:
    config, classes = going_on(run), load(run, "cpu").classes
    model = build_model(config.model, config.deform, len(classes), pretrained=False)
    with pytest.raises(ConfigError, match="other classes than the data set"):
        begin_with_folder(model, config, classes[::-1])
    refuse_weights(str(run))
    with pytest.raises(ModelError, match="holds no model"):
        refuse_weights(str(tmp_path))
    with pytest.raises(ModelError, match=r"lost\.pth is missing"):
        refuse_weights("lost.pth")


def test_an_imported_network_is_trained_further(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refusal's own words make the command right."""
    torch.manual_seed(1)
    net = deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=21)
    torch.save(net.state_dict(), tmp_path / "w.pth")
    import_model(str(tmp_path / "w.pth"), tmp_path / "voc21")
    data, random = tmp_path / "data", np.random.default_rng(3)
    for split in ("train", "val"):
        for kind, shape, high in (("images", (70, 90, 3), 256), ("masks", (70, 90), 21)):
            folder = data / split / kind
            folder.mkdir(parents=True)
            for number in range(2):
                pixels = random.integers(0, high, shape, np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    (data / "classes.txt").write_text("\n".join(voc.CLASSES), encoding="utf-8")
    config = tmp_path / "mine.yaml"
    config.write_text(
        "data: {name: folder, crop: [64, 80]}\n"
        "train: {steps: 1, batch_size: 2, lr: 1.0e-12, freeze_bn: true}\n",
        encoding="utf-8",
    )
    words = ["train", str(config), "--data", str(data), "--workers", "0", "--output"]
    weights = ["--set", f"model.weights={tmp_path / 'voc21'}"]
    assert main([*words, str(tmp_path / "no"), *weights]) == 3
    said = re.search(r"than the config describes: (.*)", capsys.readouterr().err)
    assert said is not None and not (tmp_path / "no" / "model").exists()
    assert main([*words, str(tmp_path / "run"), *weights, *shlex.split(said[1])]) == 0
    before, after = (load(tmp_path / name, "cpu", trainable=True) for name in ("voc21", "run"))
    assert len(after.info["deformable_layers"]) == 3  # the config's default
    theirs = dict(before.model.backbone.named_parameters())
    for name, value in after.model.backbone.named_parameters():
        expected = theirs.get(name, torch.zeros_like(value))
        # Taps that so small a crop cannot train are held at zero, and a warning says so.
        kept = value != 0
        assert name not in theirs or kept.any() or not expected.any()
        torch.testing.assert_close(value[kept], expected[kept], rtol=0, atol=1e-6)
