"""`prepare_folder`: from raw folders to a data set that is checked, listed and told of."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segdeform.checking import check, list_splits
from segdeform.data import list_dataset, load_dataset, read_pair
from segdeform.errors import DataError, RunLockedError, SegdeformError, UsageError
from segdeform.preparing.folder.order import Order
from segdeform.preparing.folder.prepare import prepare_folder
from tests.conftest import external_data
from tests.preparing.folder.raw_folders import put_mask, put_picture, raw_folders

NAMES = [f"road{letter}{number}" for letter in "abcdef" for number in ("x", "y", "z")]


def names(root: Path, splits: Iterable[str] = ("train", "val")) -> dict[str, list[str]]:
    return {
        split: [sample.name for sample in load_dataset("folder", root, split).samples]
        for split in splits
    }


def contents(root: Path) -> dict[str, str]:
    """Returns the digest of every file below a folder."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_pictures_and_masks_become_a_data_set_that_refers_to_them(tmp_path: Path) -> None:
    images, masks = raw_folders(tmp_path, NAMES, mask_name="{}_mask", without=NAMES[3:8])
    before = contents(tmp_path)
    prepared = prepare_folder(Order(tmp_path / "ready", images, masks, split=0.3))
    assert prepared.record["splits"] == {"train": 9, "val": 4}
    assert prepared.record["paired_by"] == "NAME_mask"
    left_out = json.loads((tmp_path / "ready" / "prepare.json").read_bytes())["left_out"]
    assert [Path(p).stem for p in left_out["pictures without a mask"]] == NAMES[3:8]
    found = []
    for split in ("train", "val"):
        dataset = load_dataset("folder", tmp_path / "ready", split)
        found += [sample.name for sample in dataset.samples]
        for index, sample in enumerate(dataset.samples):
            assert sample.image.resolve() == images / f"{sample.name}.jpg"
            assert read_pair(dataset, index)[1][0].tolist()[:3] == [0, 1, 0]
    assert sorted(found) == NAMES[:3] + NAMES[8:]
    assert sorted(path.name for path in (tmp_path / "ready").iterdir()) == [
        *("data.yaml", "prepare.json", "train.txt", "val.txt")
    ]
    assert {name: digest for name, digest in contents(tmp_path).items()
            if not name.startswith("ready/")} == before, "the source is only read"  # fmt: skip


@pytest.mark.parametrize("mode", ["refer", "copy", "link"])
def test_the_same_call_writes_the_same_files(tmp_path: Path, mode: str) -> None:
    images, masks = raw_folders(tmp_path, NAMES)
    order = Order(tmp_path / "ready", images, masks, test=0.2, folds=3, mode=mode)  # type: ignore[arg-type]
    assert prepare_folder(order).changed
    first = contents(tmp_path / "ready")
    again = prepare_folder(order)
    assert not again.changed and contents(tmp_path / "ready") == first
    shutil.rmtree(tmp_path / "ready")
    prepare_folder(order)
    assert contents(tmp_path / "ready") == first
    assert not list(tmp_path.glob(".ready*"))


@pytest.mark.parametrize("mode", ["copy", "link"])
def test_copies_and_hard_links(tmp_path: Path, mode: str) -> None:
    images, masks = raw_folders(tmp_path / "raw", ["x/1", "x/2", "y/1", "z"], mask_name="{}_m")
    order = Order(tmp_path / "ready", images, masks, split=0.4, folds=2, mode=mode)  # type: ignore[arg-type]
    prepare_folder(order)
    found = names(tmp_path / "ready")
    assert sorted(name for split in found.values() for name in split) == ["x/1", "x/2", "y/1", "z"]
    for split, members in found.items():
        for name in members:
            image = tmp_path / "ready" / split / "images" / f"{name}.jpg"
            mask = tmp_path / "ready" / split / "masks" / f"{name}.png"
            source = images / f"{name}.jpg"
            assert image.samefile(source) == (mode == "link")
            assert mask.samefile(masks / f"{name}_m.png") == (mode == "link")
            assert image.read_bytes() == source.read_bytes()
    if mode == "copy":
        shutil.rmtree(tmp_path / "raw")
    moved = (tmp_path / "ready").rename(tmp_path / "moved")
    folds = names(moved, ("fold1", "fold2"))
    assert sorted(len(part) for part in folds.values()) == [2, 2]
    assert names(moved).keys() == {"train", "val"}


@pytest.mark.parametrize("values", [(0, 255), (1, 0, 2), (255, 0)])
@pytest.mark.parametrize("mode", ["refer", "copy"])
def test_pictures_without_a_mask_can_be_background(
    tmp_path: Path, values: tuple[int, ...], mode: str
) -> None:
    """As roads without a crack, whose masks nobody drew; whatever values the other masks have."""
    bare = NAMES[1::3]
    images, masks = raw_folders(tmp_path / "raw", NAMES, values, "{}_mask", without=bare)
    put_picture(images / "broken.jpg", 99)
    (images / "broken.jpg").write_bytes(b"no picture")
    before = contents(tmp_path / "raw")
    order = Order(tmp_path / "ready", images, masks, keep_empty=True, mode=mode)  # type: ignore[arg-type]
    record = prepare_folder(order).record
    assert record["pairs"] == len(NAMES)
    assert record["left_out"]["pictures without a mask"] == [str(images / "broken.jpg")]
    (unusable,) = record["left_out"]["pairs that cannot be used"]
    assert unusable["file"] == str(images / "broken.jpg")
    assert any(f"{len(bare)} pictures without a mask are taken as" in t for t in record["guessed"])
    found = {}
    for split in ("train", "val"):
        dataset = load_dataset("folder", tmp_path / "ready", split)
        for index, sample in enumerate(dataset.samples):
            found[Path(sample.name).stem] = read_pair(dataset, index)[1]
    assert found.keys() == {Path(name).stem for name in NAMES}
    for name in NAMES:
        labels = found[Path(name).stem]
        assert labels.any() == (name not in bare) and labels.shape == (6, 9)
    assert contents(tmp_path / "raw") == before
    assert not prepare_folder(order).changed


@pytest.mark.parametrize(
    ("values", "options", "background"),
    [
        ((0, 255), {"values": "255:crack,0:road"}, "road"),
        ((0, 255), {"values": "255:background,0:crack"}, "background"),
        ((1, 2), {"values": "1:crack,2:background"}, "background"),
        ((1, 2), {"values": "1:crack,2:road"}, None),
        ("000000 ff0000", {"values": "ff0000:crack,000000:road"}, "road"),
        ("0a141e ff0000", {"values": "ff0000:crack,0a141e:road"}, None),
        ("0a141e ff0000", {}, None),
    ],
)
def test_the_background_is_the_class_of_nothing(
    tmp_path: Path, values: Any, options: dict[str, str], background: str | None
) -> None:
    """And not the one that stands first."""
    images, masks = raw_folders(tmp_path / "raw", NAMES, (0, 255), without=NAMES[:2])
    for path in masks.rglob("*.png"):
        shown = np.array(Image.open(path)) > 0
        if isinstance(values, str):
            two = np.array([list(bytes.fromhex(colour)) for colour in values.split()], np.uint8)
        else:
            two = np.array(values, np.uint8)
        Image.fromarray(two[shown.astype(int)]).save(path)
    order = Order(tmp_path / "ready", images, masks, keep_empty=True, **options)  # type: ignore[arg-type]
    if background is None:
        with pytest.raises(DataError, match="--keep-empty: no class has the value 0"):
            prepare_folder(order)
        assert not (tmp_path / "ready").exists()
        return
    prepare_folder(order)
    for split in ("train", "val"):
        dataset = load_dataset("folder", tmp_path / "ready", split)
        for index, sample in enumerate(dataset.samples):
            if sample.name in NAMES[:2]:
                labels = set(read_pair(dataset, index)[1].flat)
                assert [dataset.classes[label] for label in labels] == [background]


def test_an_empty_picture_that_cannot_be_listed_costs_no_other(tmp_path: Path) -> None:
    images, masks = raw_folders(tmp_path / "raw", NAMES)
    for odd in ("new\nline", "tab\tstop", " space"):
        put_picture(images / f"{odd}.png", 77)
    order = Order(tmp_path / "ready", images, masks, keep_empty=True)
    record = prepare_folder(order).record
    assert record["pairs"] == len(NAMES)
    unusable = record["left_out"]["pairs that cannot be used"]
    assert len(unusable) == 3 and all("cannot stand in a list" in one["reason"] for one in unusable)


def test_split_and_seed_depend_on_names_alone(tmp_path: Path) -> None:
    images, masks = raw_folders(tmp_path / "a", NAMES)
    prepare_folder(Order(tmp_path / "one", images, masks, seed=1))
    # The same names, written in another order, of another seed's pictures, beside others.
    others, drawn = raw_folders(tmp_path / "b", NAMES[::-1])
    prepare_folder(Order(tmp_path / "two", others, drawn, seed=1))
    assert names(tmp_path / "one") == names(tmp_path / "two")
    prepare_folder(Order(tmp_path / "three", others, drawn, seed=2))
    assert names(tmp_path / "one") != names(tmp_path / "three")


def test_groups_stay_together_and_every_class_is_everywhere(tmp_path: Path) -> None:
    for number in range(40):
        name = f"p{number % 10}_{chr(97 + number // 10)}"
        put_picture(tmp_path / "i" / f"{name}.png", number)
        put_mask(tmp_path / "m" / f"{name}.png", [0, 1, 2] if number in (3, 4, 17) else [0, 1])
    order = Order(tmp_path / "out", tmp_path / "i", tmp_path / "m", group_by=r"^(p\d+)_", folds=4)
    record = prepare_folder(order).record
    splits = names(tmp_path / "out", ("train", "val", "fold1", "fold2", "fold3", "fold4"))
    for parts in (("train", "val"), ("fold1", "fold2", "fold3", "fold4")):
        groups = [{name.partition("_")[0] for name in splits[part]} for part in parts]
        assert sum(map(len, groups)) == len(set().union(*groups)) == 10
        assert sum(len(splits[part]) for part in parts) == 40
    for split in ("train", "val"):
        dataset = load_dataset("folder", tmp_path / "out", split)
        assert any(2 in read_pair(dataset, index)[1] for index in range(len(dataset)))
    # Of 3 groups that hold class 2, one fold of four cannot have any.
    assert sum("class 2 (class_2) is not in fold" in line for line in record["split_by"]) == 1
    assert any("10 groups by --group-by" in line for line in record["split_by"])


def test_frames_of_a_video_are_split_in_blocks(tmp_path: Path) -> None:
    root = external_data("data/camvid/val")
    for image in sorted((root / "images").iterdir())[:40]:
        (tmp_path / "i").mkdir(exist_ok=True)
        (tmp_path / "i" / image.name).symlink_to(image)
    prepared = prepare_folder(
        Order(tmp_path / "out", tmp_path / "i", root / "masks", values=_camvid_values())
    )
    assert "look like video" in prepared.record["split_by"][0]
    val = [int(name.split("_")[1]) for name in names(tmp_path / "out")["val"]]
    assert len(val) == 8 and max(val) - min(val) == 2 * 7, "every second frame, one block"


def _camvid_values() -> str:
    return ",".join(f"{value}:c{value}" for value in range(11)) + ",11:ignore"


def test_pairs_that_cannot_be_used_are_left_out_and_listed(tmp_path: Path) -> None:
    images, masks = raw_folders(tmp_path, NAMES)
    (images / "roadax.jpg").write_bytes(b"\xff\xd8broken")
    put_mask(masks / "roadby.png", [0, 255], (6, 8))
    (masks / "roadcz.png").write_bytes(b"")
    prepared = prepare_folder(Order(tmp_path / "out", images, masks))
    listed = {
        Path(entry["file"]).name: entry["reason"]
        for entry in prepared.record["left_out"]["pairs that cannot be used"]
    }
    assert listed.keys() == {"roadax.jpg", "roadby.png", "roadcz.png"}
    assert "6x8 (HxW)" in listed["roadby.png"] and "empty" in listed["roadcz.png"]
    assert prepared.record["pairs"] == 15 and not prepared.report.errors


def test_names_that_no_line_of_a_list_can_hold(tmp_path: Path) -> None:
    odd = ["tab\tbed", "two\nlines", " space", "caf\udce9"]
    fine = ["a b", "stra\u00dfe, \u4e2d", "#x: [1]", "~x", "x.y", "'q'"]
    images, masks = raw_folders(tmp_path, [*NAMES, *odd, *fine])
    prepared = prepare_folder(Order(tmp_path / "out", images, masks))
    left = prepared.record["left_out"]["pairs that cannot be used"]
    assert len(left) == 3 + 1 and all("rename it" in entry["reason"] for entry in left)
    found = [name for split in names(tmp_path / "out").values() for name in split]
    assert sorted(found) == sorted([*NAMES, *fine])


def test_where_most_pairs_are_wrong_something_else_is(tmp_path: Path) -> None:
    images, masks = raw_folders(tmp_path, NAMES)
    for name in NAMES[:10]:
        put_mask(masks / f"{name}.png", [0, 255], (3, 3))
    with pytest.raises(DataError, match=r"10 of 18 pairs cannot be used: .*3x3"):
        prepare_folder(Order(tmp_path / "out", images, masks))
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    images, masks = raw_folders(tmp_path / "raw", NAMES)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    before = contents(tmp_path)
    for output, message in (
        (other, "holds something else"),
        (tmp_path / "raw", "holds something else"),
        (images, "lies in --images"),
        (masks / "ready", "lies in --masks"),
        (other / "thesis.tex", "is a file"),
    ):
        with pytest.raises(UsageError, match=message):
            prepare_folder(Order(output, images, masks))
    assert contents(tmp_path) == before


def test_an_output_of_other_sources_is_refused_and_of_other_options_written_anew(
    tmp_path: Path,
) -> None:
    images, masks = raw_folders(tmp_path / "raw", NAMES)
    prepare_folder(Order(tmp_path / "out", images, masks, folds=3))
    others, drawn = raw_folders(tmp_path / "others", NAMES)
    with pytest.raises(UsageError, match="was prepared of other images"):
        prepare_folder(Order(tmp_path / "out", others, drawn, folds=3))
    (tmp_path / "out" / "run").mkdir()
    (tmp_path / "out" / "run" / "mine").write_text("kept")
    again = prepare_folder(Order(tmp_path / "out", images, masks, classes="road,crack"))
    assert again.changed and "classes: not given -> road,crack" in again.otherwise
    assert load_dataset("folder", tmp_path / "out", "val").classes == ("road", "crack")
    assert sorted(contents(tmp_path / "out")) == [
        *("data.yaml", "prepare.json", "run/mine", "train.txt", "val.txt")
    ], "the folds of before are gone, what is not ours is not"


@pytest.mark.parametrize("name", ["../mine", "{tmp}/mine", "link/mine", "..", 7])
def test_a_record_that_was_tampered_with_deletes_nothing_outside(
    tmp_path: Path, name: object
) -> None:
    images, masks = raw_folders(tmp_path / "raw", NAMES)
    prepare_folder(Order(tmp_path / "out", images, masks))
    (tmp_path / "mine").write_text("kept")
    (tmp_path / "out" / "link").symlink_to(tmp_path)
    record = json.loads((tmp_path / "out" / "prepare.json").read_bytes())
    record["files"].append(name.format(tmp=tmp_path) if isinstance(name, str) else name)
    (tmp_path / "out" / "prepare.json").write_text(json.dumps(record))
    prepare_folder(Order(tmp_path / "out", images, masks, seed=5))
    assert (tmp_path / "mine").read_text() == "kept"


def test_more_masks_are_taken_in_by_the_same_call(tmp_path: Path) -> None:
    images, masks = raw_folders(tmp_path, NAMES, without=NAMES[:5])
    order = Order(tmp_path / "out", images, masks, mode="copy")
    prepare_folder(order)
    raw_folders(tmp_path, NAMES)
    prepared = prepare_folder(order)
    assert prepared.record["pairs"] == 18
    found = [name for split in names(tmp_path / "out").values() for name in split]
    assert sorted(found) == NAMES, "no copy of before is left in another split"


def test_what_was_edited_by_hand_is_not_overwritten(tmp_path: Path) -> None:
    images, masks = raw_folders(tmp_path, NAMES)
    prepare_folder(Order(tmp_path / "out", images, masks))
    text = (tmp_path / "out" / "data.yaml").read_text().replace("foreground", "crack")
    (tmp_path / "out" / "data.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"data\.yaml: was edited"):
        prepare_folder(Order(tmp_path / "out", images, masks))
    assert (tmp_path / "out" / "data.yaml").read_text() == text


def test_the_check_that_follows_reads_nothing_again(tmp_path: Path) -> None:
    images, masks = raw_folders(tmp_path, NAMES)
    prepared = prepare_folder(Order(tmp_path / "out", images, masks))
    assert prepared.report.reused == prepared.report.files == 36
    datasets, listing = list_splits("folder", tmp_path / "out")
    assert check(datasets, listing=listing).reused == 36


def test_copies_of_a_picture_stay_in_one_split(tmp_path: Path) -> None:
    images, masks = raw_folders(tmp_path, NAMES)
    pictures = [(images / f"{name}.jpg").read_bytes() for name in NAMES]
    for number, name in enumerate(NAMES):
        (images / f"{name}.jpg").write_bytes(pictures[number % 6])
    prepared = prepare_folder(Order(tmp_path / "out", images, masks, folds=3))
    assert any("12 pictures are copies" in line for line in prepared.record["split_by"])
    assert "leak" not in {finding.kind for finding in prepared.report.findings}
    splits = names(tmp_path / "out", ("fold1", "fold2", "fold3"))
    for members in splits.values():
        kinds = {NAMES.index(name) % 6 for name in members}
        assert len(members) == 3 * len(kinds), "all three of each"
    for name in NAMES:  # all are one picture: nothing can be split, and the check says so
        (images / f"{name}.jpg").write_bytes(pictures[0])
    prepared = prepare_folder(Order(tmp_path / "one", images, masks))
    assert "leak" in {finding.kind for finding in prepared.report.findings}


def test_pictures_of_unread_kinds_are_told(tmp_path: Path) -> None:
    images, masks = raw_folders(tmp_path, NAMES)
    for name in ("a.heic", "sub/b.DNG", "notes.txt", ".hidden.heic"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).touch()
    heic, raw = sorted(prepare_folder(Order(tmp_path / "out", images, masks)).record["unread"])
    assert "1 file" in heic and "a.heic" in heic + raw and "b.DNG" in heic + raw


def test_twelve_bits_of_sixteen_are_found(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / "i").mkdir(exist_ok=True)
        deep = np.random.default_rng(number).integers(0, 4096, (6, 9), np.uint16)
        Image.fromarray(deep).save(tmp_path / "i" / f"{number}.png")
        put_mask(tmp_path / "m" / f"{number}.png", [0, 255])
    prepared = prepare_folder(Order(tmp_path / "out", tmp_path / "i", tmp_path / "m"))
    assert any("bits: 12" in line for line in prepared.record["guessed"])
    assert list_dataset("folder", tmp_path / "out", "val").value_range == (0, 4095)
    assert not prepared.report.findings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": 0.0}, "--split"),
        ({"split": 1.0}, "--split"),
        ({"split": 0.6, "test": 0.4}, "--test"),
        ({"folds": 1}, "--folds"),
        ({"folds": 19}, "19 splits"),
        ({"folds": 10**30}, "splits"),
        ({"masks": Path("nowhere")}, "nowhere: no such"),
        ({"masks": None}, "--masks DIR"),
        ({"pairs": Path("none.csv")}, r"none\.csv"),
        ({"mask_name": "x_NAME"}, "no mask called x_NAME"),
    ],
)
def test_what_cannot_be_asked(tmp_path: Path, options: dict[str, object], message: str) -> None:
    images, masks = raw_folders(tmp_path, NAMES)
    with pytest.raises(SegdeformError, match=message) as caught:
        prepare_folder(
            Order(**{"output": tmp_path / "out", "images": images, "masks": masks, **options})  # type: ignore[arg-type]
        )
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_share_too_small_for_any_picture_and_names_too_long_for_a_file(tmp_path: Path) -> None:
    images, masks = raw_folders(tmp_path, NAMES)
    long = ",".join(letter * 200 for letter in "ab")
    order = Order(tmp_path / "out", images, masks, split=1e-320, classes=long)
    assert prepare_folder(order).record["splits"] == {"train": 17, "val": 1}
    assert list_dataset("folder", tmp_path / "out", "val").classes == ("a" * 200, "b" * 200)


def test_sources_where_the_output_is_made_are_refused_and_stay(tmp_path: Path) -> None:
    images, masks = raw_folders(tmp_path / ".out.partial", NAMES)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="lies where"):
        prepare_folder(Order(tmp_path / "out", images, masks))
    assert contents(tmp_path) == before


def test_two_calls_for_one_output_do_not_meet(tmp_path: Path) -> None:
    """A second call is refused while the first works; what a killed one left is no hindrance."""
    images, masks = raw_folders(tmp_path, NAMES)
    (tmp_path / ".out.partial" / "new" / "masks").mkdir(parents=True)
    order = Order(tmp_path / "out", images, masks)
    refused = []

    def second(what: str, done: int, total: int) -> None:
        if not refused:
            with pytest.raises(RunLockedError) as caught:
                prepare_folder(order)
            refused.append(str(caught.value))

    prepare_folder(order, second)
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]
    assert {path.name for path in tmp_path.iterdir()} == {"image", "masks", "out"}
    assert "masks" not in {path.name for path in (tmp_path / "out").iterdir()}
