"""Random crops, flips and colours for training, each a pure function of (seed, epoch, index).

All random numbers are drawn here; OpenCV and albumentations then do the work on the pixels.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeform.config.schema import IMAGENET_MEAN
from segdeform.data.augment import Augmentation, Entry
from segdeform.data.dataset import Labels
from segdeform.data.image_io import UInt8

# Asked for at import, or albumentations looks for a newer version on the network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import albumentations
import cv2

Pixels = NDArray[Any]  # of a picture, [H, W, C] uint8, or its labels, [H, W]

_AT_ONCE = 4  # channels; of more, OpenCV cannot fill what lies outside
_CROP_TRIES = 10
_COLOUR = albumentations.ColorJitter()
_AUGMENTATION = 1  # keeps these draws apart from those of the epochs' orders


class TrainTransform:
    """Cuts a random crop out of a picture and its labels and varies it.

    `crop` is the result's (H, W) in pixels; `scale` the range of the resizing factor, drawn
    log-uniformly; crops in which one class covers more than `max_class_share` of the labelled
    pixels are drawn again (ten times at most); `flip` is the probability of a left-right flip,
    `rotate` the largest rotation in degrees, `color` the strength of the jitter of brightness,
    contrast and saturation (factors within 1 - color .. 1 + color) and of hue (a quarter of it).
    Pictures of other than three channels have no saturation and hue: brightness and contrast are
    one factor each for all channels. `mean` is what is shown outside of the picture, of 0..1, one a
    channel: zero after normalisation. `augment` are more transforms, see `augment.Augmentation`.
    `class_balance` is the probability that a crop holds a pixel that was drawn for its class.
    """

    def __init__(
        self,
        crop: tuple[int, int],
        scale: tuple[float, float],
        max_class_share: float,
        flip: float,
        rotate: float,
        color: float,
        mean: Sequence[float] = IMAGENET_MEAN,
        augment: Sequence[Entry] = (),
        class_balance: float = 0.0,
    ) -> None:
        self.crop = crop
        self.scale = scale
        self.max_class_share = max_class_share
        self.flip = flip
        self.rotate = rotate
        self.color = color
        self.fill = tuple(round(255 * value) for value in mean)
        self.augment = tuple(augment)
        self.class_balance = class_balance
        self._augmentation: Augmentation | None = None  # made when the first labels tell their type

    def __call__(
        self,
        image: UInt8,  # [H, W, C], RGB where C is 3
        labels: Labels,  # [H, W]
        seed: int,
        epoch: int,
        index: int,
    ) -> tuple[UInt8, Labels]:  # [h, w, C], [h, w]: the crop's size
        """Returns a crop of the picture and its labels; the arguments alone decide which.

        Outside the picture, the crop shows a mean colour, and a label that is ignored.
        """
        rng = np.random.Generator(
            np.random.Philox(
                key=np.array([seed, epoch], np.uint64), counter=[0, 0, index, _AUGMENTATION]
            )
        )
        low, high = self.scale
        factor = math.exp(rng.uniform(math.log(low), math.log(high)))
        angle = rng.uniform(-self.rotate, self.rotate) if self.rotate else 0.0
        size = _bounding_size(self.crop, angle)
        window = self._draw_window(labels, size, factor, angle, rng)
        image = _cut(image, window, size, self.fill)
        labels = _cut(labels, window, size, _ignored(labels))
        if angle:
            image = _turn(image, angle, self.crop, cv2.INTER_LINEAR, self.fill)
            labels = _turn(labels, angle, self.crop, cv2.INTER_NEAREST, _ignored(labels))
        if rng.random() < self.flip:
            image, labels = _mirror(image), _mirror(labels)
        if self.color:
            image = _jitter(image, self.color, rng)
        if self.augment:
            if self._augmentation is None:
                self._augmentation = Augmentation(self.augment, self.fill, _ignored(labels))
            image, labels = self._augmentation(image, labels, seed, epoch, index)
        return image, labels

    def _draw_window(
        self,
        labels: Labels,
        size: tuple[int, int],
        factor: float,
        angle: float,
        rng: np.random.Generator,
    ) -> tuple[int, int, int, int]:
        """Draws the (top, left, bottom, right) of the source pixels that fill the crop."""
        height, width = (max(1, round(side / factor)) for side in size)
        pixel: Sequence[int | None] = (None, None)
        if self.class_balance and rng.random() < self.class_balance:
            pixel = _pixel_of_a_class(labels, rng)
        for _ in range(_CROP_TRIES):
            # A window larger than the picture hangs over its edges by a random share.
            top, left = (
                _draw_start(side, length, inside, rng)
                for side, length, inside in zip(labels.shape, (height, width), pixel, strict=True)
            )
            window = (top, left, top + height, left + width)
            inside = labels[max(0, top) : top + height, max(0, left) : left + width]
            if not _is_in_turned_crop(pixel, window, factor, angle, self.crop):
                continue
            if self.max_class_share >= 1 or _largest_share(inside) <= self.max_class_share:
                break
        return window


def _draw_start(side: int, length: int, inside: int | None, rng: np.random.Generator) -> int:
    """Draws where a window begins along a side, so that it holds a place where one is given."""
    low, high = min(0, side - length), max(0, side - length)
    if inside is not None:
        low, high = max(low, inside - length + 1), min(high, inside)
    return int(rng.integers(low, high, endpoint=True))


def _is_in_turned_crop(
    pixel: Sequence[int | None],
    window: tuple[int, int, int, int],
    factor: float,
    angle: float,
    crop: tuple[int, int],
) -> bool:
    """Tells whether a place of a window, if one is given, is still there once the window is turned.

    The window's corners are cut off then: half of its pixels at 45 degrees.
    """
    row, column = pixel
    if row is None or column is None or not angle:
        return True
    y = factor * (row - (window[0] + window[2] - 1) / 2)
    x = factor * (column - (window[1] + window[3] - 1) / 2)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    turned = (cosine * y - sine * x, cosine * x + sine * y)
    return all(abs(way) <= (side - 1) / 2 for way, side in zip(turned, crop, strict=True))


def _pixel_of_a_class(labels: Labels, rng: np.random.Generator) -> Sequence[int | None]:
    """Draws one of the classes of a picture, and one of its pixels.

    Returns its row and column, nothing where no pixel has a label.
    """
    ignored = _ignored(labels)
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=ignored + 1)[:ignored])
    if not len(present):
        return None, None
    chosen = present[rng.integers(len(present))]
    places = np.flatnonzero(labels.ravel() == chosen)
    row, column = divmod(int(places[rng.integers(len(places))]), labels.shape[1])
    return row, column


def _ignored(labels: Labels) -> int:
    """Returns the label that is ignored: the highest value, of 8 bits and of 16."""
    return int(np.iinfo(labels.dtype).max)


def _largest_share(labels: Labels) -> float:
    ignored = _ignored(labels)
    counts = np.bincount(labels.ravel(), minlength=ignored + 1)[:ignored]
    return float(counts.max() / max(1, counts.sum()))


def _bounding_size(crop: tuple[int, int], angle: float) -> tuple[int, int]:
    """Returns (H, W) of the upright rectangle that holds the crop turned by `angle` degrees."""
    height, width = crop
    cosine, sine = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    return (
        math.ceil(height * cosine + width * sine),
        math.ceil(height * sine + width * cosine),
    )


def _cut(
    pixels: Pixels,
    window: tuple[int, int, int, int],
    size: tuple[int, int],
    fill: int | tuple[int, ...],
) -> Pixels:
    """Resizes the window of `pixels` to `size` (H, W): only its pixels are ever touched."""
    top, left, bottom, right = window
    height, width = pixels.shape[:2]
    source = pixels[max(0, top) : min(bottom, height), max(0, left) : min(right, width)]
    # Where the source's edges fall in the result, which it fills unless the window hangs over.
    rows = [round((y - top) * size[0] / (bottom - top)) for y in _clip(top, bottom, height)]
    columns = [round((x - left) * size[1] / (right - left)) for x in _clip(left, right, width)]
    inner = (max(1, rows[1] - rows[0]), max(1, columns[1] - columns[0]))
    method = cv2.INTER_NEAREST_EXACT
    if pixels.ndim == 3:
        # Linear samples 2x2 pixels, enough down to half the size and 7 times faster than areas.
        method = cv2.INTER_AREA if 2 * inner[0] < source.shape[0] else cv2.INTER_LINEAR

    def resize(part: Pixels) -> Pixels:
        return np.asarray(cv2.resize(part, inner[::-1], interpolation=method))

    resized = _by_channels(np.ascontiguousarray(source), resize)
    if inner == size:
        return resized
    result = np.empty((*size, *pixels.shape[2:]), pixels.dtype)
    result[:] = fill
    y, x = min(rows[0], size[0] - 1), min(columns[0], size[1] - 1)
    result[y : y + inner[0], x : x + inner[1]] = resized
    return result


def _clip(start: int, end: int, limit: int) -> tuple[int, int]:
    return max(0, start), min(end, limit)


def _turn(
    pixels: Pixels,
    angle: float,
    size: tuple[int, int],
    method: int,
    fill: int | tuple[int, ...],
) -> Pixels:
    """Rotates by `angle` degrees about the centre and keeps the central (H, W) = `size`."""
    centre = ((pixels.shape[1] - 1) / 2, (pixels.shape[0] - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, angle, 1.0)
    matrix[:, 2] += ((size[1] - 1) / 2 - centre[0], (size[0] - 1) / 2 - centre[1])
    fills = [fill] if isinstance(fill, int) else list(fill)

    def turn(part: Pixels) -> Pixels:
        border = [fills.pop(0) for _ in range(part.shape[2] if part.ndim == 3 else 1)]
        turned = cv2.warpAffine(
            part,
            matrix,
            size[::-1],
            flags=method,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=border,
        )
        return np.asarray(turned)

    return _by_channels(pixels, turn)


def _by_channels(pixels: Pixels, work: Callable[[Pixels], Pixels]) -> Pixels:
    """Has OpenCV work on as many channels at once as it can, one after the other."""
    if pixels.ndim == 2 or 1 < pixels.shape[2] <= _AT_ONCE:
        return work(pixels)
    parts = [
        work(np.ascontiguousarray(pixels[..., first : first + _AT_ONCE]))
        for first in range(0, pixels.shape[2], _AT_ONCE)
    ]
    return np.concatenate([part if part.ndim == 3 else part[..., None] for part in parts], axis=2)


def _mirror(pixels: Pixels) -> Pixels:
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        return np.ascontiguousarray(pixels[:, ::-1])
    return np.asarray(cv2.flip(pixels, 1))


def _jitter(image: UInt8, strength: float, rng: np.random.Generator) -> UInt8:
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, size=3)
    hue = rng.uniform(-strength, strength) / 4
    if image.shape[2] != 3:
        return _brightened(image, brightness, contrast)
    # Applied, not called: a call would draw factors and order from a generator of its own.
    jittered = _COLOUR.apply(image, brightness, contrast, saturation, hue, order=[0, 1, 2, 3])
    return np.asarray(jittered)


def _brightened(image: UInt8, brightness: float, contrast: float) -> UInt8:
    """Multiplies all values, then their distances from their mean over all channels."""
    values = np.arange(256, dtype=np.float64)
    bright = np.minimum(np.rint(values * brightness), 255)
    counts = np.bincount(image.ravel(), minlength=256)
    mean = float(counts @ bright) / image.size
    table = np.clip(np.rint(mean + (bright - mean) * contrast), 0, 255).astype(np.uint8)
    return np.asarray(table[image])
