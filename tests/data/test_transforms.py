from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import numpy.typing as npt
import pytest

from segdeform.data.dataset import IGNORE
from segdeform.data.transforms import TrainTransform, _brightened

UInt8 = npt.NDArray[np.uint8]


def transform(
    crop: tuple[int, int] = (48, 64),
    scale: tuple[float, float] = (0.5, 2.0),
    max_class_share: float = 1.0,
    flip: float = 0.5,
    rotate: float = 0.0,
    color: float = 0.0,
) -> TrainTransform:
    return TrainTransform(crop, scale, max_class_share, flip, rotate, color)


def blobs(height: int = 90, width: int = 120, seed: int = 0) -> UInt8:
    """Draws labels 0..3 in blocks of 15 pixels."""
    blocks = np.random.default_rng(seed).integers(0, 4, (height // 15, width // 15))
    return np.kron(blocks, np.ones((15, 15))).astype(np.uint8)


def as_picture(labels: UInt8) -> UInt8:
    """Paints labels in greys far apart, so that the picture tells the label."""
    return np.repeat((labels * 60 + 20)[..., None], 3, axis=2).astype(np.uint8)


def test_the_arguments_alone_decide() -> None:
    labels = blobs()
    image = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    varied = transform(rotate=30, color=0.5, max_class_share=0.7)
    first = varied(image, labels, 1, 2, 3)
    random.seed(5)
    np.random.seed(5)
    varied(image, labels, 1, 2, 4)
    again = transform(rotate=30, color=0.5, max_class_share=0.7)(image, labels, 1, 2, 3)
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    for other in ((0, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not np.array_equal(first[0], varied(image, labels, *other)[0])


def test_another_process_draws_the_same() -> None:
    script = (
        "import numpy as np, zlib; from segdeform.data.transforms import TrainTransform;"
        "x = (np.arange(90 * 120 * 3) % 251).astype(np.uint8).reshape(90, 120, 3);"
        "t = TrainTransform((48, 64), (0.5, 2.0), 0.9, 0.5, 20.0, 0.4);"
        "drawn = zlib.crc32(b''.join(a.tobytes() for a in t(x, x[..., 0] // 64, 3, 1, 7)));"
    )
    here: dict[str, int] = {}
    exec(script, {}, here)
    command = [sys.executable, "-c", f"{script} print(drawn)"]
    other = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(other.stdout) == here["drawn"]


@pytest.mark.parametrize("rotate", [0.0, 40.0])
def test_picture_and_labels_move_together(rotate: float) -> None:
    labels = blobs()
    agreeing = total = 0
    for index in range(40):
        image, mask = transform(rotate=rotate)(as_picture(labels), labels, 0, 0, index)
        assert image.shape == (48, 64, 3)
        assert mask.shape == (48, 64)
        assert image.dtype == mask.dtype == np.uint8
        known = mask != IGNORE
        nearest = np.clip(np.rint((image[..., 0].astype(int) - 20) / 60), 0, 3)
        agreeing += int((nearest == mask)[known].sum())
        total += int(known.sum())
        # Where a pixel's neighbours all have its label, no resampling may blur it.
        inner = np.zeros_like(known)
        inner[2:-2, 2:-2] = np.all(
            [
                np.roll(mask, (dy, dx), (0, 1))[2:-2, 2:-2] == mask[2:-2, 2:-2]
                for dy in range(-2, 3)
                for dx in range(-2, 3)
            ],
            axis=0,
        )
        np.testing.assert_array_equal(nearest[inner & known], mask[inner & known])
    assert agreeing > 0.93 * total


def test_without_scaling_the_crop_is_a_cut_out_of_the_picture() -> None:
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    labels = image[..., 0] // 64
    corners = set()
    for index in range(200):
        crop, mask = transform((50, 70), (1.0, 1.0), flip=0.0)(image, labels, 0, 0, index)
        places = [
            (y, x)
            for y in range(11)
            for x in range(11)
            if np.array_equal(crop, image[y : y + 50, x : x + 70])
        ]
        assert len(places) == 1
        (y, x) = places[0]
        np.testing.assert_array_equal(mask, labels[y : y + 50, x : x + 70])
        corners.add((y, x))
    assert {y for y, _ in corners} == {x for _, x in corners} == set(range(11))


def test_flips_are_left_to_right_and_as_frequent_as_asked() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    labels = image[..., 1] // 64
    flipped = 0
    for index in range(300):
        crop, mask = transform((20, 30), (1.0, 1.0), flip=0.3)(image, labels, 0, 0, index)
        turned = not np.array_equal(crop, image)
        expected = (image[:, ::-1], labels[:, ::-1]) if turned else (image, labels)
        np.testing.assert_array_equal(crop, expected[0])
        np.testing.assert_array_equal(mask, expected[1])
        flipped += turned
    assert 60 < flipped < 120


def test_outside_the_picture_is_ignored_and_nothing_of_it_is_lost() -> None:
    labels = np.full((20, 30), 2, np.uint8)
    for index in range(30):
        image, mask = transform((64, 64), (1.0, 1.0))(as_picture(labels), labels, 0, 0, index)
        assert set(np.unique(mask)) == {2, IGNORE}
        assert (mask == 2).sum() == 600
        assert np.all(image[mask == 2] == 140)
        assert np.all(image[mask == IGNORE] == (124, 116, 104))


def test_scales_are_log_uniform() -> None:
    labels = np.zeros((40, 40), np.uint8)
    shares = [
        (transform((160, 160), (0.25, 4.0))(as_picture(labels), labels, 0, 0, i)[1] == 0).mean()
        for i in range(300)
    ]
    scales = 4 * np.sqrt(shares)
    assert scales.min() < 0.3
    assert scales.max() > 3.5
    quartiles = np.log2(np.quantile(scales, [0.25, 0.5, 0.75]))
    np.testing.assert_allclose(quartiles, [-1, 0, 1], atol=0.35)


def test_crops_of_one_class_are_drawn_again() -> None:
    labels = np.zeros((100, 400), np.uint8)
    labels[:, 360:] = 1

    def mixed(share: float) -> int:
        cut = transform((40, 40), (1.0, 1.0), share)
        crops = [cut(as_picture(labels), labels, 0, 0, i)[1] for i in range(100)]
        return sum(len(np.unique(crop)) == 2 for crop in crops)

    assert mixed(1.0) < 25
    assert mixed(0.9) > 50
    full = np.zeros((50, 50), np.uint8)  # no crop can satisfy the wish: it must still end
    assert transform((40, 40), (1.0, 1.0), 0.5)(as_picture(full), full, 0, 0, 0)[1].max() == 0


def test_colours_vary_and_labels_do_not() -> None:
    labels = blobs()
    image = np.random.default_rng(0).integers(60, 200, (90, 120, 3), dtype=np.uint8)
    image[..., 2] //= 2  # yellowish
    cut = transform((90, 120), (1.0, 1.0), flip=0.0, color=0.4)
    means = []
    for index in range(60):
        crop, mask = cut(image, labels, 0, 0, index)
        np.testing.assert_array_equal(mask, labels)
        means.append(crop.mean(axis=(0, 1)))
    spread = np.std(means, axis=0)
    assert np.all(spread > 10)
    red, green, _ = np.transpose(means)
    assert np.ptp(red - green) > 10, "red and green never part: the hue stays"
    plain = transform((90, 120), (1.0, 1.0), flip=0.0)(image, labels, 0, 0, 0)[0]
    np.testing.assert_array_equal(plain, image)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (7, 3)])
def test_tiny_pictures_give_whole_crops(size: tuple[int, int]) -> None:
    labels = np.ones(size, np.uint8)
    for index in range(20):
        image, mask = transform((33, 17), rotate=45, color=0.3)(
            as_picture(labels), labels, 0, 0, index
        )
        assert image.shape == (33, 17, 3)
        assert set(np.unique(mask)) <= {1, IGNORE}


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 9])
def test_pictures_of_any_channels_are_cut_as_each_channel_in_rgb(channels: int) -> None:
    """Sizes, places, turns and flips are those of RGB; each channel is what it is by itself."""
    labels = blobs()
    rng = np.random.default_rng(channels)
    image = rng.integers(0, 256, (90, 120, channels), dtype=np.uint8)
    mean = rng.random(channels)
    of_any = TrainTransform((48, 64), (0.4, 2.5), 1.0, 0.5, 25.0, 0.0, mean)
    for index in range(12):
        picture, mask = of_any(image, labels, 1, 2, index)
        assert picture.shape == (48, 64, channels) and picture.flags.c_contiguous
        for channel in range(channels):
            alone = np.repeat(image[..., channel : channel + 1], 3, axis=2)
            of_rgb = TrainTransform((48, 64), (0.4, 2.5), 1.0, 0.5, 25.0, 0.0, [mean[channel]] * 3)
            expected, expected_mask = of_rgb(alone, labels, 1, 2, index)
            np.testing.assert_array_equal(mask, expected_mask)
            # OpenCV rounds places to 1/32 of a pixel, for some numbers of channels only.
            difference = picture[..., channel].astype(int) - expected[..., 0]
            assert np.abs(difference).max() <= 255 / 32


@pytest.mark.parametrize("channels", [1, 5])
def test_brightness_and_contrast_are_one_for_all_channels(channels: int) -> None:
    labels = blobs(48, 64)[:48, :64]
    rng = np.random.default_rng(channels)
    image = rng.integers(0, 256, (*labels.shape, channels), dtype=np.uint8)
    plain = TrainTransform(labels.shape, (1, 1), 1.0, 0.0, 0.0, 0.0, [0.5] * channels)
    varied = TrainTransform(labels.shape, (1, 1), 1.0, 0.0, 0.0, 0.6, [0.5] * channels)
    factors = set()
    for index in range(8):
        before = plain(image, labels, 1, 2, index)[0]
        after = varied(image, labels, 1, 2, index)[0]
        # One table for all channels, that never falls: the same value becomes the same value.
        table = np.full(256, -1)
        table[before.ravel()] = after.ravel()
        np.testing.assert_array_equal(table[before], after)
        assert (np.diff(table[table >= 0]) >= 0).all()
        middle = table[60], table[190]
        factors.add(middle)
        assert middle[0] != middle[1]
    assert len(factors) == 8


def test_brightness_is_a_product_and_contrast_goes_from_the_mean() -> None:
    image = np.array([[[10, 20], [30, 100]]], np.uint8)
    np.testing.assert_array_equal(_brightened(image, 1.5, 1.0), [[[15, 30], [45, 150]]])
    np.testing.assert_array_equal(_brightened(image, 1.0, 0.5), [[[25, 30], [35, 70]]])
    np.testing.assert_array_equal(_brightened(image, 3.0, 2.0), [[[0, 11], [71, 255]]])
