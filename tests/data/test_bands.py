"""Bands that are asked for: of TIFFs of any layout, of pages that are channels, of others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from segdeform.config.schema import DataConfig
from segdeform.data import list_dataset, load_dataset, read_pair
from segdeform.data.arrays import pixels_of
from segdeform.data.cache import cache_folder, with_cache
from segdeform.data.channels import BandsError, shown_colours
from segdeform.data.image_io import count_frames, read_image
from segdeform.data.loader import train_loader
from segdeform.data.sampler import batch_indices
from segdeform.data.transforms import TrainTransform
from segdeform.errors import DataError, UnsafeInputError
from segdeform.preparing.decoding import write_cache
from tests.data.band_sets import band_set, random
from tests.data.test_deep_pictures import write_png
from tests.data.tiff_files import DEFLATE, GREY, NONE, RGB, write_tiff


@pytest.mark.parametrize("planes", [False, True], ids=["by pixel", "by band"])
@pytest.mark.parametrize("tile", [0, 16])
@pytest.mark.parametrize("compression", [NONE, DEFLATE])
def test_bands_of_a_tiff_are_those_that_tifffile_gives(
    tmp_path: Path, planes: bool, tile: int, compression: int
) -> None:
    path = tmp_path / "a.tif"
    for count, bands in ((5, (3, 2, 1)), (7, (6, 0, 6, 2, 5)), (4, (3,)), (2, (1, 0)), (1, (0, 0))):
        for dtype in (np.uint8, np.uint16):
            values = random(21, 19, count, dtype=dtype, seed=count)
            write_tiff(
                path, values, photometric=GREY, planes=planes, tile=tile,
                rows=16 if tile else 5, compression=compression,
            )  # fmt: skip
            stored = tifffile.imread(path)
            if stored.ndim == 3 and stored.shape[0] == count:
                stored = stored.transpose(1, 2, 0)
            chosen = stored.reshape(values.shape)[..., list(bands)]
            expected = chosen if dtype == np.uint8 else np.rint(chosen / 257)
            np.testing.assert_array_equal(read_image(path, bands=bands), expected)


@pytest.mark.parametrize("turn", range(1, 9))
def test_bands_are_turned_upright(tmp_path: Path, turn: int) -> None:
    values = random(7, 10, 5)
    write_tiff(tmp_path / "a.tif", values, photometric=GREY, turn=turn)
    bands = (4, 0, 3, 1)
    exif = Image.Exif()
    exif[0x0112] = turn
    planes = []
    for band in bands:
        flat = Image.fromarray(values[..., band])
        flat.info["exif"] = exif.tobytes()
        planes.append(np.asarray(ImageOps.exif_transpose(flat)))
    read = read_image(tmp_path / "a.tif", bands=bands)
    np.testing.assert_array_equal(read, np.stack(planes, 2))
    assert read.flags.c_contiguous
    # Pillow turns the TIFFs that it decodes, and only once.
    write_tiff(tmp_path / "rgb.tif", values[..., :3], photometric=RGB, turn=turn)
    expected = read_image(tmp_path / "rgb.tif")[..., [2, 0]]
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.tif", bands=(2, 0)), expected)


def save(mode: str) -> Callable[[Path], npt.NDArray[Any]]:
    """Returns what writes a PNG of a mode and says what its bands are."""

    def write(path: Path) -> npt.NDArray[Any]:
        channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
        values = random(6, 9, channels)
        Image.fromarray(values.squeeze(), mode).save(path)
        return values

    return write


def save_deep(colour: int, channels: int) -> Callable[[Path], npt.NDArray[Any]]:
    def write(path: Path) -> npt.NDArray[Any]:
        values = random(6, 9, channels, dtype=np.uint16)
        write_png(path, values, colour)
        return np.rint(values / 257).astype(np.uint8)

    return write


def save_palette(path: Path) -> npt.NDArray[Any]:
    image = Image.fromarray(random(6, 9) % 4, "P")
    image.putpalette(list(range(100, 112)))
    image.save(path)
    return np.asarray(image.convert("RGB"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "write",
    [
        *map(save, ("L", "LA", "RGB", "RGBA")),
        *(save_deep(*kind) for kind in ((0, 1), (4, 2), (2, 3), (6, 4))),
        save_palette,
    ],
)
def test_other_pictures_have_grey_or_rgb_and_then_alpha(
    tmp_path: Path, write: Callable[[Path], npt.NDArray[Any]]
) -> None:
    path = tmp_path / "a.png"
    values = write(path)
    count = values.shape[2]
    for bands in (tuple(range(count)), tuple(reversed(range(count))), (count - 1,)):
        np.testing.assert_array_equal(read_image(path, bands=bands), values[..., list(bands)])
    with pytest.raises(BandsError, match=rf"a\.png: has {count} bands?, and bands: \[0, {count}\]"):
        read_image(path, bands=(0, count))


def test_a_jpeg_has_three_bands_or_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(random(16, 24, 3)).save(path)
    np.testing.assert_array_equal(read_image(path, bands=(2, 1)), read_image(path)[..., [2, 1]])
    Image.fromarray(random(16, 24)).save(path)
    np.testing.assert_array_equal(read_image(path, bands=(0,)), read_image(path)[..., :1])
    with pytest.raises(BandsError, match="has 1 band, and"):
        read_image(path, bands=(0, 1, 2))


C = random(4, 20, 30)
TZC = random(2, 3, 4, 20, 30, dtype=np.uint16)


@pytest.mark.parametrize(
    ("values", "options"),
    [
        (C, {"imagej": True, "metadata": {"axes": "CYX"}}),
        (C, {"metadata": {"axes": "CYX"}}),
        (C, {"ome": True, "metadata": {"axes": "CYX"}}),
        (TZC, {"imagej": True, "metadata": {"axes": "TZCYX"}}),
        (TZC, {"ome": True, "metadata": {"axes": "TZCYX"}, "compression": "deflate"}),
        (TZC[0, :, 0], {"ome": True, "metadata": {"axes": "CYX"}}),
    ],
)
def test_pages_that_the_file_calls_channels_are_bands(
    tmp_path: Path, values: npt.NDArray[Any], options: dict[str, Any]
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, photometric="minisblack", **options)
    first = values.reshape(-1, *values.shape[-3:])[0]  # of time and depth
    picked = first[[2, 0]].transpose(1, 2, 0)
    expected = picked if values.dtype == np.uint8 else np.rint(picked / 257)
    np.testing.assert_array_equal(read_image(path, bands=(2, 0)), expected)
    pages = values.size // (20 * 30)
    assert count_frames(path, (2, 0)) == pages // len(first)
    # Where nobody asks for bands, it is read as ever: the first page, in grey.
    assert count_frames(path) == pages
    page = first[0] if values.dtype == np.uint8 else np.rint(first[0] / 257)
    np.testing.assert_array_equal(read_image(path), np.repeat(page[..., None], 3, 2))


@pytest.mark.parametrize(
    "options",
    [
        {"imagej": True, "metadata": {"axes": "ZYX"}},
        {"imagej": True, "metadata": {"axes": "TYX"}},
        {"ome": True, "metadata": {"axes": "ZYX"}},
        {},  # of a shape, and of no axes
        {"metadata": None},
    ],
)
def test_a_stack_is_no_bands(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, C, photometric="minisblack", **options)
    np.testing.assert_array_equal(read_image(path, bands=(0,)), C[0][..., None])
    with pytest.raises(BandsError, match=r"has 1 band \(4 pages, which nothing in it calls chann"):
        read_image(path, bands=(0, 1))
    assert count_frames(path, (0,)) == 4


def test_each_channel_can_have_its_range(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    values = random(9, 5, 5, dtype=np.uint16)
    write_tiff(path, values, photometric=GREY)
    spans = ((0, 4095), (1000, 3000), (100, 60000))
    bands = (4, 0, 2)
    each = [
        np.clip(np.rint((values[..., band].astype(float) - low) * 255 / (high - low)), 0, 255)
        for band, (low, high) in zip(bands, spans, strict=True)
    ]
    np.testing.assert_array_equal(read_image(path, spans, bands), np.stack(each, 2))
    with pytest.raises(DataError, match=r"a\.tif: value_range has not one range for each of its 2"):
        read_image(path, spans, (0, 1))
    rgb = [
        np.clip(np.rint((values[..., band].astype(float) - low) * 255 / (high - low)), 0, 255)
        for band, (low, high) in enumerate(spans)
    ]
    np.testing.assert_array_equal(read_image(path, spans), np.stack(rgb, 2))


def test_many_bands_of_a_large_picture_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write_tiff(path, random(7, 10, 5), photometric=GREY, more={256: 20_000, 257: 20_000})
    with pytest.raises(UnsafeInputError, match="20000x20000 pixels of 4 bands are over the limit"):
        read_image(path, bands=(0, 1, 2, 3))


def test_what_is_shown_has_three_channels() -> None:
    for channels, expected in ((1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])):
        pixels = random(4, 6, channels)
        np.testing.assert_array_equal(shown_colours(pixels), pixels[..., expected])


def test_a_data_set_names_its_bands_and_its_cache_holds_them(tmp_path: Path) -> None:
    root = band_set(tmp_path / "a", "bands: [4, 2, 0, 1, 1]")
    dataset = load_dataset("folder", root, "train")
    assert dataset.channels == 5
    pairs = [read_pair(dataset, index) for index in range(len(dataset))]
    for number, (picture, _) in enumerate(pairs):
        stored = random(30 + number, 41, 5, seed=number)
        np.testing.assert_array_equal(picture, stored[..., [4, 2, 0, 1, 1]])
    folder = write_cache(dataset)
    assert (folder / "images.u8").stat().st_size == 5 * (30 + 31 + 32) * 41
    cached = with_cache(dataset, lambda text: None)
    assert cached.cache is not None
    for index, (picture, labels) in enumerate(pairs):
        for ours, theirs in zip((picture, labels), read_pair(cached, index), strict=True):
            np.testing.assert_array_equal(theirs, ours)
    assert write_cache(dataset) == folder
    other = (root / "data.yaml").read_text().replace("[4, 2", "[4, 3")
    (root / "data.yaml").write_text(other)
    assert cache_folder(load_dataset("folder", root, "train")) != folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("bands: 3", r"bands is a list of the bands"),
        ("bands: []", r"bands is a list of the bands"),
        ("bands: [0, -1]", r"bands is a list of the bands"),
        ("bands: [0, true]", r"bands is a list of the bands"),
        ("bands: [0, x]", r"bands is a list of the bands"),
        ("bits: 0", r"bits is how many"),
        ("bits: 33", r"bits is how many"),
        ("bits: twelve", r"bits is how many"),
        ("bits: 12\nvalue_range: [0, 1023]", r"bits: 12 means value_range: \[0, 4095\]"),
        ("value_range: [[0, 1], [0, 1]]", r"value_range has 2 pairs for 3 channels"),
        (
            "bands: [0, 1]\nvalue_range: [[0, 1], [0, 1], [0, 1]]",
            r"value_range has 3 pairs for 2 channels",
        ),
        ("bands: [0, 1]\nvalue_range: [[0, 1], [1, 0]]", r"value_range is \[lowest, highest\]"),
        ("bands: [0, 1]\nvalue_range: [[0, 1], 7]", r"value_range is \[lowest, highest\]"),
        ("band: [0, 1]", r"unknown key 'band'. Did you mean 'bands'"),
    ],
)
def test_keys_that_make_no_sense_are_refused(tmp_path: Path, line: str, message: str) -> None:
    root = band_set(tmp_path / "a", line, pairs=1)
    with pytest.raises(DataError, match=rf"data\.yaml: {message}"):
        list_dataset("folder", root, "train")


def test_bits_are_another_word_for_a_range(tmp_path: Path) -> None:
    for number, (line, expected) in enumerate(
        [
            ("bits: 12", (0, 4095)),
            ("bits: 8", (0, 255)),
            ("bits: 12\nvalue_range: 4095", (0, 4095)),
            ("bands: [0, 3]\nvalue_range: [[0, 10], [5, 20]]", ((0, 10), (5, 20))),
        ]
    ):
        root = band_set(tmp_path / str(number), line, pairs=1)
        assert load_dataset("folder", root, "train").value_range == expected


def test_a_model_and_a_data_set_of_other_channels_do_not_fit(tmp_path: Path) -> None:
    dataset = load_dataset("folder", band_set(tmp_path / "a", "bands: [0, 1]", pairs=1), "train")
    assert dataset.as_read_by(None, (3, 4)).bands == (0, 1)
    with pytest.raises(DataError, match="makes pictures of 2 channels, and the model knows 4"):
        dataset.as_read_by(None, (0, 1, 2, 3))
    plain = load_dataset("folder", band_set(tmp_path / "b", "", pairs=1), "train")
    assert plain.as_read_by(None, (3, 4)).bands == (3, 4)
    with pytest.raises(DataError, match="value_range has one range for each of another number"):
        plain.as_read_by(((0, 1), (0, 1)), None)


def test_decoders_write_nothing_to_stderr(tmp_path: Path) -> None:
    """libtiff prints what it thinks of damage from C, which no Python sees."""
    rng = np.random.default_rng(0)
    for kind in ("tiff_lzw", "tiff_adobe_deflate", "group4"):
        image = Image.fromarray(rng.integers(0, 256, (60, 50, 3), np.uint8))
        image = image.convert("1") if kind == "group4" else image
        image.save(tmp_path / "whole.tif", compression=kind)
        content = (tmp_path / "whole.tif").read_bytes()
        for number in range(8):
            damaged = bytearray(content)
            for place in rng.integers(8, len(damaged), 5):
                damaged[place] = int(rng.integers(0, 256))
            end = len(content) if number % 2 else int(rng.integers(50, len(content)))
            (tmp_path / f"{kind}-{number}.tif").write_bytes(damaged[:end])
    program = (
        "import sys, threading\nfrom pathlib import Path\n"
        "from segdeform.data.image_io import read_image\nfrom segdeform.errors import DataError\n"
        "def read():\n    for path in Path(sys.argv[1]).glob('*.tif'):\n"
        "        try:\n            read_image(path)\n        except DataError:\n"
        "            print('refused')\n"
        "read()\nthread = threading.Thread(target=read)\nthread.start()\nthread.join()\n"
    )
    run = [sys.executable, "-P", "-c", program, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.count("refused") > 10
    assert done.stderr == ""


def test_batches_of_bands_are_the_crops_filled_with_the_mean(tmp_path: Path) -> None:
    dataset = load_dataset("folder", band_set(tmp_path / "a", "bands: [4, 2, 0, 1]"), "train")
    mean = (0.1, 0.3, 0.5, 0.9)
    data = DataConfig(crop=(48, 56), rotate=20.0, mean=mean, std=(0.2,) * 4)  # hangs over
    crop = TrainTransform((48, 56), (0.5, 2.0), 1.0, 0.5, 20.0, 0.4, mean)
    options: dict[str, Any] = {"seed": 3, "first_step": 0, "steps": 3, "batch_size": 2}
    batches = list(train_loader(dataset, data, workers=0, **options))
    for step, (images, labels) in enumerate(batches):
        assert images.shape == (2, 4, 48, 56)
        for row, (epoch, index) in enumerate(batch_indices(3, step, 2, len(dataset))):
            image, mask = crop(*read_pair(dataset, index), 3, epoch, index)
            np.testing.assert_array_equal(images[row].permute(1, 2, 0).numpy(), image)
            np.testing.assert_array_equal(labels[row].numpy(), mask)
    for ours, theirs in zip(
        batches, train_loader(dataset, data, workers=2, **options), strict=True
    ):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("turn", [1, 6])
def test_bands_of_a_pil_picture_are_those_of_its_file(tmp_path: Path, turn: int) -> None:
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = turn
    kinds = {(6, 9, 4): ((3, 0), (2, 1, 0)), (6, 9, 3): ((2, 1, 0),), (6, 9): ((0,),)}
    for shape, picks in kinds.items():
        Image.fromarray(random(*shape)).save(path, exif=exif)
        for bands in picks:
            with Image.open(path) as picture:
                pixels = pixels_of(picture, None, len(bands), bands)
                with pytest.raises(BandsError, match=r"the picture: has \d bands?, and"):
                    pixels_of(picture, None, 5, (0, 1, 2, 3, 4))
            np.testing.assert_array_equal(pixels, read_image(path, bands=bands))
    Image.fromarray(random(6, 9, dtype=np.uint16)).save(path)
    with Image.open(path) as picture:
        pixels = pixels_of(picture, (100, 40000), 2, (0, 0))
    np.testing.assert_array_equal(pixels, read_image(path, (100, 40000), (0, 0)))
