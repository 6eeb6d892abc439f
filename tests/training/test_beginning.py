"""Trainings that begin with a model folder."""

from __future__ import annotations

import re
import shlex
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

from segdeform.cli import main
from segdeform.config.loading import load_draft
from segdeform.config.schema import Config, TrainConfig
from segdeform.data import voc
from segdeform.errors import ConfigError, ModelError, UsageError
from segdeform.importing.import_model import import_model
from segdeform.models import build_model
from segdeform.segmenter import load
from segdeform.training.beginning import begin_with_folder
from segdeform.training.choices import steps_of_epochs
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
        ("model", {"backbone": "resnet18"}, '"mobilenet_v2" --set deform.layers=2'),
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


def test_folders_without_a_model_are_refused(run: Path, tmp_path: Path) -> None:
    refuse_weights(str(run))
    with pytest.raises(ModelError, match="holds no model"):
        refuse_weights(str(tmp_path))
    with pytest.raises(ModelError, match=r"lost\.pth is missing"):
        refuse_weights("lost.pth")


def test_classes_of_the_same_name_keep_their_scores(run: Path) -> None:
    config, theirs = going_on(run), load(run, "cpu", trainable=True)
    config = changed(config, "model", auxiliary_head=True)
    names = theirs.classes
    classes = (names[3], "weed", names[0], names[5], "crop")
    torch.manual_seed(4)
    model = build_model(config.model, config.deform, len(classes), pretrained=False)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    said: list[str] = []
    begin_with_folder(model, config, classes, said.append)
    images = torch.rand(2, 3, 45, 70)
    with torch.inference_mode():
        ours, expected = model.eval()(images).logits, theirs.model(images).logits
        for here, there in ((0, 3), (2, 0), (3, 5)):
            torch.testing.assert_close(ours[:, here], expected[:, there], rtol=1e-4, atol=1e-5)
    for row in (1, 4):
        assert torch.equal(model.head.score.weight[row], fresh["head.score.weight"][row])
    dropped = ", ".join(name for k, name in enumerate(names) if k not in (0, 3, 5))
    assert said == [
        f"model.weights: all of {run} but its last layer, which knows other classes; kept: 3 "
        f"({names[3]}, {names[0]}, {names[5]}); new: 2 (weed, crop); dropped: 4 ({dropped})",
        f"model.weights: {run} has no auxiliary_head: it begins at random",
    ]


def test_a_network_is_tuned_to_other_classes_and_pictures(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By one key; the pyramid's dilations follow the network, whatever the crop."""
    data = tmp_path / "data"
    for split in ("train", "val"):
        (data / split / "masks").mkdir(parents=True)
        (data / split / "images").symlink_to(shapes / split / "images")
        for path in (shapes / split / "masks").iterdir():
            mask = (np.asarray(Image.open(path)) > 2).astype(np.uint8)
            Image.fromarray(mask).save(data / split / "masks" / path.name)
    (data / "classes.txt").write_text("ground\nthing\n")
    config = tmp_path / "config.yaml"
    config.write_text(
        "data: {name: folder, crop: [32, 32]}\n"
        "model: {backbone: mobilenet_v2, head_channels: 16}\n"
        "deform: {layers: 3}\n"
        "train: {steps: 2, batch_size: 2, save_every: 1}\n"
    )
    out = tmp_path / "tuned"
    words = ["train", str(config), "--data", str(data), "--output", str(out), "--workers", "0"]
    words += ["--set", f"model.weights={run}"]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "new: 1 (thing)" in said and "those of the network that model.weights names" in said
    tuned, theirs = load(out, "cpu"), load(run, "cpu")
    assert tuned.classes == ("ground", "thing")
    assert tuned.info["model"]["aspp_rates"] == theirs.info["model"]["aspp_rates"]
    assert tuned.info["training"]["weights_sha256"] == theirs.info["sha256"]
    assert main([*words, "--resume"]) == 0 and "is finished" in capsys.readouterr().err

    # Kept is what the run itself says, when the folder is gone.
    before = (out / "model" / "model.safetensors").read_bytes()
    (out / "metrics.json").unlink()
    shutil.rmtree(out / "model")
    shutil.rmtree(out / "checkpoints" / "step-00000002")
    moved = run.rename(run.with_name("moved"))
    try:
        assert main([*words, "--resume"]) == 0
    finally:
        moved.rename(run)
    assert (out / "model" / "model.safetensors").read_bytes() == before


def test_a_finished_run_says_how_to_go_on_for_longer(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = shutil.copytree(run, tmp_path / "our runs" / "ours")
    words = ["train", str(ours / "config.yaml"), "--data", str(shapes), "--workers", "0"]
    more = ["--set", "train.steps=5"]
    assert main([*words, *more, "--output", str(ours), "--resume"]) == 3
    said = re.search(r"can begin with the network of this: (.*)", capsys.readouterr().err)
    assert said is not None and "ours-longer" in said[1]
    assert main([*words, *more, *shlex.split(said[1])]) == 0
    longer = load(tmp_path / "our runs" / "ours-longer", "cpu")
    assert longer.info["training"]["steps"] == 5
    assert longer.info["training"]["weights_sha256"] == load(run, "cpu").info["sha256"]


def test_a_run_is_not_replaced_by_one_that_begins_with_it(
    run: Path, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill before its first checkpoint would leave neither."""
    ours = shutil.copytree(run, tmp_path / "ours")
    words = ["train", str(run / "config.yaml"), "--data", str(shapes), "--workers", "0"]
    before = {path: path.read_bytes() for path in ours.rglob("*") if path.is_file()}
    for weights in (ours, ours / "model", tmp_path / "x" / ".." / "ours"):
        given = [*words, "--output", str(ours), "--overwrite", "--set", f"model.weights={weights}"]
        (tmp_path / "x").mkdir(exist_ok=True)
        assert main(given) == 2
        assert "which --overwrite replaces: choose another --output" in capsys.readouterr().err
        with pytest.raises(UsageError, match="which --overwrite replaces"):
            config = going_on(run, steps=1)
            config = changed(config, "model", weights=str(weights))
            train(config, shapes, ours, device="cpu", workers=0, overwrite=True)
    assert {path: path.read_bytes() for path in before} == before


def test_pictures_of_other_channels_are_named(run: Path) -> None:
    numbers = {"channels": 4, "name": "folder", "mean": [0.5] * 4, "std": [0.2] * 4}
    config = changed(going_on(run), "data", **numbers)
    model = build_model(
        config.model, config.deform, 7, pretrained=False, mean=[0.5] * 4, std=[1] * 4
    )
    with pytest.raises(ConfigError, match="knows pictures of 3 channels, and these have 4: begin"):
        begin_with_folder(model, config, load(run, "cpu").classes)


class TestEpochs:
    def config(self, **train: Any) -> Config:
        values = tiny_config().model_dump(mode="json")
        del values["train"]["steps"]
        values["train"] |= {"batch_size": 3, **train}
        return Config.model_validate(values)

    def test_they_are_steps_by_the_pictures(self, shapes: Path, tmp_path: Path) -> None:
        reporter = ReporterThat()
        config = self.config(epochs=2.5)  # of 4 pictures in batches of 3: 3.33 steps
        train(config, shapes, tmp_path, device="cpu", workers=0, reporter=reporter)
        said = "train.steps=4: 2.5 epochs of 4 pictures in batches of 3"
        assert any(said in message for message in reporter.messages)
        assert load(tmp_path, "cpu").info["training"]["train"]["steps"] == 4
        same = tiny_config(steps=4, batch_size=3)
        train(same, shapes, tmp_path / "b", device="cpu", workers=0, reporter=ReporterThat())
        ends = [
            (run / "model" / "model.safetensors").read_bytes() for run in (tmp_path, tmp_path / "b")
        ]
        assert ends[0] == ends[1]
        again = ReporterThat()
        train(config, shapes, tmp_path, device="cpu", workers=0, resume=True, reporter=again)
        assert any("is finished: 4 steps" in message for message in again.messages)
        with pytest.raises(ConfigError, match=r"train\.epochs is 3\.0 now and was 2\.5"):
            train(self.config(epochs=3), shapes, tmp_path, device="cpu", workers=0, resume=True)

    def test_whole_epochs_are_exact(self) -> None:
        for pictures, batch in product((1, 3, 7, 367), (1, 3, 8)):
            for epochs in (1, 3, 49):
                assert steps_of_epochs(epochs, pictures, batch) == -(-epochs * pictures // batch)
        assert steps_of_epochs(0.01, 4, 8) == 1
        assert steps_of_epochs(1.1, 50, 1) == 55  # 1.1 * 50 is a little more than 55

    def test_what_decides(self, shapes: Path, tmp_path: Path) -> None:
        path = tmp_path / "c.yaml"
        path.write_text("train: {epochs: 3}\n")
        assert load_draft(path).auto == {"train.steps"}
        assert load_draft(path, ["train.steps=7"]).config({}).train.epochs is None
        assert load_draft("camvid", ["train.epochs=3"]).auto == {"train.steps"}
        with pytest.raises(ConfigError, match=r"7 and --set train\.epochs=2 contradict"):
            load_draft(path, ["train.steps=7", "train.epochs=2"])
        both = self.config(epochs=3).model_copy(
            update={"train": TrainConfig(steps=7, epochs=3, batch_size=3)}
        )
        with pytest.raises(ConfigError, match=r"3 of 4 pictures are 4 steps, and train\.steps = 7"):
            train(both, shapes, tmp_path / "run", device="cpu", workers=0)
        with pytest.raises(
            ConfigError, match=r"train\.epochs = 1e\+300: input should be less than"
        ):
            load_draft("camvid", ["train.epochs=1e+300"])
        with pytest.raises(UsageError, match=r"--set train\.epochs=null"):
            train(load_draft(path), shapes, tmp_path / "run", minutes=1.0)
        words = ["train", str(path), "--data", str(shapes), "--output", str(tmp_path / "run")]
        assert main([*words, "--minutes", "1", "--set", "train.epochs=3"]) == 2
        assert not (tmp_path / "run").exists()


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
