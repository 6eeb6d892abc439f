from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image, features

from segdeform.checking import check_sound
from segdeform.config.schema import DataConfig
from segdeform.data import Dataset, load_dataset, read_pair
from segdeform.data.cache import cache_folder, with_cache
from segdeform.data.loader import train_loader
from segdeform.errors import DataError, ResourceError, SegdeformError
from segdeform.preparing.decoding import write_cache
from segdeform.preparing.prepare import prepare
from tests.data.cityscapes_frames import write_frame, write_frames


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    root = write_frames(tmp_path / "frames", size=(48, 64))
    # Pictures of several sizes in one cache.
    rng = np.random.default_rng(1)
    write_frame(root, "train", "aachen_000007_000019", (40, 72), rng)
    return load_dataset("cityscapes", root, "train")


def silent(text: str) -> None:
    pass


def cached(dataset: Dataset) -> Dataset:
    write_cache(dataset)
    found = with_cache(dataset, silent)
    assert found.cache is not None
    return found


def drop_files(dataset: Dataset) -> None:
    """Puts files of the same size and times, but without content, in the place of all."""
    for sample in dataset.samples:
        for path in (sample.image, sample.mask):
            assert path is not None
            status = path.stat()
            path.write_bytes(bytes(status.st_size))
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_the_same_bits_with_and_without(dataset: Dataset, workers: int) -> None:
    # A crop as large as the pictures, so that whole mapped rows are taken without resizing.
    for crop, scale in (((32, 40), (0.5, 2.0)), ((48, 64), (1.0, 1.0))):
        config = DataConfig(name="cityscapes", crop=crop, scale=scale, max_class_share=0.75)
        options = {"seed": 1, "first_step": 0, "steps": 4, "batch_size": 3, "workers": workers}
        plain = list(train_loader(dataset, config, **options))
        decoded = cached(dataset)
        assert decoded.cache is not None
        fast = list(train_loader(decoded, config, **options))
        for (images, labels), (fast_images, fast_labels) in zip(plain, fast, strict=True):
            assert torch.equal(images, fast_images)
            assert torch.equal(labels, fast_labels)


def test_reading_touches_no_file_of_the_data_set(dataset: Dataset) -> None:
    pairs = [read_pair(dataset, index) for index in range(len(dataset))]
    write_cache(dataset)
    drop_files(dataset)
    decoded = with_cache(dataset, silent)
    check_sound([decoded])
    for index, (image, labels) in enumerate(pairs):
        fast_image, fast_labels = read_pair(decoded, index)
        np.testing.assert_array_equal(fast_image, image)
        np.testing.assert_array_equal(fast_labels, labels)


def test_workers_get_paths_not_pictures(dataset: Dataset) -> None:
    decoded = cached(dataset)
    read_pair(decoded, 0)
    content = pickle.dumps(decoded)
    assert len(content) < 10_000
    np.testing.assert_array_equal(read_pair(pickle.loads(content), 1)[0], read_pair(dataset, 1)[0])


def test_changed_files_end_the_use_of_a_cache(dataset: Dataset) -> None:
    old = write_cache(dataset)
    mask = dataset.samples[0].mask
    assert mask is not None
    os.utime(mask, ns=(1, 1))
    heard: list[str] = []
    assert with_cache(dataset, heard.append).cache is None
    assert "prepare --cache writes it anew" in heard[0]
    new = write_cache(dataset)
    assert new != old and not old.exists()
    assert with_cache(replace(dataset, samples=dataset.samples[1:]), silent).cache is None
    assert with_cache(replace(dataset, label_map={0: 1}), silent).cache is None


def test_files_of_other_folders_are_other_files(tmp_path: Path) -> None:
    """Two data sets of one root: the same pictures, masks of equal names, sizes and times."""
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    Image.fromarray(rng.integers(0, 256, (8, 9, 3), np.uint8)).save(tmp_path / "images" / "x.png")
    for masks, label in (("masks_a", 0), ("masks_b", 1)):
        (tmp_path / masks).mkdir()
        Image.fromarray(np.full((8, 9), label, np.uint8)).save(tmp_path / masks / "x.pgm")
        os.utime(tmp_path / masks / "x.pgm", ns=(1, 1))
        text = f"names: [a, b]\nmasks: {masks}\ntrain: images\nval: images\n"
        (tmp_path / f"{masks}.yaml").write_text(text)
    first, second = (
        load_dataset("folder", tmp_path / f"{masks}.yaml", "train")
        for masks in ("masks_a", "masks_b")
    )
    assert first.samples[0].mask != second.samples[0].mask
    write_cache(first)
    assert with_cache(second, silent).cache is None
    assert read_pair(cached(second), 0)[1].max() == 1


def test_a_data_set_that_was_moved_keeps_its_cache(dataset: Dataset, tmp_path: Path) -> None:
    write_cache(dataset)
    moved = dataset.root.rename(tmp_path / "moved")
    assert with_cache(load_dataset("cityscapes", moved, "train"), silent).cache is not None


@pytest.mark.parametrize("name", ["Pillow", "jpg", "webp", "libtiff"])
def test_another_decoder_ends_the_use_of_a_cache(
    dataset: Dataset, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_cache(dataset)
    version = features.version
    if name == "Pillow":
        monkeypatch.setattr(PIL, "__version__", "0.1")
    monkeypatch.setattr(features, "version", lambda of: "0.1" if of == name else version(of))
    assert with_cache(dataset, silent).cache is None


@pytest.mark.parametrize("name", ["images.u8", "labels.u8"])
def test_no_damaged_cache_is_used_in_silence(dataset: Dataset, name: str) -> None:
    path = write_cache(dataset) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="of the cache is damaged"):
        check_sound([with_cache(dataset, silent)])
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match="has not the size"):
        check_sound([with_cache(dataset, silent)])
    path.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        check_sound([with_cache(dataset, silent)])


@pytest.mark.parametrize("name", ["images.u8", "labels.u8"])
def test_a_cache_that_is_cut_short_while_it_is_used_is_named(dataset: Dataset, name: str) -> None:
    decoded = cached(dataset)
    read_pair(decoded, 0)  # the files are open from here on
    os.truncate(cache_folder(dataset) / name, 10)
    with pytest.raises(DataError, match="was cut short while it was used; remove it") as caught:
        read_pair(decoded, len(decoded) - 1)
    assert str(cache_folder(dataset)) in str(caught.value)


def test_a_label_that_flips_while_the_cache_is_used_is_named(dataset: Dataset) -> None:
    decoded = cached(dataset)
    _, labels = read_pair(decoded, 0)
    path = cache_folder(dataset) / "labels.u8"
    content = bytearray(path.read_bytes())
    content[labels.size - 1] ^= 0b0110_0000  # of no class, and not the 255 that is ignored
    path.write_bytes(content)
    with pytest.raises(DataError, match="picture 0 of the cache is damaged; remove it"):
        read_pair(decoded, 0)
    np.testing.assert_array_equal(read_pair(decoded, 1)[1], read_pair(dataset, 1)[1])


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"pairs": [[1, 2]]}', '{"pairs": [[-1, 2, "x", "y"]]}', None]
)
def test_a_damaged_index_is_named(dataset: Dataset, content: str | None) -> None:
    index = write_cache(dataset) / "index.json"
    index.unlink() if content is None else index.write_text(content)
    with pytest.raises(DataError, match=r"index\.json: damaged") as caught:
        with_cache(dataset, silent)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("torn", ["", '[48, 64, "ab', '["x", 64, "a", "b"]\n', "[-1, 9, 9, 9]\n"])
def test_an_interrupted_cache_is_continued(dataset: Dataset, torn: str, tmp_path: Path) -> None:
    whole = write_cache(dataset)
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    shutil.rmtree(whole.parent)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_cache(dataset, workers=1, progress=interrupt)
    assert with_cache(dataset, silent).cache is None
    (partial,) = whole.parent.glob(".*.partial")
    with (partial / "written.jsonl").open("a") as journal:
        journal.write(torn)
    with (partial / "images.u8").open("ab") as images:
        images.write(b"half a picture")
    heard: list[int] = []
    write_cache(dataset, progress=lambda done, total: heard.append(done))
    assert heard == [3, 4, 5]
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == expected
    assert [path.name for path in whole.parent.iterdir()] == [whole.name]


@pytest.mark.parametrize("name", ["images.u8", "labels.u8"])
@pytest.mark.parametrize("loss", ["gone", "empty", "zeros", "half", "zeros at the end"])
def test_what_a_power_loss_took_is_written_again(dataset: Dataset, name: str, loss: str) -> None:
    """The journal came to the disk, and what it speaks of did not."""
    whole = write_cache(dataset)
    expected = {path.name: path.read_bytes() for path in whole.iterdir()}
    partial = whole.rename(whole.with_name(f".{whole.name}.partial"))
    pairs = json.loads((partial / "index.json").read_text())["pairs"]
    (partial / "written.jsonl").write_text("".join(f"{json.dumps(pair)}\n" for pair in pairs))
    path, size = partial / name, len(expected[name])
    kept = {"half": size // 2, "zeros at the end": size - 1}.get(loss, 0)
    path.write_bytes(expected[name][:kept] + bytes(size - kept if "zeros" in loss else 0))
    if loss == "gone":
        path.unlink()
    heard: list[int] = []
    write_cache(dataset, progress=lambda done, total: heard.append(done))
    first = {"half": 3, "zeros at the end": 5}.get(loss, 1)
    assert heard == list(range(first, 6))
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == expected


def test_the_journal_names_only_what_is_on_the_disk(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable: dict[str, int] = {}  # file -> its size when it was last synced

    def sync(descriptor: int) -> None:
        durable[Path(f"/proc/self/fd/{descriptor}").readlink().name] = os.fstat(descriptor).st_size

    def lose_power(done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "fsync", sync)
        write_cache(dataset, workers=1, progress=lose_power)
    (partial,) = cache_folder(dataset).parent.glob(".*.partial")
    for name in ("images.u8", "labels.u8"):
        os.truncate(partial / name, durable[name])
    heard: list[int] = []
    write_cache(dataset, progress=lambda done, total: heard.append(done))
    assert heard == [5]


@pytest.mark.parametrize("name", ["images.u8", "labels.u8", "index.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_cache_is_written_anew(dataset: Dataset, name: str, damage: str) -> None:
    folder = write_cache(dataset)
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    path = folder / name
    if damage == "gone":
        path.unlink()
    else:
        content = bytearray(expected[name])
        content[-20] ^= 1  # in the index: in the last digest
        path.write_bytes(content if damage == "flipped" else content[:-20])
    prepare("cityscapes", dataset.root, cache=True)
    check_sound([with_cache(dataset, silent)])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected


@pytest.mark.parametrize("suffix", ["jpg", "png"])
@pytest.mark.parametrize("splits", [(), ("train",), ("val",), ("train", "val")])
def test_a_leak_is_found_whatever_is_cached(
    splits: tuple[str, ...], suffix: str, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    for split in ("train", "val"):
        for kind, content in (("images", pixels), ("masks", pixels[:, :, 0] // 128)):
            folder = tmp_path / split / kind
            folder.mkdir(parents=True)
            name = f"{split}.{suffix if kind == 'images' else 'png'}"
            Image.fromarray(content).save(folder / name)
    datasets = [load_dataset("folder", tmp_path, split) for split in ("train", "val")]
    datasets = [cached(part) if part.split in splits else part for part in datasets]
    report = check_sound(datasets)
    assert [finding.kind for finding in report.findings] == ["leak"]


def test_the_disk_is_looked_at_first(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 0

    monkeypatch.setattr("segdeform.files.space.shutil.disk_usage", lambda path: Full)
    with pytest.raises(ResourceError, match="61 kB of disk"):
        write_cache(dataset)
    assert not cache_folder(dataset).exists()


def test_prepare_writes_the_caches_once(dataset: Dataset) -> None:
    first = prepare("cityscapes", dataset.root, cache=True)
    assert [line for line in first.messages if line.startswith("cache of train: ")]
    folders = sorted((dataset.root / ".segdeform-cache").glob("*-*"))
    assert [folder.name.split("-")[0] for folder in folders] == ["train", "val"]
    times = [(folder / "images.u8").stat().st_mtime_ns for folder in folders]
    prepare("cityscapes", dataset.root, cache=True)
    assert times == [(folder / "images.u8").stat().st_mtime_ns for folder in folders]
    index = json.loads((folders[0] / "index.json").read_text())
    assert [pair[:2] for pair in index["pairs"]].count([40, 72]) == 1


def test_ctrl_c_while_caching_is_code_130(dataset: Dataset) -> None:
    def interrupt(step: str, done: int, total: int) -> None:
        if step == "caching train":
            raise KeyboardInterrupt

    with pytest.raises(SegdeformError) as caught:
        prepare("cityscapes", dataset.root, cache=True, progress=interrupt)
    assert caught.value.exit_code == 130
