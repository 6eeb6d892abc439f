"""A test split as benchmarks publish it: its masks are there, and hold no class."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segdeform.cli import main
from segdeform.config.schema import EvalConfig
from segdeform.data.cityscapes_labels import CITYSCAPES_CLASSES
from segdeform.segmenter import Segmenter
from tests.conftest import external_data
from tests.data.cityscapes_frames import write_frames
from tests.evaluation.test_run import ByBrightness


@pytest.fixture(autouse=True)
def _model(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    model: Any = ByBrightness(19).eval()
    segmenter = Segmenter(
        model=model,
        classes=tuple(label.name for label in CITYSCAPES_CLASSES),
        palette=tuple(label.color for label in CITYSCAPES_CLASSES),
        options=EvalConfig(),
        device=torch.device("cpu"),
        info={"sha256": "abc", "training": {"dataset": "cityscapes"}, "path": "model"},
    )
    monkeypatch.setattr("segdeform.evaluation.run.load", lambda *_, **__: segmenter)
    here = tmp_path_factory.mktemp("here")
    (here / "model").mkdir()
    (here / "model" / "model.json").write_text("{}")
    monkeypatch.chdir(here)


def ask(root: Path, *more: object) -> int:
    return main(["eval", "model", "--data", str(root), "--split", "test", *map(str, more)])


def check_placeholders(
    root: Path, maps: int, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(root, "--submission", folder / "send.zip") == 0
    with zipfile.ZipFile(folder / "send.zip") as archive:
        assert len(archive.namelist()) == maps
    capsys.readouterr()
    for more in ((), ("--output", folder / "out")):
        assert ask(root, *more) == 2
        err = capsys.readouterr().err.splitlines()[-1]
        assert "split 'test' of cityscapes has no masks that hold a class" in err
        assert "--submission FILE.zip" in err
    assert sorted(path.name for path in folder.iterdir()) == ["send.zip"]


def test_masks_without_a_class_are_predicted_and_not_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_frames(tmp_path / "set", frames=2, size=(16, 32), splits=("test",))
    out = tmp_path / "out"
    out.mkdir()
    assert ask(root, "--output", out / "scored") == 0  # these do hold classes
    (out / "scored").rename(tmp_path / "scored")
    paths = sorted(root.glob("gtFine/test/*/*_labelIds.png"))
    for path in paths:  # unlabelled, ego vehicle and static, as in the official files
        Image.fromarray(np.resize(np.array([0, 1, 4], np.uint8), (16, 32))).save(path)
    check_placeholders(root, len(paths), out, capsys)


def test_the_placeholders_of_the_benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_placeholders(external_data("cases/cityscapes_test_dummy"), 2, tmp_path, capsys)
