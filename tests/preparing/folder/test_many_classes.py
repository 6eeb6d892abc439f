"""Raw folders of more than 255 classes: index masks, colours and annotations become 16 bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from segdeform.checking import check, list_splits
from segdeform.data import load_dataset, read_pair
from segdeform.data.dataset import colour_map
from segdeform.errors import DataError
from segdeform.preparing.folder.order import Order
from segdeform.preparing.folder.prepare import prepare_folder
from tests.preparing.folder.raw_folders import put_picture

COUNT = 300
SIZE = (60, 71)


def labels_of_all(seed: int) -> NDArray[np.uint16]:
    """Returns labels [H, W] of all classes and 65535, of which 95% lie near 0 or from 215 on, as
    the greys of smoothed black and white masks do."""
    labels = np.random.default_rng(seed).integers(0, 30, SIZE).astype(np.uint16)
    labels.flat[: COUNT + 5] = [*range(COUNT), *[65535] * 5]
    return np.random.default_rng(seed).permuted(labels.ravel()).reshape(SIZE)


def raw(root: Path, masks: list[NDArray[np.integer]]) -> tuple[Path, Path]:
    for index, mask in enumerate(masks):
        put_picture(root / "image" / f"{index}.png", index, SIZE)
        path = root / "masks" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    return root / "image", root / "masks"


def prepared(order: Order) -> dict[str, NDArray[np.integer]]:
    """Prepares a data set, which has to be sound; returns the labels of its pictures."""
    prepare_folder(order)
    datasets, listing = list_splits("folder", order.output, ("train", "val"))
    assert check(datasets, listing=listing).errors == []
    found = {}
    for dataset in datasets:
        for index, sample in enumerate(dataset.samples):
            found[sample.name] = read_pair(dataset, index)[1]
    return found


def test_masks_of_16_bits_are_referred_to(tmp_path: Path) -> None:
    masks = [labels_of_all(seed) for seed in range(4)]
    order = Order(tmp_path / "ready", *raw(tmp_path, masks), split=0.25)
    (tmp_path / "classes.txt").write_text("".join(f"c{index}\n" for index in range(COUNT)))
    found = prepared(order)
    for index, mask in enumerate(masks):
        assert found[str(index)].dtype == np.uint16
        np.testing.assert_array_equal(found[str(index)], mask)
    assert not (tmp_path / "ready" / "masks").exists(), "there was nothing to write anew"


def test_background_beyond_255_is_what_pictures_without_a_mask_show(tmp_path: Path) -> None:
    masks = [labels_of_all(seed) for seed in range(3)]
    images, folder = raw(tmp_path, masks)
    (folder / "1.png").unlink()
    names = [f"c{index}" for index in range(COUNT - 1)] + ["background"]
    order = Order(tmp_path / "ready", images, folder, classes=",".join(names), keep_empty=True)
    found = prepared(order)
    assert (found["1"] == COUNT - 1).all()
    for index in (0, 2):
        np.testing.assert_array_equal(found[str(index)], masks[index])


def test_masks_that_are_written_anew_keep_their_values(tmp_path: Path) -> None:
    """Also of two classes: 16 bits are not cut to 8, a PGM is not stretched to its maximum."""
    labels = np.random.default_rng(0).integers(0, 2, SIZE)
    raw(tmp_path / "deep", [(300 * labels).astype(np.uint16)] * 3)
    raw(tmp_path / "pgm", [])
    for index in range(3):
        put_picture(tmp_path / "pgm" / "image" / f"{index}.png", index, SIZE)
        path = tmp_path / "pgm" / "masks" / f"{index}.pgm"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = f"P5 {SIZE[1]} {SIZE[0]} 20\n".encode()
        path.write_bytes(head + (7 * labels).astype(np.uint8).tobytes())
    for kind, value in (("deep", 300), ("pgm", 7)):
        put_picture(tmp_path / kind / "image" / "empty.png", 9, SIZE)
        folders = (tmp_path / kind / "image", tmp_path / kind / "masks")
        said = f"0:ground,{value}:crack"
        found = prepared(Order(tmp_path / f"{kind}-ready", *folders, values=said, keep_empty=True))
        assert not found.pop("empty").any()
        assert len(found) == 3
        for mask in found.values():
            assert mask.dtype == np.uint8
            np.testing.assert_array_equal(mask, labels)


def test_values_of_their_own_are_mapped(tmp_path: Path) -> None:
    masks = [labels_of_all(seed) for seed in range(3)]
    stored = [np.where(mask == 65535, 7, 100 + 11 * mask).astype(np.uint16) for mask in masks]
    names = {"names": [f"c{index}" for index in range(COUNT)], "void_id": 7}
    mapping = {str(100 + 11 * index): index for index in range(COUNT)}
    order = Order(tmp_path / "ready", *raw(tmp_path, stored), split=0.3)
    (tmp_path / "classes.json").write_text(json.dumps(names | {"label_mapping": mapping}))
    found = prepared(order)
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(found[str(index)], mask)


def test_without_names_nothing_is_guessed(tmp_path: Path) -> None:
    order = Order(tmp_path / "ready", *raw(tmp_path, [labels_of_all(0)] * 3), split=0.3)
    with pytest.raises(DataError, match="which do not count classes"):
        prepare_folder(order)
    whole = [np.minimum(labels_of_all(seed), COUNT - 1) for seed in range(3)]
    order = Order(tmp_path / "also", *raw(tmp_path / "whole", whole), split=0.3)
    with pytest.raises(DataError, match="more than 255 classes need names: give --classes FILE"):
        prepare_folder(order)


def test_colours_are_written_as_16_bits(tmp_path: Path) -> None:
    colours = np.array(colour_map(COUNT), np.uint8)
    masks = [np.minimum(labels_of_all(seed), COUNT - 1) for seed in range(3)]
    order = Order(tmp_path / "ready", *raw(tmp_path, [colours[m] for m in masks]), split=0.3)
    lines = [f"c{k}:{red},{green},{blue}::" for k, (red, green, blue) in enumerate(colours)]
    (tmp_path / "labelmap.txt").write_text("# label:color_rgb:parts:actions\n" + "\n".join(lines))
    found = prepared(order)
    for index, mask in enumerate(masks):
        np.testing.assert_array_equal(found[str(index)], mask)


def test_annotations_of_300_categories_are_drawn(tmp_path: Path) -> None:
    """Squares of 2x2 of each category in a grid, a crowd above, and a picture of nothing."""
    expected = np.zeros((40, 40), np.uint16)
    annotations = []
    for index in range(COUNT):
        y, x = 2 * (index // 20), 2 * (index % 20)
        ring = [x, y, x + 2, y, x + 2, y + 2, x, y + 2]
        annotations.append({"image_id": 1, "category_id": index, "segmentation": [ring]})
        expected[y : y + 2, x : x + 2] = index + 1
    crowd = {"size": [40, 40], "counts": [38 * 40, 2 * 40]}  # by columns
    annotations.append({"image_id": 1, "category_id": 5, "iscrowd": 1, "segmentation": crowd})
    expected[30:, 38:] = 65535  # where nothing else is drawn
    sizes = {"height": 40, "width": 40}
    images = [{"id": n, "file_name": f"{n}.png", **sizes} for n in (1, 2, 3)]
    categories = [{"id": index, "name": f"c{index:03}"} for index in range(COUNT)]
    annotations.append({**annotations[299], "image_id": 3})
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    for number in (1, 2, 3):
        put_picture(tmp_path / "image" / f"{number}.png", number, (40, 40))
    order = Order(tmp_path / "ready", tmp_path / "image", tmp_path / "coco.json", keep_empty=True)
    found = prepared(order)
    dataset = load_dataset("folder", tmp_path / "ready", "train")
    assert dataset.classes[:2] == ("background", "c000") and len(dataset.classes) == COUNT + 1
    np.testing.assert_array_equal(found["1"], expected)
    assert not found["2"].any()
    assert set(found["3"].ravel().tolist()) == {0, 300}
