"""Training from a cache."""

from __future__ import annotations

import shutil
from pathlib import Path

from segdeform.data import load_dataset
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
