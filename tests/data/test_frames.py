"""Every frame or page of a file, against what another reader makes of it."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from PIL import Image, ImageSequence

from segdeform.data.frames import Frames, read_frame
from segdeform.data.image_io import count_frames, pixels_of, read_image
from segdeform.errors import DataError
from tests.conftest import external_data


def random(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> npt.NDArray[Any]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def read(path: Path, bands: tuple[int, ...] | None = None) -> list[npt.NDArray[np.uint8]]:
    frames = Frames(path, bands)
    found = []
    for number in range(frames.count):
        with frames.at(number) as image:
            found.append(pixels_of(image, path, None, bands))
    return found


def test_animations_are_composed(tmp_path: Path) -> None:
    """Each frame a small patch that is laid over, or taken back: as Pillow's own iterator does."""
    path = external_data("data/awkward_images")
    names = [
        *("apng_dispose_op_previous.png", "dispose_bgnd_transparency.gif", "iss634.webp"),
        *("hopper.gif", "frozenpond.mpo", "sugarshack.mpo"),
    ]
    frames = 0
    for name in names:
        with Image.open(path / name) as image:
            truth = [np.asarray(frame.convert("RGBA")) for frame in ImageSequence.Iterator(image)]
        found = read(path / name)
        assert len(found) == len(truth) == count_frames(path / name)
        for mine, theirs in zip(found, truth, strict=True):
            opaque = theirs[..., 3] == 255
            np.testing.assert_array_equal(mine[opaque], theirs[..., :3][opaque])
        np.testing.assert_array_equal(found[0], read_image(path / name))
        np.testing.assert_array_equal(found[-1], read_frame(path / name, len(found) - 1))
        frames += len(found)
    assert frames > 50


@pytest.mark.parametrize("suffix", ["gif", "png", "webp"])
def test_frames_can_be_asked_for_in_any_order(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    pictures = [Image.new("RGB", (9, 7), colour) for colour in colours]
    more = {"lossless": True} if suffix == "webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], **more)
    frames = Frames(path)
    assert frames.count == 4
    for number in (2, 0, 3, 1, 1):
        with frames.at(number) as image:
            pixels = pixels_of(image, path)
        assert abs(pixels.astype(int) - colours[number]).max() <= 8
    with pytest.raises(DataError, match="cut short"), frames.at(4):
        pass


def test_pages_of_every_kind_in_one_tiff(tmp_path: Path) -> None:
    """Sizes, bands and depths differ; overviews between them are no pages."""
    path = tmp_path / "a.tif"
    grey, rgb, deep = random(5, 8), random(9, 4, 3), random(6, 7, 3, dtype=np.uint16)
    five, palette = random(4, 6, 5), random(5, 9) % 4
    colours = np.zeros((3, 256), np.uint16)
    colours[:, :4] = random(3, 4, seed=7).astype(np.uint16) * 257
    with tifffile.TiffWriter(path) as writer:
        writer.write(grey, photometric="minisblack", metadata=None)
        writer.write(grey[::2, ::2], photometric="minisblack", subfiletype=1, metadata=None)
        writer.write(rgb, photometric="rgb", compression="deflate", metadata=None)
        writer.write(deep, photometric="rgb", metadata=None)
        writer.write(five, photometric="minisblack", planarconfig="contig", metadata=None)
        writer.write(palette, photometric="palette", colormap=colours, metadata=None)
    found = read(path)
    expected = [
        np.repeat(grey[..., None], 3, 2),
        rgb,
        np.rint(deep / 257),
        five[..., :3],
        (colours[:, palette] // 257).transpose(1, 2, 0),
    ]
    assert len(found) == len(expected) == count_frames(path)
    for mine, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, right)


@pytest.mark.parametrize(
    "options",
    [
        {"imagej": True, "metadata": {"axes": "TZCYX"}},
        {"ome": True, "metadata": {"axes": "TZCYX"}, "compression": "deflate"},
        {"ome": True, "metadata": {"axes": "CTZYX"}},
    ],
)
def test_pages_that_are_channels_are_one_picture_together(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    path, axes = tmp_path / "a.tif", options["metadata"]["axes"]
    values = random(2, 3, 4, 5, 6)
    tifffile.imwrite(path, values, photometric="minisblack", **options)
    groups = np.moveaxis(values, axes.index("C"), 2)
    groups = groups.reshape(-1, *groups.shape[2:])
    last = groups.shape[1] - 1
    with pytest.raises(DataError, match=f"has {last + 1} bands"):
        read(path, (last + 1,))
    found, groups = read(path, (last, 0)), groups[:, [last, 0]]
    assert len(found) == len(groups) == count_frames(path, (1, 0))
    for mine, right in zip(found, groups, strict=True):
        np.testing.assert_array_equal(mine, right.transpose(1, 2, 0))
    alone = read(path)  # without bands each page is a picture
    np.testing.assert_array_equal(np.stack(alone)[..., 1], values.reshape(-1, 5, 6))


@pytest.mark.parametrize("order", ["<", ">"])
def test_planes_that_imagej_stores_behind_one_page(tmp_path: Path, order: str) -> None:
    path = tmp_path / "a.tif"
    values = random(5, 4, 7, dtype=np.uint16).astype(f"{order}u2")
    tifffile.imwrite(
        path, values[0], byteorder=order, description="ImageJ=1.53k\nimages=9\nslices=9\n",
        metadata=None, photometric="minisblack",
    )  # fmt: skip
    with path.open("ab") as file:
        assert tifffile.TiffFile(path).pages[0].dataoffsets[0] + values[0].nbytes == file.tell()
        file.write(values[1:].tobytes())
    found = read(path)  # of the nine that it tells, five are there
    expected = np.rint(values.astype(np.float64) / 257)
    np.testing.assert_array_equal(np.stack(found)[..., 0], expected)


def test_a_damaged_page_harms_no_other(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    pages = random(4, 20, 30, 3)
    tifffile.imwrite(path, pages, photometric="rgb", compression="deflate", metadata=None)
    with tifffile.TiffFile(path) as file:
        offset = file.pages[1].aspage().dataoffsets[0]
    content = bytearray(path.read_bytes())
    content[offset : offset + 8] = b"\xff" * 8
    path.write_bytes(content)
    frames = Frames(path)
    with pytest.raises(DataError, match=r"a\.tif: damaged"), frames.at(1) as image:
        pixels_of(image, path)
    for number in (2, 0, 3):
        with frames.at(number) as image:
            np.testing.assert_array_equal(pixels_of(image, path), pages[number])


def test_more_frames_than_there_are(tmp_path: Path) -> None:
    """An animation that says that it has two thousand millions of them."""
    path = tmp_path / "a.png"
    pictures = [Image.new("RGB", (9, 7), (k, 0, 0)) for k in (10, 20)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:])
    content = bytearray(path.read_bytes())
    place = content.index(b"acTL")
    content[place + 4 : place + 8] = struct.pack(">I", 2**31 - 1)
    content[place + 12 : place + 16] = struct.pack(">I", zlib.crc32(content[place : place + 12]))
    path.write_bytes(content)
    frames = Frames(path)
    for number, red in enumerate((10, 20)):
        with frames.at(number) as image:
            assert (pixels_of(image, path)[..., 0] == red).all()
    with pytest.raises(DataError, match="cut short"), frames.at(2):
        pass
