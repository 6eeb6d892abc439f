"""Training from a cache."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from segdeform.data import load_dataset
from segdeform.errors import DataError
from segdeform.preparing.decoding import write_cache
from segdeform.training.loop import train
from tests.training.conftest import ReporterThat, tiny_config


def test_a_cache_changes_no_bit_of_the_weights(shapes: Path, tmp_path: Path) -> None:
    root = shutil.copytree(shapes, tmp_path / "shapes")
    config = tiny_config(steps=3)
    plain = train(config, root, tmp_path / "plain", device="cpu", workers=0)
    for split in ("train", "val"):
        write_cache(load_dataset("shapes", root, split))
    reporter = ReporterThat()
    fast = train(config, root, tmp_path / "fast", device="cpu", workers=0, reporter=reporter)
    assert [text for text in reporter.messages if text.startswith("train: pictures from")]
    weights = [(result.model / "model.safetensors").read_bytes() for result in (plain, fast)]
    assert weights[0] == weights[1]
    assert plain.miou == fast.miou


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cache_cut_short_under_a_running_training_is_an_error_in_data(
    shapes: Path, tmp_path: Path, workers: int
) -> None:
    root = shutil.copytree(shapes, tmp_path / "shapes")
    folder = write_cache(load_dataset("shapes", root, "train"))
    reporter = ReporterThat(2, lambda: os.truncate(folder / "images.u8", 100))
    with pytest.raises(DataError, match="was cut short while it was used; remove it"):
        train(
            tiny_config(steps=8),
            root,
            tmp_path / "run",
            device="cpu",
            workers=workers,
            reporter=reporter,
        )
