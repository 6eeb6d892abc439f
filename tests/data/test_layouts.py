"""Data sets laid out in every odd way: the right pairs, or the right code with the file named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segdeform.checking import check_sound
from segdeform.data import load_dataset
from segdeform.errors import SegdeformError
from tests.data.cityscapes_frames import write_frames

Change = Callable[[Path], object]


def put(path: Path, colour: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((4, 6, 3) if colour else (4, 6), np.uint8)).save(path)


def voc(root: Path) -> None:
    for split, names in (("train", "ab"), ("val", "c")):
        listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        listing.write_text("".join(f"{name}\n" for name in names))
        for name in names:
            put(root / "JPEGImages" / f"{name}.jpg", True)
            put(root / "SegmentationClass" / f"{name}.png", False)


def camvid(root: Path) -> None:
    for split, names in (("train", "ab"), ("val", "c")):
        (root / f"{split}.txt").parent.mkdir(parents=True, exist_ok=True)
        (root / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
        for name in names:
            put(root / split / "images" / f"{name}.jpg", True)
            put(root / split / "masks" / f"{name}.png", False)


def folder(root: Path) -> None:
    camvid(root)
    (root / "train.txt").unlink()
    (root / "val.txt").unlink()
    (root / "classes.txt").write_text("x\ny\n")


def cityscapes(root: Path) -> None:
    write_frames(root, frames=1, size=(16, 32))


MAKERS = {"voc": voc, "camvid": camvid, "folder": folder, "cityscapes": cityscapes}
CITY_PAIRS = ["aachen/aachen_000000_000019", "bad-honnef/bad-honnef_000000_000019"]
AACHEN = "train/aachen/aachen_000000_000019"
PICTURE, MASK = f"leftImg8bit/{AACHEN}_leftImg8bit.png", f"gtFine/{AACHEN}_gtFine_labelIds.png"


def write(name: str, content: bytes) -> Change:
    return lambda root: (root / name).write_bytes(content)


def drop(name: str) -> Change:
    def change(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def rename(old: str, new: str) -> Change:
    return lambda root: (root / old).rename(root / new)


def copy(old: str, new: str) -> Change:
    def change(root: Path) -> None:
        (root / new).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / old, root / new)

    return change


def replace(name: str, make: Change) -> Change:
    """Puts something else than a file in its place."""

    def change(root: Path) -> None:
        drop(name)(root)
        make(root / name)

    return change


def link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def drop_masks(root: Path) -> None:
    for path in (root / "gtFine" / "train" / "aachen").glob("*"):
        path.unlink()


LISTS = {"voc": "ImageSets/Segmentation/train.txt", "camvid": "train.txt"}
PICTURES = {"voc": "JPEGImages/{}.jpg", "camvid": "train/images/{}.jpg"}
MASKS = {"voc": "SegmentationClass/{}.png", "camvid": "train/masks/{}.png"}

GOOD: list[tuple[str, str, Change, list[str]]] = []
BAD: list[tuple[str, str, Change, int, str]] = []
for kind, listing in LISTS.items():
    picture, mask = PICTURES[kind], MASKS[kind]
    GOOD += [
        (kind, "as it should be", lambda root: None, ["a", "b"]),
        (kind, "Windows lines", write(listing, b"b\r\na\r\n"), ["b", "a"]),
        (kind, "byte order mark", write(listing, b"\xef\xbb\xbfa\nb\n"), ["a", "b"]),
        (kind, "both, without end", write(listing, b"\xef\xbb\xbfa\r\nb"), ["a", "b"]),
        (kind, "spaces and tabs around", write(listing, b"  a \n\tb\t\n"), ["a", "b"]),
        (kind, "blank lines", write(listing, b"\n\na\n\n  \nb\n\n"), ["a", "b"]),
        (kind, "mask of no picture", copy(mask.format("a"), mask.format("z")), ["a", "b"]),
        (kind, "picture in no list", copy(picture.format("a"), picture.format("z")), ["a", "b"]),
    ]
    BAD += [
        (kind, "empty list", write(listing, b""), 4, r"train\.txt: lists no picture"),
        (kind, "list of blanks", write(listing, b" \n\r\n"), 4, r"train\.txt: lists no picture"),
        (kind, "listed twice", write(listing, b"a\nb\na\n"), 4, "lists 'a' twice"),
        (kind, "twice but for spaces", write(listing, b"a\na \n"), 4, "lists 'a' twice"),
        (kind, "absolute", write(listing, b"/etc/passwd\n"), 6, r"train\.txt.*leads out"),
        (kind, "parents", write(listing, b"../../a\n"), 6, r"train\.txt.*leads out"),
        (kind, "parents inside", write(listing, b"x/../a\n"), 6, r"train\.txt.*leads out"),
        (kind, "NUL", write(listing, b"a\0b\n"), 4, r"train\.txt.*control"),
        (kind, "another encoding", write(listing, b"\xe4\n"), 4, r"train\.txt: .*cannot be read"),
        (kind, "UTF-16", write(listing, "a\n".encode("utf-16")), 4, r"train\.txt: .*cannot be"),
        (kind, "with suffix", write(listing, b"a.jpg\n"), 4, r"a\.jpg"),
        (kind, "another case", write(listing, b"A\n"), 4, "A"),
        (kind, "folder as list", replace(listing, Path.mkdir), 4, "train"),
        (kind, "picture missing", drop(picture.format("b")), 4, r"b\.\S+: .*missing"),
        (kind, "mask missing", drop(mask.format("b")), 4, r"b\.png"),
        (kind, "folder as picture", replace(picture.format("b"), Path.mkdir), 4, r"b\.jpg"),
        (kind, "FIFO as mask", replace(mask.format("b"), os.mkfifo), 4, r"b\.png: not a regular"),
        (kind, "link loop", replace(picture.format("b"), link_to_itself), 4, r"b\.\S+"),
        (kind, "no pictures", drop(str(Path(picture).parent)), 4, "expected ROOT"),
    ]
BAD += [
    ("voc", "no list", drop(LISTS["voc"]), 4, "train"),
    ("voc", "suffix of another case", rename("JPEGImages/a.jpg", "JPEGImages/a.JPG"), 4, "a.jpg"),
]
GOOD += [
    ("camvid", "no list", drop("train.txt"), ["a", "b"]),
    (
        "camvid",
        "suffix of another case",
        rename("train/images/a.jpg", "train/images/a.JPG"),
        ["a", "b"],
    ),
    ("folder", "as it should be", lambda root: None, ["a", "b"]),
    (
        "folder",
        "suffix of another case",
        rename("train/masks/a.png", "train/masks/a.PNG"),
        ["a", "b"],
    ),
    (
        "folder",
        "space in a name",
        lambda root: [
            rename(f"train/{part}/a.{end}", f"train/{part}/a b.{end}")(root)
            for part, end in (("images", "jpg"), ("masks", "png"))
        ],
        ["a b", "b"],
    ),
    ("folder", "hidden files", write("train/images/.a.jpg", b""), ["a", "b"]),
    ("folder", "other files", write("train/images/Thumbs.db", b""), ["a", "b"]),
    ("folder", "mask of no picture", copy("train/masks/a.png", "train/masks/z.png"), ["a", "b"]),
    (
        "folder",
        "Windows lines in classes",
        write("classes.txt", b"\xef\xbb\xbfx\r\ny\r\n"),
        ["a", "b"],
    ),
    ("cityscapes", "as it should be", lambda root: None, CITY_PAIRS),
    ("cityscapes", "other files", write("leftImg8bit/train/aachen/notes.txt", b""), CITY_PAIRS),
    ("cityscapes", "hidden files", write("leftImg8bit/train/aachen/._x.png", b""), CITY_PAIRS),
    ("cityscapes", "mask of no picture", drop(PICTURE), CITY_PAIRS[1:]),
]
BAD += [
    ("folder", "mask missing", drop("train/masks/b.png"), 4, r"masks/b\.png"),
    ("folder", "no masks", drop("train/masks"), 4, "no split 'train'"),
    ("folder", "no picture", replace("train/images", Path.mkdir), 4, "holds no picture"),
    ("folder", "a file as folder", replace("train/images", Path.touch), 4, "no split 'train'"),
    ("folder", "two of one name", copy("train/images/a.jpg", "train/images/a.png"), 4, "same name"),
    ("folder", "folder as picture", replace("train/images/b.jpg", Path.mkdir), 4, r"b\.jpg"),
    ("folder", "FIFO as picture", replace("train/images/b.jpg", os.mkfifo), 4, r"b\.jpg"),
    ("folder", "link loop", replace("train/masks/b.png", link_to_itself), 4, r"b\.png"),
    (
        "folder",
        "link to nothing",
        replace("train/masks/b.png", lambda path: path.symlink_to("none")),
        4,
        r"b\.png",
    ),
    (
        "folder",
        "JPEG as mask",
        lambda root: [
            drop("train/masks/b.png")(root),
            copy("train/images/b.jpg", "train/masks/b.png")(root),
        ],
        4,
        r"b\.png: a JPEG",
    ),
    ("folder", "empty class list", write("classes.txt", b"\n"), 4, r"classes\.txt"),
    ("folder", "class listed twice", write("classes.txt", b"x\nx\n"), 4, "class name"),
    ("cityscapes", "split missing", drop("leftImg8bit/train"), 4, "no Cityscapes split 'train'"),
    ("cityscapes", "no pictures", drop("leftImg8bit"), 4, "expected ROOT"),
    ("cityscapes", "no masks at all", drop("gtFine"), 4, r"labelIds\.png: the mask of"),
    ("cityscapes", "mask missing", drop_masks, 4, r"aachen_000000_000019_gtFine_labelIds\.png"),
    ("cityscapes", "empty split", replace("leftImg8bit/train", Path.mkdir), 4, "holds no picture"),
    (
        "cityscapes",
        "suffix of another case",
        rename(PICTURE, PICTURE[:-3] + "PNG"),
        4,
        r"_leftImg8bit\.PNG",
    ),
    (
        "cityscapes",
        "picture of another kind",
        rename(PICTURE, PICTURE[:-3] + "jpg"),
        4,
        r"_leftImg8bit\.jpg",
    ),
    (
        "cityscapes",
        "picture beside the cities",
        copy(PICTURE, "leftImg8bit/train/x_leftImg8bit.png"),
        4,
        "x_leftImg8bit",
    ),
    (
        "cityscapes",
        "folder as picture",
        replace(PICTURE, Path.mkdir),
        4,
        r"_leftImg8bit\.png: not a",
    ),
    ("cityscapes", "folder as mask", replace(MASK, Path.mkdir), 4, r"labelIds\.png: not a regular"),
    ("cityscapes", "FIFO as mask", replace(MASK, os.mkfifo), 4, r"labelIds\.png: not a regular"),
    (
        "cityscapes",
        "train ids under the name of label ids",
        copy(MASK.replace("Ids", "TrainIds"), MASK),
        4,
        "train ids",
    ),
    ("cityscapes", "a file as root of masks", replace("gtFine", Path.touch), 4, r"labelIds\.png"),
]


def use(name: str, root: Path) -> list[str]:
    """Lists both splits and reads all of them, as training does; returns the pairs of train."""
    datasets = [load_dataset(name, root, split) for split in ("train", "val")]
    for dataset in datasets:
        check_sound([dataset])
    return [sample.name for sample in datasets[0].samples]


@pytest.mark.parametrize(
    ("name", "change", "names"),
    [pytest.param(name, *rest, id=f"{name}: {case}") for name, case, *rest in GOOD],
)
def test_layouts_that_are_fine(name: str, change: Change, names: list[str], tmp_path: Path) -> None:
    MAKERS[name](tmp_path / "root")
    change(tmp_path / "root")
    assert use(name, tmp_path / "root") == names


@pytest.mark.parametrize(
    ("name", "change", "code", "named"),
    [pytest.param(name, *rest, id=f"{name}: {case}") for name, case, *rest in BAD],
)
def test_layouts_that_are_refused(
    name: str, change: Change, code: int, named: str, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    MAKERS[name](root)
    change(root)
    with pytest.raises(SegdeformError, match=named) as caught:
        use(name, root)
    assert caught.value.exit_code == code, caught.value
    assert str(root) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MAKERS)
def test_a_file_as_root_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "root").write_text("x")
    with pytest.raises(SegdeformError, match="root") as caught:
        use(name, tmp_path / "root")
    assert caught.value.exit_code == 4
