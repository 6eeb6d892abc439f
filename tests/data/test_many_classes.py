"""Data sets of more than 255 classes: labels of 16 bits, of which 65535 is ignored, and not 255."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

from segdeform.config.schema import DataConfig
from segdeform.data import Dataset, load_dataset, read_pair
from segdeform.data.cache import cache_folder, with_cache
from segdeform.data.dataset import colour_map
from segdeform.data.loader import train_loader
from segdeform.data.transforms import TrainTransform
from segdeform.errors import DataError, ResourceError
from segdeform.preparing import decoding
from segdeform.preparing.decoding import write_cache

NAMES = [f"c{index}" for index in range(300)]
GOLDEN = [[0, 254, 255], [256, 299, 65535]]


def put(path: Path, values: NDArray[np.integer]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def write_pair(root: Path, name: str, labels: NDArray[np.integer]) -> None:
    rng = np.random.default_rng(len(name))
    image = rng.integers(0, 256, (*labels.shape, 3)).astype(np.uint8)
    put(root / "train" / "images" / f"{name}.png", image)
    put(root / "train" / "masks" / f"{name}.png", labels)


def describe(root: Path, **keys: object) -> Dataset:
    (root / "classes.json").write_text(json.dumps({"names": NAMES, **keys}))
    return load_dataset("folder", root, "train")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three pictures of odd sizes; the classes of the second are all below 255."""
    rng = np.random.default_rng(3)
    write_pair(tmp_path, "a", np.array(GOLDEN, np.uint16))
    write_pair(tmp_path, "bb", rng.integers(0, 250, (31, 27)).astype(np.uint8))
    labels = rng.integers(0, 300, (45, 33)).astype(np.uint16)
    labels[rng.random(labels.shape) < 0.1] = 65535
    write_pair(tmp_path, "ccc", labels)
    return describe(tmp_path)


def test_labels_are_those_of_the_file(dataset: Dataset) -> None:
    _, labels = read_pair(dataset, 0)
    assert labels.dtype == np.uint16
    assert labels.tolist() == GOLDEN


def test_a_mask_may_be_a_tiff_of_16_bits(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", np.array(GOLDEN, np.uint16))
    (tmp_path / "train" / "masks" / "a.png").unlink()
    path = tmp_path / "train" / "masks" / "a.tif"
    for order in ("<", ">"):
        tifffile.imwrite(path, np.array(GOLDEN, np.uint16), byteorder=order)
        assert read_pair(describe(tmp_path), 0)[1].tolist() == GOLDEN


def test_255_is_a_class_also_of_masks_of_8_bits(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", np.array([[255, 3]], np.uint8))
    assert read_pair(describe(tmp_path), 0)[1].tolist() == [[255, 3]]
    assert read_pair(describe(tmp_path, void_id=255), 0)[1].tolist() == [[65535, 3]]


def test_a_mapping_has_65535_for_what_is_ignored(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", np.array([[40_000, 7, 8, 65535]], np.uint16))
    found = describe(tmp_path, label_mapping={"40000": 299, "7": 255, "8": 65535})
    assert read_pair(found, 0)[1].tolist() == [[299, 255, 65535, 65535]]
    with pytest.raises(DataError, match=r"300 is neither a class \(0 to 299\) nor 65535"):
        describe(tmp_path, label_mapping={"7": 300})


@pytest.mark.parametrize("value", [300, 65534])
def test_a_value_that_is_no_class_is_named(tmp_path: Path, value: int) -> None:
    write_pair(tmp_path, "a", np.array([[0, 1], [value, 255]], np.uint16))
    text = rf"label {value} at row 1, column 0 is outside the 300 classes .*ignored: 65535\)"
    with pytest.raises(DataError, match=text):
        read_pair(describe(tmp_path), 0)


def test_the_first_class_beyond_8_bits_changes_what_is_ignored(tmp_path: Path) -> None:
    write_pair(tmp_path, "a", np.array([[0, 255]], np.uint8))
    for count, kind, labels in ((255, np.uint8, [[0, 255]]), (256, np.uint16, [[0, 255]])):
        (tmp_path / "classes.json").write_text(json.dumps({"names": NAMES[:count]}))
        found = load_dataset("folder", tmp_path, "train")
        assert read_pair(found, 0)[1].dtype == kind
        assert read_pair(found, 0)[1].tolist() == labels
        assert found.ignore == np.iinfo(kind).max


def test_colours_are_all_different_and_the_first_ones_stay() -> None:
    colours = colour_map(5000)
    assert len(set(colours)) == 5000
    assert colours[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert colours[255] == (224, 224, 192)
    assert colours[256] == (0, 0, 32)


def test_crops_are_those_of_the_same_labels_in_8_bits() -> None:
    rng = np.random.default_rng(5)
    image = rng.integers(0, 256, (41, 37, 3)).astype(np.uint8)
    narrow = rng.integers(0, 9, (41, 37)).astype(np.uint8)
    narrow[rng.random(narrow.shape) < 0.2] = 255
    wide = np.where(narrow == 255, 65535, narrow.astype(np.uint16) + 5000).astype(np.uint16)
    crop = TrainTransform((24, 40), (0.3, 2.0), 0.3, 0.5, 20.0, 0.2)
    for index in range(20):
        pixels, expected = crop(image, narrow, 7, 0, index)
        same, labels = crop(image, wide, 7, 0, index)
        assert labels.dtype == np.uint16
        np.testing.assert_array_equal(pixels, same)
        np.testing.assert_array_equal(
            labels, np.where(expected == 255, 65535, expected.astype(np.uint16) + 5000)
        )


def test_batches_are_the_same_by_workers_and_from_the_cache(dataset: Dataset) -> None:
    config = DataConfig(name="folder", crop=(17, 21), rotate=10.0)  # an odd number of bytes
    cached = with_cache_of(dataset)
    assert cached.cache is not None

    def batches(source: Dataset, workers: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        options = {"seed": 2, "first_step": 0, "steps": 4, "batch_size": 3, "workers": workers}
        return list(train_loader(source, config, **options))

    alone = batches(dataset, 0)
    for others in (batches(dataset, 2), batches(cached, 0)):
        for (images, labels), (same, also) in zip(alone, others, strict=True):
            assert labels.dtype == also.dtype == torch.int32
            assert torch.equal(images, same) and torch.equal(labels, also)
    values = torch.cat([labels.flatten() for _, labels in alone]).unique().tolist()
    assert 65535 in values and max(values[:-1]) < 300
    assert any(value > 255 for value in values[:-1])


def with_cache_of(dataset: Dataset) -> Dataset:
    write_cache(dataset)
    return with_cache(dataset, lambda text: None)


def test_a_cache_holds_labels_of_16_bits(dataset: Dataset) -> None:
    cached = with_cache_of(dataset)
    folder = cache_folder(dataset)
    assert (folder / "labels.u16").stat().st_size == 2 * (2 * 3 + 31 * 27 + 45 * 33)
    for index in range(len(dataset)):
        for here, there in zip(read_pair(dataset, index), read_pair(cached, index), strict=True):
            assert here.dtype == there.dtype
            np.testing.assert_array_equal(here, there)
    content = np.fromfile(folder / "labels.u16", np.uint16)
    content[1] = 300
    content.tofile(folder / "labels.u16")
    with pytest.raises(DataError, match="picture 0 of the cache is damaged"):
        read_pair(with_cache(dataset, lambda text: None), 0)
    again = with_cache_of(dataset)
    assert read_pair(again, 0)[1].tolist() == GOLDEN, "it was not mended"


def test_a_cache_goes_on_where_it_was_interrupted(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    decode, failing = decoding._decode, {2}

    def fails_once(found: Dataset, facts: object, index: int) -> object:
        if index in failing:
            failing.clear()
            raise ResourceError("the disk is full")
        read.append(index)
        return decode(found, facts, index)  # type: ignore[arg-type]

    read: list[int] = []
    monkeypatch.setattr(decoding, "_decode", fails_once)
    with pytest.raises(ResourceError):
        write_cache(dataset, workers=1)
    read.clear()
    cached = with_cache_of(dataset)
    assert read == [2], "what was written before was not known again"
    for index in range(3):
        np.testing.assert_array_equal(read_pair(cached, index)[1], read_pair(dataset, index)[1])
