"""What masks mean: from files and options, from evidence, or refused with the line to give."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segdeform.data import load_dataset, read_pair
from segdeform.data.dataset import IGNORE
from segdeform.errors import DataError, SegdeformError, UsageError
from segdeform.preparing.folder.order import Order
from segdeform.preparing.folder.prepare import Prepared, prepare_folder
from tests.preparing.folder.raw_folders import put_picture

SIZE = (7, 11)  # H, W
COUNT = 6  # pairs

Made = Mapping[str, NDArray[np.uint8]]


def masks_of(tmp_path: Path, write: Callable[[Path, NDArray[np.int64]], None], kinds: int) -> Path:
    """Writes COUNT pairs, whose masks are `write` of maps of 0 .. kinds - 1; returns the folder."""
    for number in range(COUNT):
        put_picture(tmp_path / "i" / f"p{number}.png", number, SIZE)
        (tmp_path / "m").mkdir(exist_ok=True)
        write(tmp_path / "m" / f"p{number}.png", truth(number, kinds))
    return tmp_path


def truth(number: int, kinds: int) -> NDArray[np.int64]:
    labels = np.random.default_rng(number).integers(0, kinds, SIZE)
    labels.ravel()[:kinds] = range(kinds)  # every mask has them all
    return labels


def indices(*values: int, kind: type = np.uint8) -> Callable[[Path, NDArray[np.int64]], None]:
    return lambda path, labels: Image.fromarray(np.array(values, kind)[labels]).save(path)


def prepared(tmp_path: Path, **options: object) -> Prepared:
    return prepare_folder(
        Order(tmp_path / "out", tmp_path / "i", tmp_path / "m", split=0.34, **options)  # type: ignore[arg-type]
    )


def read_back(root: Path) -> dict[str, NDArray[np.uint8]]:
    found = {}
    for split in ("train", "val"):
        dataset = load_dataset("folder", root / "out", split)
        for index, sample in enumerate(dataset.samples):
            found[sample.name] = read_pair(dataset, index)[1]
    return found


def assert_labels(root: Path, table: list[int], kinds: int) -> None:
    """Asserts that value number k of the masks is the class table[k]."""
    found = read_back(root)
    assert len(found) == COUNT
    for number in range(COUNT):
        np.testing.assert_array_equal(found[f"p{number}"], np.array(table)[truth(number, kinds)])


GUESSED = [
    # values of the masks; options; classes; label of each value; what is told
    ((0, 255), {}, ["background", "foreground"], [0, 1], "only 0 and 255: 0 is background, 255 is"),
    ((0, 128), {}, ["background", "foreground"], [0, 1], "only 0 and 128"),
    ((0, 255), {"classes": "road,crack"}, ["road", "crack"], [0, 1], "255 is crack"),
    ((0, 7), {"classes": "road,crack"}, ["road", "crack"], [0, 1], "7 is crack"),
    ((0, 1, 2), {}, ["class_0", "class_1", "class_2"], [0, 1, 2], "classes 0 to 2"),
    ((0, 2, 255), {}, ["class_0", "class_1", "class_2"], [0, 2, 255], "no mask has 1.*255 is not"),
    ((0, 1, 255), {"classes": "a,b"}, ["a", "b"], [0, 1, 255], "numbered as named"),
    ((1, 2, 3), {"classes": "a,b,c"}, ["a", "b", "c"], [0, 1, 2], "from 1 to 3 and never 0"),
    ((0, 128, 255), {"values": "0:a,128:b,255:c"}, ["a", "b", "c"], [0, 1, 2], "128 is b"),
    ((0, 128, 255), {"values": "0:a,128:ignore,255:c"}, ["a", "c"], [0, 255, 1], "128 is not"),
    ((7, 11, 255), {"values": "11:x,7:y"}, ["x", "y"], [1, 0, 255], "7 is y"),
    ((3, 5, 9), {"values": "3:a,5:b,9:a"}, ["a", "b"], [0, 1, 0], "9 is a"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "options", "classes", "labels", "told"), GUESSED)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_values_that_can_mean_one_thing(
    tmp_path: Path,
    values: tuple[int, ...],
    options: dict[str, str],
    classes: list[str],
    labels: list[int],
    told: str,
    kind: type,
) -> None:
    root = masks_of(tmp_path, indices(*values, kind=kind), len(values))
    record = prepared(root, **options).record
    assert record["classes"] == classes
    assert re.search(told, " ".join(record["guessed"]))
    assert_labels(root, labels, len(values))
    assert not (root / "out" / "masks").exists(), "index masks need not be written anew"


def test_the_shares_are_those_of_the_masks(tmp_path: Path) -> None:
    root = masks_of(tmp_path, indices(0, 255), 2)
    share = np.mean([truth(number, 2) for number in range(COUNT)])
    assert prepared(root).record["shares"] == [round(1 - share, 6), round(share, 6)]


REFUSED = [
    ((0, 128, 255), {}, r"--values 0:background,128:NAME2,255:NAME3"),
    ((7, 11), {}, r"7 \(.*% in 6\), 11 .*--values 7:NAME1,11:NAME2"),
    ((0, 128, 255), {"classes": "a,b,c"}, r"--values 0:a,128:b,255:c"),
    ((0, 255), {"classes": "a,b,c"}, r"names 3 classes .*--values 0:a,255:b"),
    ((0, 255), {"classes": "crack"}, r"--values 0:background,255:crack"),
    ((0, 1), {"classes": "crack"}, r"--values 0:background,1:crack"),
    ((0, 1, 2, 3), {"classes": "a,b,c"}, r"--values 0:a,1:b,2:c,3:NAME4"),
    ((0, 1, 2), {"values": "0:a,1:b"}, r"does not name: 2 \("),
    ((0,), {}, "hold only 0: are these the right masks"),
    ((0, 1), {"values": "000000:a,ffffff:b"}, "numbers, not colours"),
    ((0, 65535, 3000), {}, "65535"),
]


@pytest.mark.parametrize(("values", "options", "message"), REFUSED)
def test_values_that_can_mean_several_are_refused_with_the_line_to_give(
    tmp_path: Path, values: tuple[int, ...], options: dict[str, str], message: str
) -> None:
    kind = np.uint8 if max(values) < 256 else np.uint16
    root = masks_of(tmp_path, indices(*values, kind=kind), len(values))
    with pytest.raises(SegdeformError, match=message) as caught:
        prepared(root, **options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in root.iterdir()] == ["i", "m"] or not (root / "out").exists()


@pytest.mark.parametrize(
    "text", ["", "0", "0:", "x:a", "0:a,0:b", "00:a,ff0000:b", "70000:a,1:b", "ff0000:ignore"]
)
def test_values_that_say_nothing(tmp_path: Path, text: str) -> None:
    root = masks_of(tmp_path, indices(0, 128, 255), 3)
    with pytest.raises((UsageError, DataError), match="--values"):
        prepared(root, values=text)


COLOURS = np.array([(0, 0, 0), (255, 0, 0), (0, 0, 255), (128, 64, 128)], np.uint8)


def coloured(mode: str = "RGB") -> Callable[[Path, NDArray[np.int64]], None]:
    return lambda path, labels: Image.fromarray(COLOURS[labels]).convert(mode).save(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_few_colours_become_classes_and_are_told(tmp_path: Path, mode: str) -> None:
    root = masks_of(tmp_path, coloured(mode), 4)
    record = prepared(root).record
    names = ["colour_000000", "colour_0000ff", "colour_804080", "colour_ff0000"]
    assert record["classes"] == names
    assert "ff0000 (" in record["guessed"][0] and "in 6 masks" in record["guessed"][0]
    assert "--values 000000:NAME1,0000ff:NAME2,804080:NAME3,ff0000:NAME4" in record["guessed"][0]
    assert_labels(root, [0, 3, 1, 2], 4)
    masks = sorted((root / "out" / "masks").iterdir())
    assert len(masks) == COUNT and Image.open(masks[0]).mode == "P"


def test_colours_have_the_names_that_are_given(tmp_path: Path) -> None:
    root = masks_of(tmp_path, coloured(), 4)
    line = "0000ff:sky,000000:ignore,FF0000:car,804080:road"
    record = prepared(root, values=line).record
    assert record["classes"] == ["sky", "car", "road"]
    assert_labels(root, [IGNORE, 1, 0, 2], 4)
    dataset = load_dataset("folder", root / "out", "train")
    assert dataset.palette == ((0, 0, 255), (255, 0, 0), (128, 64, 128))


TABLES = {
    "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncar:255,0,0::\n"
    "sky:0,0,255::\nroad:128,64,128:a,b:\n",
    "label_colors.txt": "0 0 0\tbackground\n255 0 0\t\tcar\n0 0 255\tsky\n128 64 128\troad\n",
    "classes.json": '{"names": ["background", "car", "sky", "road"], "palette": '
    "[[0,0,0],[255,0,0],[0,0,255],[128,64,128]]}",
    "data.yaml": "names: [background, car, sky, road]\n"
    "palette: [[0,0,0],[255,0,0],[0,0,255],[128,64,128]]\n",
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("place", ["m", ".", "elsewhere"])
def test_tables_of_colours_beside_the_masks_or_given(tmp_path: Path, name: str, place: str) -> None:
    root = masks_of(tmp_path, coloured(), 4)
    (root / place).mkdir(exist_ok=True)
    (root / place / name).write_text(TABLES[name])
    options = {"classes": str(root / place / name)} if place == "elsewhere" else {}
    record = prepared(root, **options).record
    assert record["classes"] == ["background", "car", "sky", "road"]
    assert name in record["guessed"][0] and "ff0000 car (" in record["guessed"][0]
    assert_labels(root, [0, 1, 2, 3], 4)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_names_palette_masks_by_their_colours(tmp_path: Path, name: str) -> None:
    """Whatever their numbers are."""

    def write(path: Path, labels: NDArray[np.int64]) -> None:
        numbers = np.array([9, 4, 2, 7], np.uint8)
        image = Image.fromarray(numbers[labels], "P")
        palette = np.full((256, 3), 9, np.uint8)
        palette[numbers] = COLOURS
        image.putpalette(palette.tobytes())
        image.save(path)

    root = masks_of(tmp_path, write, 4)
    (root / "m" / name).write_text(TABLES[name])
    assert prepared(root).record["classes"] == ["background", "car", "sky", "road"]
    assert_labels(root, [0, 1, 2, 3], 4)


def test_a_table_of_colours_counts_the_rows_of_index_masks(tmp_path: Path) -> None:
    root = masks_of(tmp_path, indices(0, 1, 2, 3), 4)
    (root / "m" / "label_colors.txt").write_text(
        "64 128 64\tAnimal\n0 0 0\tVoid\n192 0 128\tArchway\n0 128 192\tBicyclist\n"
    )
    assert prepared(root).record["classes"] == ["Animal", "Archway", "Bicyclist"]
    assert_labels(root, [0, IGNORE, 1, 2], 4)


def test_a_list_of_values_as_annotation_services_write_it(tmp_path: Path) -> None:
    root = masks_of(tmp_path, indices(0, 1, 2), 3)
    (root / "m" / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, crack\n2, hole")
    assert prepared(root).record["classes"] == ["background", "crack", "hole"]
    (root / "m" / "_classes.csv").write_text("Pixel Value,Class\n0,unlabeled\n1,a\n2,b\n")
    assert prepared(root).record["classes"] == ["a", "b"]
    assert_labels(root, [IGNORE, 0, 1], 3)
    (root / "m" / "_classes.csv").write_text(f'0,"{200_000 * "x"}"\n1,a\n')
    assert any("cannot be read" in line for line in prepared(root).record["guessed"])


def test_names_as_labelme_lists_them_and_a_list_that_differs(tmp_path: Path) -> None:
    root = masks_of(tmp_path, indices(0, 1), 2)
    (root / "labels.txt").write_text("__ignore__\n_background_\ncrack\n")
    (root / "m" / "classes.txt").write_text("_background_\ncrack\n")
    assert prepared(root).record["classes"] == ["_background_", "crack"]
    (root / "m" / "classes.txt").write_text("a\nb\n")
    record = prepared(root).record
    assert record["classes"] == ["a", "b"]
    assert any("names other classes" in line and "labels.txt" in line
               for line in record["guessed"])  # fmt: skip


def test_names_alone_and_tables_that_are_broken(tmp_path: Path) -> None:
    root = masks_of(tmp_path, indices(0, 1), 2)
    (root / "classes.txt").write_text("road\ncrack\n")
    (root / "classes.json").write_text("{")
    record = prepared(root).record
    assert record["classes"] == ["road", "crack"]
    assert "classes.json" in record["guessed"][0] and "not used" in record["guessed"][0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "a,b,c,d"}, r"which class has which of 4 colours.*--values 000000:NAME"),
        ({"values": "0:a,1:b"}, r"coloured: give --values RRGGBB:NAME"),
        ({"values": "000000:a,ff0000:b"}, r"2 colours that --values does not name: .*804080 \("),
        ({"classes": "none.txt"}, "none.txt: no such file"),
    ],
)
def test_colours_that_are_not_named(tmp_path: Path, options: dict[str, str], message: str) -> None:
    root = masks_of(tmp_path, coloured(), 4)
    with pytest.raises(SegdeformError, match=message):
        prepared(root, **options)


def test_smoothed_colours_are_refused_with_the_commonest(tmp_path: Path) -> None:
    def write(path: Path, labels: NDArray[np.int64]) -> None:
        small = Image.fromarray(COLOURS[np.arange(7 * 11).reshape(SIZE) // 20])
        small.resize((110, 70), Image.Resampling.BICUBIC).save(path)

    root = masks_of(tmp_path, write, 4)
    for number in range(COUNT):
        put_picture(root / "i" / f"p{number}.png", number, (70, 110))
    with pytest.raises(DataError, match=r"colours, too many to be classes.*smooth"):
        prepared(root)


def smooth(path: Path, labels: NDArray[np.int64]) -> None:
    grey = Image.fromarray(np.kron(np.array([0, 255], np.uint8)[labels // 2], np.ones((20, 20))))
    grey.convert("L").save(path, quality=60)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_blurred_black_and_white_is_cut_where_it_is_asked_for(tmp_path: Path, suffix: str) -> None:
    large = (SIZE[0] * 20, SIZE[1] * 20)

    def write(path: Path, labels: NDArray[np.int64]) -> None:
        smooth(path.with_suffix(".jpg"), labels)
        if suffix == "png":
            Image.open(path.with_suffix(".jpg")).save(path)
            path.with_suffix(".jpg").unlink()

    root = masks_of(tmp_path, write, 4)
    for number in range(COUNT):
        put_picture(root / "i" / f"p{number}.png", number, large)
    with pytest.raises(DataError, match="--threshold 128"):
        prepared(root)
    record = prepared(root, threshold=128, classes="road,crack").record
    assert (
        record["classes"] == ["road", "crack"] and "nearly black or white" in record["guessed"][0]
    )
    for name, labels in read_back(root).items():
        right = np.kron(truth(int(name[1:]), 4) // 2, np.ones((20, 20)))
        np.testing.assert_array_equal(labels, right)


def test_grey_jpegs_are_no_masks_whatever_is_asked(tmp_path: Path) -> None:
    def write(path: Path, labels: NDArray[np.int64]) -> None:
        Image.fromarray((labels * 80).astype(np.uint8)).save(path.with_suffix(".jpg"))

    root = masks_of(tmp_path, write, 4)
    for options in ({}, {"threshold": 128}):
        with pytest.raises(DataError, match="no threshold can mend"):
            prepared(root, **options)


@pytest.mark.parametrize("mode", ["1", "LA", "RGB", "I"])
def test_black_and_white_in_other_modes_is_written_as_index_masks(
    tmp_path: Path, mode: str
) -> None:
    def write(path: Path, labels: NDArray[np.int64]) -> None:
        grey = Image.fromarray((labels * 255).astype(np.uint8))
        target = path.with_suffix(".tif") if mode == "I" else path
        (grey.convert("1", dither=Image.Dither.NONE) if mode == "1" else grey.convert(mode)).save(
            target
        )

    root = masks_of(tmp_path, write, 2)
    record = prepared(root).record
    assert len(record["classes"]) == 2
    assert any("written as index masks" in line for line in record["guessed"])
    assert_labels(root, [0, 1], 2)


def test_grey_and_palette_masks_among_colour_masks(tmp_path: Path) -> None:
    """A black mask is easily saved as grey, one of few colours as palette."""
    root = masks_of(tmp_path, coloured(), 4)
    Image.new("L", (SIZE[1], SIZE[0])).save(root / "m" / "p5.png")
    colours = Image.open(root / "m" / "p4.png")
    colours.convert("P", palette=Image.Palette.ADAPTIVE, colors=4).save(root / "m" / "p4.png")
    assert Image.open(root / "m" / "p4.png").mode == "P"
    prepared(root)
    found = read_back(root)
    assert not found["p5"].any()
    np.testing.assert_array_equal(found["p4"], np.array([0, 3, 1, 2])[truth(4, 4)])
