"""All of `eval`: what it writes for benchmark servers, and that a failure leaves nothing behind."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from segdeform.config.schema import EvalConfig
from segdeform.data import load_dataset
from segdeform.data.dataset import Dataset, read_pair
from segdeform.errors import DataError, InterruptedByUserError, UsageError
from segdeform.evaluation.cityscapes import OfficialScores
from segdeform.evaluation.evaluate import evaluate
from segdeform.evaluation.result import read_evaluation
from segdeform.evaluation.run import predict_for_server, score
from segdeform.evaluation.wanted import Wanted, check_wanted
from tests.data.cityscapes_frames import write_frames
from tests.evaluation.conftest import Output
from tests.evaluation.conftest import segmenter as threshold


class ByBrightness(nn.Module):
    """Gives every pixel the class that its red value falls into, whatever it shows."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.middles = (torch.arange(classes) + 0.5) / classes

    def forward(self, images: Tensor) -> Output:
        return Output(-(images[:, :1] - self.middles[:, None, None]).abs())


def segmenter_for(dataset: Dataset) -> Any:
    return SimpleNamespace(
        model=ByBrightness(len(dataset.classes)).eval(),
        classes=dataset.classes,
        palette=dataset.palette,
        options=EvalConfig(),
        device=torch.device("cpu"),
        info={"sha256": "abc"},
        precision="fp32",
    )


@pytest.fixture(scope="module")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cityscapes")
    return write_frames(root, frames=2, size=(48, 96), splits=("val", "test"))


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("voc")
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    (root / "ImageSets/Segmentation/test.txt").write_text("2008_000002\n2008_000001\n")
    for name in ("2008_000001", "2008_000002"):
        picture = rng.integers(0, 256, (5, 6, 3), np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(picture).save(root / f"JPEGImages/{name}.jpg")
    return root


def test_cityscapes_by_both_ways_at_once(cityscapes: Path, tmp_path: Path) -> None:
    dataset = load_dataset("cityscapes", cityscapes, "val")
    wanted = Wanted(tmp_path / "out", official=True, submission=tmp_path / "to-send.zip")
    evaluation = score(segmenter_for(dataset), dataset, wanted)
    assert evaluation.protocol["label_space"]["masks"] == "train ids"
    assert evaluation.official is not None
    assert evaluation.official["mean_class_iou"] == pytest.approx(evaluation.scores.miou, abs=1e-6)
    assert "of all pictures" in evaluation.official["note"]
    assert read_evaluation(tmp_path / "out").metrics["official"] == evaluation.official
    maps = sorted((tmp_path / "out" / "labelIds").iterdir())
    assert [path.name for path in maps] == [
        "munster_000000_000019_labelIds.png",
        "munster_000001_000019_labelIds.png",
    ]
    with zipfile.ZipFile(tmp_path / "to-send.zip") as archive:
        assert archive.namelist() == [path.name for path in maps]
        assert all(entry.external_attr >> 16 == 0o644 for entry in archive.infolist())
        assert archive.read(maps[0].name) == maps[0].read_bytes()
    labels = np.asarray(Image.open(maps[0]))
    image, _ = read_pair(dataset, 0)
    assert set(np.unique(labels)) <= {7, 8, 11, 12, 13, *range(17, 29), 31, 32, 33}
    road = labels == 7
    assert road.any() and (image[road][:, 0] <= 255 / 19).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "to-send.zip"]
    assert "By the official scripts" in (tmp_path / "out" / "report.html").read_text()


def test_official_scores_that_differ_from_ours_end_it(
    cityscapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset("cityscapes", cityscapes, "val")
    ours = evaluate(segmenter_for(dataset), dataset).scores.iou
    theirs = dict(zip(dataset.classes, ours, strict=True)) | {"car": ours[13] + 1e-4}
    monkeypatch.setattr(
        "segdeform.evaluation.cityscapes.official_scores",
        lambda pairs, **options: OfficialScores(theirs, None, {}, None, ""),
    )
    with pytest.raises(DataError, match="'car'"):
        score(segmenter_for(dataset), dataset, Wanted(tmp_path / "out", official=True))
    assert list(tmp_path.iterdir()) == []


def test_voc_without_masks_is_predicted_for_the_server(voc: Path, tmp_path: Path) -> None:
    dataset = load_dataset("voc", voc, "test")
    for name in ("a.zip", "b.zip"):
        predict_for_server(segmenter_for(dataset), dataset, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    folder = "results/VOC2012/Segmentation/comp6_test_cls"
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = [f"{folder}/2008_000001.png", f"{folder}/2008_000002.png"]
        assert archive.namelist() == names
        with archive.open(names[1]) as file, Image.open(file) as mask:
            assert mask.mode == "P" and mask.size == (48, 40)
            labels = np.asarray(mask)
    image = np.asarray(Image.open(dataset.samples[0].image))  # listed first
    expected = np.minimum(image[:, :, 0] / 255 * 21, 20.9).astype(int)
    assert (abs(labels.astype(int) - expected) <= 1).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.zip"]


Change = Callable[[Path], Wanted]


@pytest.mark.parametrize(
    ("split", "wanted", "message"),
    [
        ("test", lambda p: Wanted(p / "out"), "no masks.*--submission"),
        ("test", lambda p: Wanted(), "no masks.*--submission"),
        ("test", lambda p: Wanted(p / "out", submission=p / "x.zip"), "no masks"),
        ("val", lambda p: Wanted(official=True), "give --output"),
        ("val", lambda p: Wanted(submission=p / "x.tar"), r"x\.tar: expected"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    cityscapes: Path, tmp_path: Path, split: str, wanted: Change, message: str
) -> None:
    dataset = load_dataset("cityscapes", cityscapes, split)
    if split == "test":
        samples = tuple(dataclasses.replace(sample, mask=None) for sample in dataset.samples)
        dataset = dataclasses.replace(dataset, samples=samples)
    with pytest.raises(UsageError, match=message):
        check_wanted(dataset, wanted(tmp_path))
    assert not list(tmp_path.iterdir())


def test_other_data_sets_have_no_server(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cityscapes, voc, not for 'tiny'"):
        check_wanted(dataset, Wanted(submission=tmp_path / "x.zip"))
    with pytest.raises(UsageError, match="--official is for cityscapes"):
        check_wanted(dataset, Wanted(tmp_path / "out", official=True))


def test_official_scores_need_label_ids(cityscapes: Path, tmp_path: Path) -> None:
    dataset = load_dataset("cityscapes", cityscapes, "val")
    samples = [
        dataclasses.replace(
            sample, mask=Path(str(sample.mask).replace("labelIds", "labelTrainIds"))
        )
        for sample in dataset.samples
    ]
    dataset = dataclasses.replace(dataset, samples=tuple(samples))
    with pytest.raises(DataError, match=r"labelTrainIds\.png: the official scripts need"):
        check_wanted(dataset, Wanted(tmp_path / "out", official=True))


def test_a_failure_midway_leaves_nothing_and_keeps_the_older_result(
    dataset: Dataset, tmp_path: Path
) -> None:
    output = tmp_path / "results" / "out"
    score(threshold(), dataset, Wanted(output))
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    answers = iter([False, True])
    with pytest.raises(InterruptedByUserError):
        score(threshold(), dataset, Wanted(output), stop=lambda: next(answers))
    dataset.samples[1].image.write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(DataError, match=r"1\.png"):
        score(threshold(), dataset, Wanted(output))
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def test_whenever_it_is_stopped_nothing_is_left(cityscapes: Path, tmp_path: Path) -> None:
    dataset = load_dataset("cityscapes", cityscapes, "val")
    wanted = Wanted(tmp_path / "out", submission=tmp_path / "a.zip")
    for before in range(3 * len(dataset)):  # once each: scored, drawn for the report, packed
        stop = iter([False] * before + [True]).__next__
        with pytest.raises(InterruptedByUserError):
            score(segmenter_for(dataset), dataset, wanted, stop=stop)
        assert list(tmp_path.iterdir()) == []
    score(segmenter_for(dataset), dataset, wanted, stop=lambda: False)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "a.zip"}


def test_what_a_killed_run_left_is_cleared(voc: Path, tmp_path: Path) -> None:
    left = tmp_path / ".a.zip.labels"
    left.mkdir()
    (left / "old.png").write_bytes(b"")
    dataset = load_dataset("voc", voc, "test")
    predict_for_server(segmenter_for(dataset), dataset, tmp_path / "a.zip")
    assert [path.name for path in tmp_path.iterdir()] == ["a.zip"]


def test_equal_runs_write_equal_bytes_but_for_the_date(dataset: Dataset, tmp_path: Path) -> None:
    for name in "ab":
        score(threshold(), dataset, Wanted(tmp_path / name))
    for name in ("metrics.json", "counts.npy", "images.csv", "classes.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    timing = json.loads((tmp_path / "a" / "timing.json").read_text())
    assert timing["processes"] == 1 and timing["pictures"] == 2
