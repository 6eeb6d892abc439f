"""Training on pictures of other than three channels, and what is done with its networks."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

from segdeform.cli import main
from segdeform.config.schema import IMAGENET_MEAN, IMAGENET_STD, Config
from segdeform.data import load_dataset
from segdeform.data.statistics import count_values, statistics_of
from segdeform.errors import ConfigError, DataError, StoppedError
from segdeform.files.manifest import write_manifest
from segdeform.machine.processes import own_rank
from segdeform.preparing.decoding import write_cache
from segdeform.preparing.shapes import write_shapes
from segdeform.segmenter import load, read_description
from segdeform.training import channels
from segdeform.training.loop import train
from tests.ranks import run_ranks
from tests.training.conftest import ReporterThat, send, tiny_config

BANDS = (3, 0, 4, 2, 1)


def bands_of(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Makes five bands of a picture in colour, each of them another, and 12 of 16 bits."""
    red, green, blue = np.moveaxis(pixels.astype(np.uint16), 2, 0) * 16
    return np.stack([red, green, blue, 4080 - red, (green + blue) // 2], 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = tmp_path_factory.mktemp("shapes")
    write_shapes(shapes, seed=0, train=4, val=2, size=64)
    root = tmp_path_factory.mktemp("bands")
    for split in ("train", "val"):
        dataset = load_dataset("shapes", shapes, split)
        for folder in ("images", "masks"):
            (root / split / folder).mkdir(parents=True)
        for sample in dataset.samples:
            assert sample.mask is not None
            shutil.copy(sample.mask, root / split / "masks" / f"{sample.name}.png")
            tifffile.imwrite(
                root / split / "images" / f"{sample.name}.tif",
                bands_of(np.asarray(Image.open(sample.image))),
                photometric="minisblack",
                planarconfig="contig",
            )
    describe(root, dataset.classes, bands=list(BANDS), value_range=[0, 4080])
    return root


def describe(root: Path, classes: tuple[str, ...], **more: Any) -> None:
    text = {"names": list(classes), "train": "train/images", "val": "val/images", **more}
    (root / "data.yaml").write_text(json.dumps(text))


def config(steps: int = 4, **data: Any) -> Config:
    made = tiny_config(steps=steps, save_every=2, ema_decay=0.5)
    values = made.model_dump(mode="json")
    values["data"] |= {"name": "folder", "rotate": 10.0, **data}
    return Config.model_validate(values)


def run_training(made: Config, root: Path, run: Path, **options: Any) -> bytes:
    options = {"device": "cpu", "workers": 0, "reporter": ReporterThat(), **options}
    return (train(made, root, run, **options).model / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    run = tmp_path_factory.mktemp("trained") / "run"
    return run, run_training(config(), data, run)


def test_a_run_writes_out_channels_mean_and_deviation(
    data: Path, trained: tuple[Path, bytes]
) -> None:
    run, _ = trained
    written = yaml.safe_load((run / "config.yaml").read_text())["data"]
    dataset = load_dataset("folder", data, "train")
    mean, std = statistics_of(count_values(dataset, range(4), 1))
    assert (written["channels"], written["normalize"]) == (5, "measured")
    assert (tuple(written["mean"]), tuple(written["std"])) == (mean, std)
    description = read_description(run / "model" / "model.json")
    assert (description.mean, description.std) == (mean, std)
    assert description.bands == BANDS and description.value_range == (0, 4080)
    network = load(run, "cpu").model
    np.testing.assert_allclose(network.mean.flatten(), mean, rtol=1e-6)
    np.testing.assert_allclose(network.std.flatten(), std, rtol=1e-6)


def test_a_channel_that_says_nothing_is_told(data: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    for path in root.glob("train/images/*.tif"):
        stored = tifffile.imread(path)
        stored[..., BANDS[3]] = 77
        tifffile.imwrite(path, stored, photometric="minisblack", planarconfig="contig")
    stop = ReporterThat(1, send(signal.SIGTERM))
    with pytest.raises(StoppedError):
        run_training(config(), root, tmp_path / "run", reporter=stop)
    assert "warning: channel 3 has the same value everywhere" in stop.messages


def test_a_stopped_training_goes_on_with_the_same_bits_and_does_not_measure_again(
    data: Path, trained: tuple[Path, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = ReporterThat(2, send(signal.SIGTERM))
    with pytest.raises(StoppedError):
        run_training(config(), data, tmp_path / "run", reporter=stop)
    assert any("are measured: of 4 training pictures" in text for text in stop.messages)
    monkeypatch.setattr(channels, "count_values", lambda *a: pytest.fail("measured again"))
    assert run_training(config(), data, tmp_path / "run", resume=True) == trained[1]
    # A finished run knows them, too, when only its model is left.
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert run_training(config(), data, tmp_path / "run", resume=True) == trained[1]
    # What was written is a config of its own.
    given = Config.model_validate(yaml.safe_load((tmp_path / "run" / "config.yaml").read_text()))
    assert run_training(given, data, tmp_path / "again") == trained[1]


def test_workers_and_a_cache_change_no_bit(
    data: Path, trained: tuple[Path, bytes], tmp_path: Path
) -> None:
    root = shutil.copytree(data, tmp_path / "data")
    assert run_training(config(), root, tmp_path / "workers", workers=2) == trained[1]
    for split in ("train", "val"):
        write_cache(load_dataset("folder", root, split))
    reporter = ReporterThat()
    fast = run_training(config(), root, tmp_path / "fast", reporter=reporter)
    assert [text for text in reporter.messages if text.startswith("train: pictures from")]
    assert fast == trained[1]


def trains(made: str, root: Path, run: Path) -> None:
    own = run if own_rank() == 0 else run.with_name(f"nowhere-{own_rank()}")
    train(Config.model_validate_json(made), root, own, device="cpu", workers=0,
          reporter=ReporterThat())  # fmt: skip


def test_processes_measure_together_what_one_does(
    data: Path, trained: tuple[Path, bytes], tmp_path: Path
) -> None:
    run_ranks(2, trains, config(steps=1).model_dump_json(), data, tmp_path / "run")
    ours = read_description(tmp_path / "run" / "model" / "model.json")
    theirs = read_description(trained[0] / "model" / "model.json")
    assert (ours.mean, ours.std) == (theirs.mean, theirs.std)


def test_predict_eval_and_explain_read_the_bands(
    data: Path, trained: tuple[Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = trained
    picture = sorted(data.glob("val/images/*.tif"))[0]
    segmenter = load(run, "cpu")
    stored = tifffile.imread(picture)
    pixels = np.rint(stored[..., list(BANDS)] * (255 / 4080)).astype(np.uint8)
    expected = segmenter.predict(pixels).labels
    np.testing.assert_array_equal(segmenter.predict(picture), expected)
    with pytest.raises(DataError, match=r"array is \[H, W, 5\], not empty; this is"):
        segmenter.predict(pixels[..., :3])
    out = tmp_path / "out"
    assert main(["predict", str(run), str(picture), "--output", str(out)]) == 0
    mask = Image.open(out / "masks" / f"{picture.stem}.png")
    np.testing.assert_array_equal(np.asarray(mask), expected)
    overlay = np.asarray(Image.open(out / "overlays" / f"{picture.stem}.jpg")).astype(int)
    black = np.array(segmenter.palette)[expected].sum(2) == 0  # classes that leave the picture
    assert overlay.shape == (*expected.shape, 3)
    assert abs(overlay[black] - pixels[..., :3][black]).mean() < 8  # a JPEG
    assert main(["eval", str(run), "--data", str(data), "--output", str(tmp_path / "scores")]) == 0
    protocol = json.loads((tmp_path / "scores" / "metrics.json").read_text())["protocol"]
    assert (protocol["bands"], protocol["value_range"]) == (list(BANDS), [0, 4080])
    assert main(["explain", str(run), str(picture), "--output", str(tmp_path / "why")]) == 0
    assert Image.open(tmp_path / "why" / "points.png").mode == "RGB"
    capsys.readouterr()
    assert main(["info", str(run)]) == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "bands 3, 0, 4, 2, 1 of a file; mean 0." in told and "; values 0 to 4080" in told


def test_a_picture_without_the_bands_is_refused_by_name(
    trained: tuple[Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = trained[0], tmp_path / "street.png"
    Image.new("RGB", (40, 30)).save(path)
    told = f"{path}: has 3 bands, and bands: [3, 0, 4, 2, 1] asks for band 4"
    assert main(["predict", str(run), str(path), "--output", str(tmp_path / "out")]) == 8
    assert told in capsys.readouterr().err
    assert main(["explain", str(run), str(path), "--output", str(tmp_path / "why")]) == 4
    assert told in capsys.readouterr().err


def test_a_model_reads_the_bands_of_a_data_set_that_names_none(
    data: Path, trained: tuple[Path, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = load(trained[0], "cpu").classes
    rows = []
    for number, keys in enumerate(({"bands": list(BANDS), "value_range": [0, 4080]}, {})):
        root = shutil.copytree(data, tmp_path / str(number))
        describe(root, classes, **keys)
        capsys.readouterr()
        assert main(["eval", str(trained[0]), "--data", str(root), "--json"]) == 0
        rows.append(json.loads(capsys.readouterr().out)["classes"])
    assert rows[0] == rows[1]
    describe(root, classes, bands=[0, 1])
    assert main(["eval", str(trained[0]), "--data", str(root), "--json"]) == 4
    assert "pictures of 2 channels, and the model knows 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"channels": 4}, r"data\.channels = 4, and the data set .* has bands: \[3, 0, 4, 2, 1\]"),
        ({"normalize": "imagenet"}, r"data\.normalize = imagenet knows 3 channels, and the data s"),
        ({"mean": [0.5], "std": [0.5]}, r"data\.mean and data\.std have 1 numbers for pictures of"),
    ],
)
def test_a_config_that_says_otherwise_is_refused(
    data: Path, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_training(config(**keys), data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "keys",
    [
        {"name": "camvid", "channels": 5},
        {"channels": 5, "normalize": "imagenet"},
        {"mean": [0.5, 0.5, 0.5]},
        {"mean": [0.5], "std": [0.5, 0.5]},
        {"mean": [0.5], "std": [0.5], "channels": 2},
        {"mean": [0.5], "std": [0.0]},
        {"channels": 0},
    ],
)
def test_keys_that_cannot_be_together_are_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"data\.|channels|std"):
        config(**keys)


def test_three_channels_are_imagenets_unless_measured_or_given(
    shapes: Path, tmp_path: Path
) -> None:
    def made(**keys: Any) -> Config:
        values = tiny_config(steps=1).model_dump(mode="json")
        values["data"] |= keys
        return Config.model_validate(values)

    train(made(), shapes, tmp_path / "plain", device="cpu", workers=0, reporter=ReporterThat())
    plain = read_description(tmp_path / "plain" / "model" / "model.json")
    assert (plain.mean, plain.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert plain.training["data"]["normalize"] == "imagenet"
    measured = made(normalize="measured")
    train(measured, shapes, tmp_path / "own", device="cpu", workers=0, reporter=ReporterThat())
    own = read_description(tmp_path / "own" / "model" / "model.json")
    pictures = [
        np.asarray(Image.open(s.image)) for s in load_dataset("shapes", shapes, "train").samples
    ]
    pixels = np.stack(pictures).reshape(-1, 3) / 255
    np.testing.assert_allclose(own.mean, pixels.mean(0))
    np.testing.assert_allclose(own.std, pixels.std(0))


def test_a_run_that_knew_no_channels_goes_on(shapes: Path, tmp_path: Path) -> None:
    """Its config and its model say nothing of what came later."""
    made, run = tiny_config(steps=4, save_every=2), tmp_path / "run"
    stop = ReporterThat(2, send(signal.SIGTERM))
    with pytest.raises(StoppedError):
        train(made, shapes, run, device="cpu", workers=0, reporter=stop)
    (folder,) = run.glob("checkpoints/*")
    record = json.loads((folder / "state.json").read_text())
    for key in ("channels", "normalize", "mean", "std"):
        del record["config"]["data"][key]
    (folder / "state.json").write_text(json.dumps(record))
    described = json.loads((folder / "model.json").read_text())
    for key in ("mean", "std", "bands", "value_range"):
        del described[key]
    (folder / "model.json").write_text(json.dumps(described))
    (folder / "manifest.json").unlink()
    write_manifest(folder)
    assert load(run, "cpu").channels == 3
    resumed = train(
        made, shapes, run, device="cpu", workers=0, resume=True, reporter=ReporterThat()
    )
    whole = train(made, shapes, tmp_path / "b", device="cpu", workers=0, reporter=ReporterThat())
    weights = [(result.model / "model.safetensors").read_bytes() for result in (resumed, whole)]
    assert weights[0] == weights[1]
