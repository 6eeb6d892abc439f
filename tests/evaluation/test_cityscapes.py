"""Ours and the official Cityscapes scripts on frames of the official layout with all labels."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeform.data import load_dataset
from segdeform.data.cityscapes_labels import train_ids_to_label_ids
from segdeform.data.dataset import Dataset, read_pair
from segdeform.errors import DataError, InterruptedByUserError
from segdeform.evaluation import cityscapes
from segdeform.evaluation.cityscapes import OfficialScores, official_scores, refuse_other_iou
from segdeform.evaluation.confusion import confusion_matrix, scores
from tests.data.cityscapes_frames import write_frame, write_frames

Pairs = list[tuple[Path, Path]]


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cityscapes")
    write_frames(root, frames=2, size=(60, 120), splits=("val",))
    write_frame(root, "val", "zurich_000007_000019", (45, 99), np.random.default_rng(1))
    return root


def predicted(dataset: Dataset, folder: Path) -> tuple[Pairs, dict[str, float]]:
    """Writes predictions with mistakes of every kind as label ids; returns them and our IoUs."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    matrix = np.zeros((19, 19), np.int64)
    pairs = []
    for index, sample in enumerate(dataset.samples):
        _, truth = read_pair(dataset, index)
        wrong = rng.integers(0, 18, truth.shape)  # never the last class
        keep = (rng.random(truth.shape) < 0.6) & (truth != 255)
        labels = np.where(keep, truth, wrong).astype(np.uint8)
        matrix += confusion_matrix(truth, labels, 19)
        path = folder / f"{Path(sample.name).name}_labelIds.png"
        Image.fromarray(train_ids_to_label_ids(labels)).save(path)
        assert sample.mask is not None
        pairs.append((path, sample.mask))
    return pairs, dict(zip(dataset.classes, scores(matrix).iou, strict=True))


def official_command(pairs: Pairs, instances: bool) -> dict[str, dict[str, float]]:
    """Runs the official evaluation over all pairs at once, as its own command does."""
    from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as code

    settings = code.args
    settings.quiet, settings.JSONOutput, settings.evalInstLevelScore = True, False, instances
    lists = [[str(path) for path in paths] for paths in zip(*pairs, strict=True)]
    with pytest.MonkeyPatch.context() as patch:
        if not hasattr(np, "in1d"):
            patch.setattr(np, "in1d", lambda a, b: np.isin(a.ravel(), b), raising=False)
        result: dict[str, dict[str, float]] = code.evaluateImgLists(*lists, settings)
    return result


def test_class_iou_equals_ours_and_all_scores_equal_the_official_command(
    frames: Path, tmp_path: Path
) -> None:
    dataset = load_dataset("cityscapes", frames, "val")
    pairs, ours = predicted(dataset, tmp_path)
    counted = official_scores(pairs, workers=2)
    assert len(ours) == 19
    for name, iou in ours.items():
        assert counted.class_iou[name] == pytest.approx(iou, abs=1e-6)
    refuse_other_iou(counted, ours)
    expected = official_command(pairs, instances=True)
    for mine, theirs in (
        (counted.class_iou, "classScores"),
        (counted.class_iiou, "classInstScores"),
        (counted.category_iou, "categoryScores"),
        (counted.category_iiou, "categoryInstScores"),
    ):
        assert mine == pytest.approx(expected[theirs], rel=1e-12, nan_ok=True)
    value = counted.to_json()
    assert value["mean_class_iou"] == pytest.approx(expected["averageScoreClasses"])
    assert value["mean_category_iiou"] == pytest.approx(expected["averageScoreInstCategories"])


def test_numpy_is_left_as_it_was(frames: Path, tmp_path: Path) -> None:
    pairs, _ = predicted(load_dataset("cityscapes", frames, "val"), tmp_path)
    before = hasattr(np, "in1d")
    counted = cityscapes._count((*pairs[0], True))  # in this process instead of a worker
    assert not isinstance(counted, DataError)
    assert counted[0].sum() == 60 * 120
    assert hasattr(np, "in1d") is before


def test_without_instances_says_so_and_counts_the_rest(frames: Path, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(frames, root)
    next(root.rglob("zurich*_instanceIds.png")).unlink()
    pairs, ours = predicted(load_dataset("cityscapes", root, "val"), tmp_path / "p")
    counted = official_scores(pairs)
    assert counted.class_iiou is None and counted.category_iiou is None
    assert "1 of 3" in counted.note
    refuse_other_iou(counted, ours)
    assert counted.to_json()["mean_class_iiou"] is None


def test_other_scores_are_refused(frames: Path) -> None:
    both_absent = {"road": math.nan}
    refuse_other_iou(OfficialScores(both_absent, None, {}, None, ""), both_absent)
    for theirs in (0.5 + 2e-6, math.nan):
        official = OfficialScores({"road": theirs}, None, {}, None, "")
        with pytest.raises(DataError, match="'road'"):
            refuse_other_iou(official, {"road": 0.5})


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((45, 99), 255, np.uint8), "holds 255; label ids end at 33"),
        (np.zeros((44, 99), np.uint8), "official Cityscapes scripts refuse: Image heights"),
    ],
)
def test_bad_predictions_are_named(
    frames: Path, tmp_path: Path, labels: np.ndarray, message: str
) -> None:
    prediction = tmp_path / "bad.png"
    Image.fromarray(labels).save(prediction)
    truth = next(frames.rglob("zurich*_labelIds.png"))
    with pytest.raises(DataError, match=message):
        official_scores([(prediction, truth)])


def test_environment_of_the_official_scripts_is_not_followed(
    frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CITYSCAPES_EXPORT_DIR", str(tmp_path / "nowhere"))
    pairs, ours = predicted(load_dataset("cityscapes", frames, "val"), tmp_path)
    refuse_other_iou(official_scores(pairs), ours)


def test_stop_ends_it(frames: Path, tmp_path: Path) -> None:
    pairs, _ = predicted(load_dataset("cityscapes", frames, "val"), tmp_path)
    with pytest.raises(InterruptedByUserError):
        official_scores(pairs, stop=lambda: True)
