"""Several processes count the same integers as one, and end together."""

from __future__ import annotations

import json
import shutil
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

from segdeform.cli import main
from segdeform.config.schema import DeformConfig, ModelConfig
from segdeform.data import load_dataset
from segdeform.evaluation.evaluate import evaluate
from segdeform.machine.processes import processes
from segdeform.models import build_model
from segdeform.preparing.shapes import write_shapes
from segdeform.segmenter import ModelDescription, load, save_model
from tests.ranks import Ranks, run_ranks

SAME = ("metrics.json", "counts.npy", "images.csv", "classes.csv")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(root, seed=0, train=1, val=5, size=64)  # odd: one process has less to do
    return root


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "model"
    dataset = load_dataset("shapes", data, "val")
    network = ModelConfig(backbone="mobilenet_v2", weights="none", head_channels=16)
    deform = DeformConfig(layers=2)
    torch.manual_seed(0)
    built = build_model(network, deform, len(dataset.classes), pretrained=False)
    description = ModelDescription(
        model=network,
        deform=deform,
        classes=dataset.classes,
        palette=dataset.palette,
        training={"dataset": "shapes"},
    )
    save_model(folder, built.eval(), description)
    return folder


def arguments(model: Path, data: Path, output: Path) -> list[str]:
    return ["eval", str(model), "--data", str(data), "--output", str(output)]


def _command(words: list[str]) -> str:
    """Runs a command line; returns what it prints."""
    with redirect_stdout(StringIO()) as printed:
        assert main(words) == 0
    return printed.getvalue()


def test_two_processes_write_what_one_writes(model: Path, data: Path, tmp_path: Path) -> None:
    for size, name in ((1, "one"), (2, "two")):
        first, *others = run_ranks(size, _command, arguments(model, data, tmp_path / name))
        assert first.count("mIoU 0.") == 1
        assert not any(others)
    for name in SAME:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    processes = [
        json.loads((tmp_path / name / "timing.json").read_text())["processes"]
        for name in ("one", "two")
    ]
    assert processes == [1, 2]


def _evaluate(model: Path, data: Path) -> None:
    segmenter = load(model, "cpu")
    with processes(torch.device("cpu")) as peers:
        evaluate(segmenter, load_dataset("shapes", data, "val"), peers=peers)


def test_a_bad_picture_of_one_process_ends_both(model: Path, data: Path, tmp_path: Path) -> None:
    """It breaks after the check, in the share of rank 1: rank 0 is told while it is at work."""
    broken = shutil.copytree(data, tmp_path / "data")
    picture = broken / "val" / "images" / "00003.png"
    picture.write_bytes(picture.read_bytes()[:300])
    first, second = Ranks(2, _evaluate, model, broken).ended()
    assert second.error.startswith(f"DataError: {picture}")
    assert first.error.startswith("PeerLostError: Another process failed (number 1: ")
    assert str(picture) in first.error
