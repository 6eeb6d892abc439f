"""Pictures in TensorBoard: which, how drawn, and at no cost of a second prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segdeform.data import load_dataset
from segdeform.data.dataset import Dataset, read_pair
from segdeform.evaluation import evaluate as evaluating
from segdeform.results.overlay import overlay
from segdeform.training.loop import train
from segdeform.training.pictures import Pictures
from tests.training.conftest import ReporterThat, tiny_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Nine pictures of 30x620 and of 33x41, one label in five not scored."""
    draw = np.random.default_rng(4)
    for split, count in (("train", 1), ("val", 9)):
        for k in range(count):
            size = (30, 620) if k == 0 else (33, 41)
            for kind in ("images", "masks"):
                (tmp_path / split / kind).mkdir(parents=True, exist_ok=True)
            image = draw.integers(0, 256, (*size, 3), np.uint8)
            labels = draw.choice(np.array([0, 1, 2, 3, 255], np.uint8), size)
            Image.fromarray(image).save(tmp_path / split / "images" / f"p{k}.png")
            Image.fromarray(labels).save(tmp_path / split / "masks" / f"p{k}.png")
    (tmp_path / "classes.txt").write_text("nothing\na\nb\nc\n")
    return tmp_path


def predicted(dataset: Dataset, pictures: Pictures) -> dict[str, Any]:
    """Has the next class predicted everywhere."""
    given = {}
    for index, sample in enumerate(dataset.samples):
        labels = (read_pair(dataset, index)[1] % 4 + 1).astype(np.uint8) % 4
        given[sample.name] = labels
        pictures.keep(sample, labels)
    return given


@pytest.mark.parametrize(
    ("processes", "names"), [(1, ["p0", "p3", "p5", "p8"]), (2, ["p0", "p2", "p6", "p8"])]
)
def test_four_that_rank_0_scores(folder: Path, processes: int, names: list[str]) -> None:
    dataset = load_dataset("folder", folder, "val")
    pictures = Pictures(dataset, processes)
    predicted(dataset, pictures)
    assert (
        sorted(name.rpartition("/")[2].removesuffix(".png") for name in pictures.drawn()) == names
    )
    assert pictures.drawn() == {}


def test_labels_beside_what_was_predicted(folder: Path) -> None:
    dataset = load_dataset("folder", folder, "val")
    pictures = Pictures(dataset, 1)
    given = predicted(dataset, pictures)
    drawn = pictures.drawn()
    name = dataset.samples[8].name
    image, truth = read_pair(dataset, 8)
    hidden = np.where(truth == 255, 4, truth).astype(np.uint8)
    palette = [*dataset.palette, (0, 0, 0)]
    halves = [overlay(image, hidden, palette), overlay(image, given[name], palette)]
    assert np.array_equal(drawn[name], np.concatenate(halves, axis=1))
    assert drawn[dataset.samples[0].name].shape == (25, 1024, 3)  # 620 pixels wide, shown as 512


def test_a_run_shows_them_and_predicts_nothing_twice(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, predict = [0], evaluating.predict_sample

    def counted(*arguments: Any) -> Any:
        count[0] += 1
        return predict(*arguments)

    monkeypatch.setattr(evaluating, "predict_sample", counted)
    options: dict[str, Any] = {"device": "cpu", "workers": 0, "reporter": ReporterThat()}
    train(tiny_config(eval_every=2), shapes, tmp_path / "run", **options)
    assert count[0] == 2 * 2  # two evaluations of two pictures
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"), {"images": 0}).Reload()
    tags = board.Tags()["images"]
    assert len(tags) == 2 and all(tag.startswith("val/") for tag in tags)
    assert [event.step for event in board.Images(tags[0])] == [2, 4]
