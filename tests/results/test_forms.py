"""Probabilities, facts and cut-outs, against numbers computed otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeform.data.label_files import PNG_RGBA, write_png_rows
from segdeform.results import cutout as cutout_module
from segdeform.results import facts as facts_module
from segdeform.results import probabilities as module
from segdeform.results.cutout import cutout, cutout_rows
from segdeform.results.facts import class_facts
from segdeform.results.probabilities import write_probabilities


@pytest.mark.parametrize("block", [2**26, 2 * 5 * 13 * 4])
@pytest.mark.parametrize("kind", ["float16", "uint8"])
def test_probabilities_come_back(
    tmp_path: Path, kind: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    values = np.random.default_rng(0).dirichlet(np.ones(5), (11, 13)).transpose(2, 0, 1)
    given = values.astype(np.float16)
    names = ["sky", "road", "träd", "\N{SNOWMAN}", "a b"]
    write_probabilities(tmp_path / "a.npz", given, names, kind)
    write_probabilities(tmp_path / "b.npz", given, names, kind)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as file:
        assert file["classes"].tolist() == names and file["size"].tolist() == [11, 13]
        tops = [int(name.removeprefix("rows_")) for name in file if name.startswith("rows_")]
        assert tops == ([0] if block == 2**26 else [0, 4, 8])
        found = np.concatenate([file[f"rows_{top}"] for top in tops], 1)
    assert found.dtype == kind and found.shape == (5, 11, 13)
    if kind == "float16":
        np.testing.assert_array_equal(found, given)
    else:
        assert abs(found / 255 - values).max() <= 0.5 / 255 + 2**-11


def test_facts_are_counts_and_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts_module, "_ROWS", 4)
    rng = np.random.default_rng(1)
    labels = rng.choice([0, 2, 3], (13, 7)).astype(np.uint8)
    confidence = rng.integers(0, 256, (13, 7)).astype(np.uint8)
    found = class_facts(labels, ("a", "b", "c", "d"), confidence)
    assert [entry["class"] for entry in found["classes"]] == ["a", "c", "d"]
    assert found["size"] == [13, 7]
    assert found["mean_confidence"] == pytest.approx(confidence.mean() / 255)
    for entry in found["classes"]:
        there = labels == entry["class_index"]
        assert (entry["pixels"], entry["share"]) == (there.sum(), there.mean())
        assert entry["mean_confidence"] == pytest.approx(confidence[there].mean() / 255)
    plain = class_facts(labels, ("a", "b", "c", "d"))
    assert "mean_confidence" not in plain and "mean_confidence" not in plain["classes"][0]


@pytest.mark.parametrize("channels", [3, 1, 5])
def test_a_cutout_shows_one_class(
    channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutout_module, "_ROWS", 5)
    rng = np.random.default_rng(2)
    image = rng.integers(1, 256, (12, 9, channels)).astype(np.uint8)
    labels = rng.integers(0, 3, (12, 9)).astype(np.uint8)
    found = cutout(image, labels, 2)
    there = labels == 2
    np.testing.assert_array_equal(found[..., 3], there * 255)
    assert not found[~there].any()
    shown = image[..., :3] if channels >= 3 else np.repeat(image, 3, 2)
    np.testing.assert_array_equal(found[there, :3], shown[there])
    strips = cutout_rows(image, labels, 2)
    write_png_rows(tmp_path / "a.png", labels.shape, PNG_RGBA, 8, strips)
    with Image.open(tmp_path / "a.png") as file:
        assert file.mode == "RGBA"
        np.testing.assert_array_equal(np.asarray(file), found)
