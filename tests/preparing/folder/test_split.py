"""Splits: reproducible, in groups, with every class where that can be."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segdeform.data.dataset import Sample
from segdeform.errors import UsageError
from segdeform.preparing.folder.groups import Groups, groups_by_pattern, groups_of_frames
from segdeform.preparing.folder.split import deal, told_lacking


def counts(groups: int, classes: int, seed: int) -> NDArray[np.int64]:
    """Pixels of classes, the later the rarer; every group has the first one."""
    generator = np.random.default_rng(seed)
    there = generator.random((groups, classes)) < 1 / np.arange(1, classes + 1) ** 1.5
    return np.where(there, generator.integers(1, 9000, (groups, classes)), 0).astype(np.int64)


def test_the_order_of_the_files_changes_nothing() -> None:
    keys = [f"p{number}" for number in range(61)]
    pixels, sizes = counts(61, 5, 0), list(np.random.default_rng(1).integers(1, 5, 61))
    first = deal(keys, sizes, pixels, (0.7, 0.2, 0.1), 3)
    found = dict(zip(keys, first.parts, strict=True))
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(61)
        other = deal(
            [keys[k] for k in order], [sizes[k] for k in order], pixels[order], (0.7, 0.2, 0.1), 3
        )
        assert {keys[k]: part for k, part in zip(order, other.parts, strict=True)} == found
    assert deal(keys, sizes, pixels, (0.7, 0.2, 0.1), 4).parts != first.parts


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("shares", [(0.8, 0.2), (0.7, 0.2, 0.1), (0.2,) * 5, (0.5, 0.5)])
def test_shares_of_pictures_and_of_every_class(shares: tuple[float, ...], seed: int) -> None:
    pixels = counts(200, 6, seed)
    made = deal([f"p{k}" for k in range(200)], [1] * 200, pixels, shares, seed)
    parts = np.array(made.parts)
    holds = pixels > 0
    for index in range(6):
        groups = int(holds[:, index].sum())
        if groups >= len(shares):
            assert all(holds[parts == part, index].any() for part in range(len(shares)))
        if groups >= 40:
            total = pixels[:, index].sum()
            for part, share in enumerate(shares):
                got = pixels[parts == part, index].sum() / total
                assert abs(got - share) < 0.06, (index, part, got)
    for part, share in enumerate(shares):
        assert abs((parts == part).sum() - 200 * share) <= 4


@pytest.mark.parametrize("groups", [1, 2, 3, 5])
def test_what_few_groups_hold_goes_to_train_first(groups: int) -> None:
    pixels = np.zeros((30, 2), np.int64)
    pixels[:, 0] = 100
    pixels[:groups, 1] = 7
    made = deal([f"p{k}" for k in range(30)], [1] * 30, pixels, (0.6, 0.2, 0.2), 0)
    having = {part for part, amount in zip(made.parts, pixels[:, 1], strict=True) if amount}
    assert having == set(range(min(3, groups)))
    lacking = [(1, part, groups) for part in range(groups, 3)]
    assert list(made.lacking) == lacking
    lines = told_lacking(made, ["a", "b"], ["train", "val", "test"], {True: "x", False: "xs"})
    assert len(lines) == bool(lacking)
    if groups == 1:
        assert lines == ["class 1 (b) is not in val, test: only 1 x holds it"]


def test_a_small_split_takes_more_than_its_share_to_have_every_class() -> None:
    pixels = np.zeros((10, 4), np.int64)
    pixels[:, 0] = 100
    for index in (1, 2, 3):
        pixels[2 * index : 2 * index + 2, index] = 7
    made = deal([f"p{k}" for k in range(10)], [1] * 10, pixels, (0.9, 0.1), 0)
    assert not made.lacking and sum(made.parts) == 3


def test_every_split_gets_something_or_it_is_refused() -> None:
    ones = np.ones((3, 1), np.int64)
    assert sorted(deal(["a", "b", "c"], [50, 1, 1], ones, (0.8, 0.1, 0.1), 0).parts) == [0, 1, 2]
    with pytest.raises(UsageError, match="2 pictures, or groups"):
        deal(["a", "b"], [1, 1], ones[:2], (0.8, 0.1, 0.1), 0)


def test_ten_thousand_pictures_are_dealt_at_once() -> None:
    pixels = counts(10_000, 20, 0)
    made = deal([f"p{k}" for k in range(10_000)], [1] * 10_000, pixels, (0.8, 0.2), 0)
    assert abs(sum(made.parts) - 2000) <= 20


def named(groups: Groups, names: list[str]) -> list[list[str]]:
    return [[names[index] for index in group] for group in groups.members]


def test_groups_by_a_pattern() -> None:
    names = ["p1_a", "p1_b", "p2_a", "x", "p10_a"]
    found = groups_by_pattern(names, r"^p(\d+)_")
    assert named(found, names) == [["p1_a", "p1_b"], ["p2_a"], ["x"], ["p10_a"]]
    assert "3 groups" in found.told[0] and "1 names do not match" in found.told[0]
    whole = groups_by_pattern(names, r"p\d")  # without a group, the whole match
    assert named(whole, names) == [["p1_a", "p1_b", "p10_a"], ["p2_a"], ["x"]]
    assert named(groups_by_pattern(names, ".*"), names) == [[name] for name in names]
    optional = groups_by_pattern(["a1", "b2"], r"(c)?\d")
    assert named(optional, ["a1", "b2"]) == [["a1"], ["b2"]]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "no regular expression"),
        ("a{99999999999}", "no regular expression"),
        ("(" * 5000 + ")" * 5000, "no regular expression"),
        ("q", "no name"),
        ("a", "one group"),
    ],
)
def test_patterns_that_group_nothing(pattern: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        groups_by_pattern(["a1", "a2"], pattern)


def frames(folder: Path, names: list[str], drift: float) -> list[Sample]:
    """Pictures of a texture that moves by `drift` pixels a frame; unrelated ones for None."""
    generator = np.random.default_rng(0)
    wide = generator.integers(0, 256, (12, 400), np.uint8)
    scene = np.asarray(Image.fromarray(wide).resize((4000, 120), Image.Resampling.BICUBIC))
    samples = []
    for number, name in enumerate(names):
        start = round(number * drift) if drift else int(generator.integers(0, 3800))
        path = folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene[:, start : start + 160]).save(path)
        samples.append(Sample(name, path, None))
    return samples


def test_a_video_is_found_and_split_in_blocks(tmp_path: Path) -> None:
    names = [f"drive/f{10 * number:06}" for number in range(40)] + ["far"]
    samples = frames(tmp_path, names, 2.0)
    found = groups_of_frames(samples, 5, lambda done, total: None)
    blocks = [group for group in found.members if len(group) > 1]
    assert [len(block) for block in blocks] == [8] * 5
    for block in blocks:
        assert list(block) == list(range(block[0], block[0] + 8))
    assert (40,) in found.members
    assert "drive/f*" in found.told[0] and "--group-by" in found.told[0]


def test_a_gap_ends_a_video_and_numbers_are_no_text(tmp_path: Path) -> None:
    numbers = [*range(1, 21), *range(500, 530)]
    samples = frames(tmp_path, [f"v{number}" for number in numbers], 2.0)
    mixed = [samples[k] for k in np.random.default_rng(0).permutation(len(samples))]
    found = groups_of_frames(mixed, 4, lambda done, total: None)
    blocks = [[int(mixed[k].name[1:]) for k in group] for group in found.members]
    assert sorted(itertools.chain(*blocks)) == numbers
    assert all(block == list(range(block[0], block[0] + len(block))) for block in blocks)
    assert len(blocks) == 8


@pytest.mark.parametrize("drift", [0.0, 2.0])
def test_numbered_pictures_that_are_unrelated_are_no_video(tmp_path: Path, drift: float) -> None:
    count = 40 if not drift else 8  # a short run proves nothing either
    samples = frames(tmp_path, [f"photo{number}" for number in range(count)], drift)
    found = groups_of_frames(samples, 5, lambda done, total: None)
    assert all(len(group) == 1 for group in found.members) and not found.told


@pytest.mark.parametrize("drift", [0.0, 2.0])
def test_pictures_of_twelve_bits_are_looked_at_as_others_are(tmp_path: Path, drift: float) -> None:
    """As 8-bit pictures they are nearly black, or white, and all alike."""
    samples = frames(tmp_path, [f"slice{number}" for number in range(40)], drift)
    for sample in samples:
        grey = np.asarray(Image.open(sample.image).convert("L")).astype(np.uint16) * 8 + 1500
        sample.image.unlink()
        Image.fromarray(grey).save(sample.image.with_suffix(".png"))
    deep = [replace(sample, image=sample.image.with_suffix(".png")) for sample in samples]
    found = groups_of_frames(deep, 5, lambda done, total: None)
    assert bool(found.told) is (drift > 0)
    assert max(map(len, found.members)) == (8 if drift else 1)


def test_pictures_that_cannot_be_read_prove_nothing(tmp_path: Path) -> None:
    samples = frames(tmp_path, [f"f{number}" for number in range(20)], 2.0)
    for sample in samples:
        sample.image.write_bytes(b"nothing")
    assert not groups_of_frames(samples, 5, lambda done, total: None).told
