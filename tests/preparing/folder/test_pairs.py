"""Pictures and masks paired as people name them."""

from __future__ import annotations

from pathlib import Path

import pytest

from segdeform.errors import DataError, UsageError
from segdeform.preparing.folder.pairs import Pairing, pair_files, read_pairs_file


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def pairs(found: Pairing, images: Path, masks: Path) -> dict[str, str]:
    return {
        sample.image.relative_to(images).as_posix(): sample.mask.relative_to(masks).as_posix()
        for sample in found.samples
        if sample.mask
    }


RULES = [
    # pictures; masks, in the order of the pictures; how it is told
    ("a.jpg b.jpg c/d.jpg", "a.png b.png c/d.png", ""),
    ("a.jpg b1.jpg b12.jpg", "a_mask.png b1_mask.png b12_mask.png", "NAME_mask"),
    ("x/1.jpg y/2.jpg", "x/mask_1.png y/mask_2.png", "mask_NAME"),
    ("1.jpg 2.jpg", "1.jpg.png 2.jpg.png", "NAME.jpg"),
    (
        "1_sat.jpg 23_sat.jpg 4_sat.jpg",
        "1_mask.png 23_mask.png 4_mask.png",
        "NAME_mask for NAME_sat",
    ),
    (
        "image1.jpg image12.jpg image3.jpg",
        "label1.png label12.png label3.png",
        "labelNAME for imageNAME",
    ),
    (
        "IMG_0100.jpg IMG_0101.jpg IMG_2.jpg",
        "MASK_0100.png MASK_0101.png MASK_2.png",
        "MASK_NAME for IMG_NAME",
    ),
    ("red_x.jpg blue_x.jpg far_x.jpg", "red_gt.png blue_gt.png far_gt.png", "NAME_gt for NAME_x"),
    ("u/a.jpg v/b.jpg", "a.png b.png", "by name, in whatever folder"),
    ("u/a.jpg v/b.jpg", "w/a_L.png b_L.png", "NAME_L, in whatever folder"),
    ("A.JPG b.jpg", "a.png B.PNG", "by name, capital letters or not"),
    ("stra\u00dfe.jpg gr\u00fcn.jpg", "stra\u00dfe_m.png gru\u0308n_m.png", "NAME_m"),
    ("a.png b.png", "a.jpg b.jpg", ""),  # what JPEG did to them is another question
]


@pytest.mark.parametrize(("pictures", "masks", "rule"), RULES)
def test_each_way_to_name_masks(tmp_path: Path, pictures: str, masks: str, rule: str) -> None:
    images, labels = tmp_path / "i", tmp_path / "m"
    touch(images, *pictures.split())
    touch(labels, *masks.split())
    found = pair_files(images, labels)
    assert pairs(found, images, labels) == dict(zip(pictures.split(), masks.split(), strict=True))
    assert found.rule == rule
    assert not (found.without_mask or found.without_picture or found.double)


@pytest.mark.parametrize(("pictures", "masks", "rule"), RULES)
def test_what_is_left_over_is_told(tmp_path: Path, pictures: str, masks: str, rule: str) -> None:
    images = touch(tmp_path / "i", *pictures.split(), "zz_alone.jpg")
    drawn = masks.split()[1:]
    labels = touch(tmp_path / "m", *drawn, "qq/lonely.png", ".hidden.png", "notes.txt")
    found = pair_files(images, labels)
    assert list(pairs(found, images, labels).values()) == drawn
    bare = {path.name for path in found.without_mask}
    assert bare == {Path(pictures.split()[0]).name, "zz_alone.jpg"}
    assert [path.name for path in found.without_picture] == ["lonely.png"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ("a.jpg a_mask.png b.jpg b_mask.png c.jpg", {"a.jpg": "a_mask.png", "b.jpg": "b_mask.png"}),
        ("a.png a_mask.png b.png b_mask.png", {"a.png": "a_mask.png", "b.png": "b_mask.png"}),
        ("1.jpg 1.png 2.jpg 2.png", {"1.jpg": "1.png", "2.jpg": "2.png"}),
    ],
)
def test_pictures_and_masks_in_one_folder(
    tmp_path: Path, files: str, expected: dict[str, str]
) -> None:
    touch(tmp_path, *files.split())
    found = pair_files(tmp_path, tmp_path)
    assert pairs(found, tmp_path, tmp_path) == expected
    assert len(found.without_mask) == ("c.jpg" in files) and not found.without_picture


@pytest.mark.parametrize("inner", ["masks", "images"])
def test_a_folder_inside_the_other_is_no_part_of_it(tmp_path: Path, inner: str) -> None:
    files = {"masks": "a.png masks/a.png b.png", "images": "a.png images/a.png images/b.png"}
    touch(tmp_path, *files[inner].split())
    images = tmp_path if inner == "masks" else tmp_path / "images"
    masks = tmp_path / "masks" if inner == "masks" else tmp_path
    found = pair_files(images, masks)
    assert pairs(found, images, masks) == {"a.png": "a.png"}
    assert [path.name for path in found.without_mask] == ["b.png"]


def test_two_masks_for_each_picture_are_a_question(tmp_path: Path) -> None:
    images = touch(tmp_path / "i", "a.jpg", "b.jpg")
    masks = touch(tmp_path / "m", "a_mask.png", "b_mask.png", "a_show.png", "b_show.png")
    with pytest.raises(DataError, match=r"give --mask-name NAME_\w+ or --mask-name NAME_\w+"):
        pair_files(images, masks)
    for name in ("mask", "show"):
        found = pair_files(images, masks, f"NAME_{name}")
        assert list(pairs(found, images, masks).values()) == [f"a_{name}.png", f"b_{name}.png"]
        assert len(found.without_picture) == 2


def test_files_of_one_name_are_no_pair(tmp_path: Path) -> None:
    images = touch(tmp_path / "i", "a.jpg", "b.jpg", "b.png", "c.jpg")
    masks = touch(tmp_path / "m", "a.png", "b.png", "c.png", "c.tif")
    found = pair_files(images, masks)
    assert pairs(found, images, masks) == {"a.jpg": "a.png"}
    assert {path.name for path in found.double} == {"b.jpg", "b.png", "c.jpg", "c.png", "c.tif"}


def test_numbers_alone_are_no_suffix(tmp_path: Path) -> None:
    images = touch(tmp_path / "i", "1.jpg", "2.jpg", "15.jpg")
    masks = touch(tmp_path / "m", "1_1.png", "2_1.png", "15_2.png")
    with pytest.raises(DataError, match=r"--mask-name NAME_mask.*--pairs FILE") as caught:
        pair_files(images, masks)
    assert "15_2" in str(caught.value) and str(images) in str(caught.value)


@pytest.mark.parametrize("pattern", ["mask", "NAME", ""])
def test_a_pattern_says_where_the_name_stands(tmp_path: Path, pattern: str) -> None:
    images, masks = touch(tmp_path / "i", "a.jpg"), touch(tmp_path / "m", "a.png")
    with pytest.raises(UsageError, match="NAME_mask"):
        pair_files(images, masks, pattern)


def test_empty_folders_are_told(tmp_path: Path) -> None:
    images, masks = touch(tmp_path / "i", "a.jpg"), touch(tmp_path / "m", "a.txt")
    with pytest.raises(DataError, match="m: holds no mask"):
        pair_files(images, masks)
    touch(masks, "b.heic", "c.heic")
    with pytest.raises(DataError, match=r"m: holds no picture; .*2 files.*HEIC"):
        pair_files(masks, images)


LISTS = [
    "picture,mask\nb.jpg,x1.png\nsub/a.jpg,x2.png\n",
    "b.jpg;x1.png\nsub/a.jpg;x2.png",
    "\ufeffb.jpg\tx1.png\r\n\r\nsub/a.jpg\tx2.png\r\n",
    '"b.jpg","x1.png"\n"sub/a.jpg","x2.png"\n',
    "{i}/b.jpg,{m}/x1.png\ni/sub/a.jpg,m/x2.png\n",  # absolute; beside the list
]


@pytest.mark.parametrize("content", LISTS)
def test_a_list_of_pairs(tmp_path: Path, content: str) -> None:
    images = touch(tmp_path / "i", "b.jpg", "sub/a.jpg", "c.jpg")
    masks = touch(tmp_path / "m", "x1.png", "x2.png", "x3.png")
    listing = tmp_path / "pairs.csv"
    listing.write_text(content.format(i=images, m=masks))
    found = read_pairs_file(listing, images, masks)
    assert pairs(found, images, masks) == {"b.jpg": "x1.png", "sub/a.jpg": "x2.png"}
    assert [sample.name for sample in found.samples] == ["b", "sub/a"]
    assert [path.name for path in (*found.without_mask, *found.without_picture)] == [
        *("c.jpg", "x3.png")
    ]


def test_a_list_of_pairs_alone(tmp_path: Path) -> None:
    touch(tmp_path, "i/b.jpg", "m/x.png")
    (tmp_path / "pairs.tsv").write_text("i/b.jpg\tm/x.png\n")
    (sample,) = read_pairs_file(tmp_path / "pairs.tsv", None, None).samples
    assert sample.name == "i/b" and sample.mask == tmp_path / "m" / "x.png"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("b.jpg,x1.png\nb.jpg,x2.png\n", "line 2: the picture b.jpg is given twice"),
        ("b.jpg,x1.png\nnone.jpg,x2.png\n", "1 of 2 lines.*line 2: none.jpg"),
        ("b.jpg,none.png\n", "line 1: none.png"),
        ("b.jpg\n", "line 1 is not a picture and its mask"),
        ("b.jpg,x1.png,3\n", "line 1"),
        ("", "lists no pair"),
        ("\xff\xfe", "cannot be read"),
        (f'"{200_000 * "x"}",y', "cannot be read"),
    ],
)
def test_lists_that_are_wrong_name_the_line(tmp_path: Path, content: str, message: str) -> None:
    images, masks = touch(tmp_path / "i", "b.jpg"), touch(tmp_path / "m", "x1.png", "x2.png")
    (tmp_path / "pairs.csv").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        read_pairs_file(tmp_path / "pairs.csv", images, masks)
