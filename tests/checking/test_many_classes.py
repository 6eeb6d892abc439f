"""Checks of data sets of more than 255 classes, whose masks have 16 bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segdeform.checking.facts import index_facts
from segdeform.cli import main
from segdeform.data import load_dataset, read_pair
from segdeform.data.dataset import colour_map
from tests.checking.conftest import Check

COUNT = 300
SIZE = (18, 20)  # pixels for all classes, and 60 more


def write(root: Path, masks: list[NDArray[np.integer]], **keys: object) -> Path:
    rng = np.random.default_rng(1)
    for index, labels in enumerate(masks):
        image = rng.integers(0, 256, (*labels.shape[:2], 3)).astype(np.uint8)
        for folder, pixels in (("images", image), ("masks", labels)):
            path = root / "train" / folder / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    names = [f"c{index}" for index in range(COUNT)]
    (root / "classes.json").write_text(json.dumps({"names": names, **keys}))
    return root


def every_class(seed: int = 0) -> NDArray[np.uint16]:
    labels = np.concatenate([np.arange(COUNT), np.full(60, 65535)]).astype(np.uint16)
    return np.random.default_rng(seed).permuted(labels).reshape(SIZE)


def test_all_pixels_are_counted(tmp_path: Path, check: Check) -> None:
    report = check(write(tmp_path, [every_class(), every_class(1)])).report
    assert report["sound"] and report["findings"] == []
    (split,) = report["splits"]
    assert split["pixels"] == [2] * COUNT and split["ignored_pixels"] == 120


def test_a_value_outside_is_found_with_its_place(tmp_path: Path, check: Check) -> None:
    labels = every_class()
    labels[7, 11:13] = 300
    (finding,) = check(write(tmp_path, [labels, every_class(1)])).report["findings"]
    assert finding["kind"] == "label-outside" and finding["value"] == 300
    assert (finding["row"], finding["column"], finding["count"]) == (7, 11, 2)


def test_of_masks_of_8_bits_a_255_is_asked_about(tmp_path: Path, check: Check) -> None:
    small = np.minimum(every_class(), 255).astype(np.uint8)
    root = write(tmp_path / "a", [np.minimum(small, 200), small])
    found = check(root).report["findings"]
    (finding,) = [finding for finding in found if finding["kind"] == "class-255"]
    assert "255 is class 255 (c255) of 300" in finding["text"] and "1.png" in finding["text"]
    assert finding["severity"] == "warning" and "void_id: 255" in finding["fix"]
    assert finding["count"] == int((small == 255).sum())
    assert small[finding["row"], finding["column"]] == 255
    alone = np.where(small > 200, 255, 0).astype(np.uint8)  # nothing in it but 0 and 255
    kinds = check(write(tmp_path / "d", [np.minimum(small, 200), alone])).report["counts"]
    assert "class-255" in kinds and "white-mask" not in kinds, "255 is not ignored here"
    for other in (
        write(tmp_path / "b", [small], void_id=255),
        write(tmp_path / "c", [small, every_class()]),  # 16 bits are used
    ):
        kinds = {finding["kind"] for finding in check(other).report["findings"]}
        assert "class-255" not in kinds


def test_classes_counted_from_1_are_told_in_one_line_and_mended(
    tmp_path: Path, check: Check
) -> None:
    labels = [every_class(seed) for seed in range(3)]
    shifted = [np.where(mask == 65535, mask, mask + 1).astype(np.uint16) for mask in labels]
    root = write(tmp_path / "root", shifted)
    (finding,) = check(root).report["findings"]
    assert finding["kind"] == "off-by-one"
    assert "{1: 0, 2: 1, 3: 2, 4: 3, 5: 4, 6: 5, 7: 6, 8: 7, ..., 300: 299}" in finding["fix"]
    copy = tmp_path / "copy"
    check(root, "--fix", copy)
    assert check(copy).report["sound"]
    dataset = load_dataset("folder", copy, "train")
    for index, mask in enumerate(labels):
        np.testing.assert_array_equal(read_pair(dataset, index)[1], mask)


def test_masks_in_the_colours_of_300_classes_are_mended(tmp_path: Path, check: Check) -> None:
    rng = np.random.default_rng(8)
    palette = rng.permuted(np.array(colour_map(2000))[1:])[:COUNT].astype(np.uint8)
    palette = np.unique(palette, axis=0)
    palette = np.concatenate([palette, np.array([(9, k, 1) for k in range(COUNT - len(palette))])])
    labels = np.minimum(every_class(), COUNT - 1)
    coloured = palette.astype(np.uint8)[labels[:12]]  # at most 256 colours are looked at
    root = write(tmp_path / "root", [coloured], palette=palette.tolist())
    copy = tmp_path / "copy"
    assert "colour-mask" in {found["kind"] for found in check(root).report["findings"]}
    check(root, "--fix", copy)
    np.testing.assert_array_equal(
        read_pair(load_dataset("folder", copy, "train"), 0)[1], labels[:12]
    )


def test_the_table_is_cut_to_what_tells_most(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = np.full((40, 40), 7, np.uint16)
    common[0, :5] = 299
    root = write(tmp_path / "root", [every_class(), common])
    page = tmp_path / "check.html"
    assert main(["check", str(root), "--split", "train", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "40 commonest and rarest of 300 classes" in " ".join(out.split())
    assert "7 c7" in out and "299 c299" in out and "class_weights: [" not in out
    assert len(out.splitlines()) < 65
    assert page.read_text().count("<tr><td>") == COUNT


def test_facts_of_16_bits_are_those_of_a_search_for_each_value() -> None:
    values = np.random.default_rng(2).integers(0, 5000, (90, 71)).astype(np.uint16)
    facts = index_facts(values)
    flat = values.ravel()
    assert sorted(facts.values) == sorted(set(flat.tolist()))
    for value, found in facts.values.items():
        assert found == (int((flat == value).sum()), int(np.argmax(flat == value)))
