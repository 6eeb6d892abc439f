"""A data set of 300 classes, from its check to the masks of its network."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from segdeform.cli import main
from segdeform.config.schema import Config
from segdeform.data import load_dataset
from segdeform.errors import DataError
from segdeform.machine.processes import ALONE
from segdeform.segmenter import load, read_description
from segdeform.training.loop import train
from segdeform.training.start import refuse_data
from segdeform.training.step import _of_all
from tests.training.conftest import ReporterThat, tiny_config

CLASSES, IGNORED = 300, 65535


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures to train on, two to score, of odd sizes; all classes occur, 255 among them."""
    root = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    sizes = [(61, 90), (64, 84), (60, 97), (64, 80), (60, 91), (65, 83)]
    for index, size in enumerate(sizes):
        split = "train" if index < 4 else "val"
        cells = np.arange(CLASSES, dtype=np.uint16).reshape(15, 20)
        y, x = np.indices(size)
        labels = np.where(x >= 60, 290, rng.permuted(cells)[y // 4 % 15, x // 3 % 20])
        labels = labels.astype(np.uint16)
        labels[rng.random(labels.shape) < 0.05] = IGNORED
        image = rng.integers(0, 256, (*labels.shape, 3)).astype(np.uint8)
        for folder, pixels in (("images", image), ("masks", labels)):
            (root / split / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / split / folder / f"{index}.png")
    names = [f"c{index}" for index in range(CLASSES)]
    text = {"names": names, "train": "train/images", "val": "val/images"}
    (root / "data.yaml").write_text(json.dumps(text))
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = [1.0] * 200 + [2.0] * 100
    values = tiny_config(steps=3, class_weights=weights, loss="ohem", lr=0.3).model_dump()
    values["data"] |= {"name": "folder"}
    run = tmp_path_factory.mktemp("run") / "run"
    reporter = ReporterThat()
    train(Config.model_validate(values), data, run, device="cpu", workers=0, reporter=reporter)
    assert any("lowest IoU" in text for text in reporter.messages)
    return run


def read(path: Path) -> NDArray[np.uint16]:
    labels = np.asarray(Image.open(path))
    assert labels.dtype == np.uint16
    return labels


def cells(metrics: dict[str, Any]) -> NDArray[np.int64]:
    matrix = np.zeros((CLASSES, CLASSES), np.int64)
    found = metrics["confusion_matrix"]
    matrix[found["truth"], found["predicted"]] = found["pixels"]
    return matrix


def test_check_finds_nothing_wrong(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(data), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["sound"] and len(report["class_weights"]) == CLASSES
    for split in report["splits"]:
        masks = [read(path) for path in (data / split["split"] / "masks").iterdir()]
        counts = sum(np.bincount(mask.ravel(), minlength=IGNORED + 1) for mask in masks)
        assert split["pixels"] == counts[:CLASSES].tolist()
        assert split["ignored_pixels"] == counts[IGNORED] > 0


def test_eval_predict_and_score_count_alike(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, predictions = tmp_path / "result", tmp_path / "predictions"
    words = ["--device", "cpu", "--threads", "1"]
    assert main(["eval", str(run), "--data", str(data), "--output", str(result), *words]) == 0
    images = str(data / "val" / "images")
    assert main(["predict", str(run), images, "--output", str(predictions), *words]) == 0
    expected = np.zeros((CLASSES, CLASSES), np.int64)
    for path in (data / "val" / "masks").iterdir():
        truth, said = read(path), read(predictions / "masks" / path.name)
        for t, p in zip(truth.ravel().tolist(), said.ravel().tolist(), strict=True):
            if t != IGNORED:
                expected[t, p] += 1
    assert expected[255].any() and expected[:, 256:].any()
    metrics = json.loads((result / "metrics.json").read_text())
    np.testing.assert_array_equal(cells(metrics), expected)
    correct, union = expected.diagonal(), expected.sum(0) + expected.sum(1) - expected.diagonal()
    present = union > 0
    assert metrics["miou"] == pytest.approx((correct[present] / union[present]).mean(), rel=1e-12)
    capsys.readouterr()
    masks = str(data / "val" / "masks")
    assert main(["score", masks, str(predictions), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert cells(scored).tolist() == expected.tolist()
    assert scored["miou"] == metrics["miou"] and scored["classes"] == metrics["classes"]
    # The training ended with the same evaluation.
    assert json.loads((run / "metrics.json").read_text())["miou"] == metrics["miou"]


def test_a_model_folder_holds_many_classes(
    data: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(run)]) == 0
    assert "c39 and 260 more" in " ".join(capsys.readouterr().out.split())
    description = read_description(run / "model" / "model.json")
    assert len(description.classes) == len(set(description.palette)) == CLASSES
    segmenter = load(run, "cpu")
    result = segmenter.predict(data / "val" / "images" / "4.png")
    assert result.labels.dtype == np.uint16
    assert sum(result.shares().values()) == pytest.approx(1)
    assert result.overlay().shape == (60, 91, 3)
    most = {"classes": [f"c{k}" for k in range(65_535)], "palette": [(0, 0, 0)] * 65_535}
    assert type(description).model_validate(description.model_dump() | most)
    for values in most.values():
        values.append(values[0])
    with pytest.raises(ValueError, match="65535 items"):
        type(description).model_validate(description.model_dump() | most)


def test_a_batch_without_a_label_is_known(data: Path) -> None:
    """What the log counts as unlabelled batches."""
    plan: Any = SimpleNamespace(
        train_set=load_dataset("folder", data, "train"), peers=ALONE, device=torch.device("cpu")
    )
    labels = torch.full((2, 3, 5), IGNORED)
    assert _of_all(plan, torch.zeros(()), labels, 0)[1] == 0
    labels[0, 0, :2] = 255
    assert _of_all(plan, torch.zeros(()), labels, 0)[1] == 2


def test_explain_knows_classes_beyond_255(
    data: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = data / "val" / "images" / "4.png"
    words = ["--device", "cpu", "--threads", "1", "--output"]
    assert main(["explain", str(run), str(picture), *words, str(tmp_path / "picture")]) == 0
    facts = json.loads((tmp_path / "picture" / "explain.json").read_text())
    labels = load(run, "cpu").predict(picture).labels
    assert labels.max() > 255
    for point in facts["points"]:
        assert point["class"] == f"c{labels[point['y'], point['x']]}"
    assert main(["explain", str(run), "--data", str(data), *words, str(tmp_path / "split")]) == 0
    assert "40 of 300 classes" in capsys.readouterr().out
    facts = json.loads((tmp_path / "split" / "dilation.json").read_text())
    places = [row["places"] for row in facts["layers"][0]["classes"]]
    assert len(places) == CLASSES and sum(places) == facts["layers"][0]["all"]["places"] > 0


def test_more_classes_than_can_be_scored_are_refused_at_once(data: Path, tmp_path: Path) -> None:
    names = [f"c{index}" for index in range(10_001)]
    described = {"path": str(data), "names": names, "train": "train/images", "val": "val/images"}
    (tmp_path / "data.yaml").write_text(json.dumps(described))
    config = Config.model_validate({"data": {"name": "folder"}})
    with pytest.raises(DataError, match="up to 10000 can be trained on and scored"):
        refuse_data(config, tmp_path)
