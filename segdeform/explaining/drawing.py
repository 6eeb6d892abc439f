"""Pictures of what deformable layers do: sampling points on the photograph, maps of offsets."""

from __future__ import annotations

import colorsys

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from segdeform.explaining.sampling import LayerSampling, Points

Picture = NDArray[np.uint8]  # [H, W, 3] RGB
Color = tuple[int, int, int]

_SIDE = 960  # pixels, at least, of the longer side of a drawing: points need room
_LARGEST = 2400  # and at most


def point_colours(count: int) -> list[Color]:
    """Returns bright colours that differ in hue, one for each point looked at."""
    hues = [(0.98 + i * 0.381966) % 1 for i in range(count)]  # the golden angle: never close
    return [tuple(round(255 * v) for v in colorsys.hsv_to_rgb(h, 0.85, 1)) for h in hues]  # type: ignore[misc]


def draw_points(
    image: Picture,
    places: list[tuple[int, int]],  # y, x, pixels
    points: list[Points],  # of each place
) -> Image.Image:
    """Draws the samples of each place in its colour, the larger the more they weigh."""
    longer = max(image.shape[:2])
    scale = min(max(1.0, _SIDE / longer), max(1.0, _LARGEST / longer))
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    grey = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC).convert("L")
    canvas = Image.blend(grey.convert("RGB"), Image.new("RGB", size, (255, 255, 255)), 0.25)
    draw = ImageDraw.Draw(canvas)
    unit = max(size) / 400  # radius of a sample of mean weight

    def circle(y: float, x: float, radius: float, **colours: Color) -> None:
        cy, cx = (y + 0.5) * scale, (x + 0.5) * scale
        draw.ellipse((cx - radius, cy - radius, cx + radius, cy + radius), **colours)  # type: ignore[arg-type]

    colours = point_colours(len(places))
    for colour, found in zip(colours, points, strict=True):
        for y, x, radius in zip(found.y, found.x, point_radii(found.weight), strict=True):
            circle(y, x, unit * radius, fill=colour)
    for (y, x), colour in zip(places, colours, strict=True):
        circle(y, x, 3.5 * unit, fill=colour, outline=(0, 0, 0))
        circle(y, x, 1.5 * unit, fill=(255, 255, 255))
    return canvas


def point_radii(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns radii whose squares are as the weights, 1 for the mean; within sight and reason."""
    mean = max(float(weight.mean()), 1e-6) if len(weight) else 1.0
    return np.clip(np.sqrt(np.maximum(weight, 0) / np.float32(mean)), 0.5, 2.5)


def draw_offsets(layer: LayerSampling, image_size: tuple[int, int], largest: float) -> Image.Image:
    """Draws how far samples are moved: black for 0, through red and yellow to white for `largest`.

    `largest` and the map are in pixels of the picture, [H, W] = image_size.
    """
    share = np.clip(layer.offset_length() / max(largest, 1e-6), 0, 1)[..., None]  # [P, Q, 1]
    ramp = np.clip(3 * share - np.array([0, 1, 2]), 0, 1)
    heat = Image.fromarray((255 * ramp).astype(np.uint8))
    rows, columns = layer.size
    stride = layer.output_stride
    grown = heat.resize((columns * stride, rows * stride), Image.Resampling.NEAREST)
    # A place is centred on its pixel: half a step of it lies before the picture's edge.
    left = top = stride // 2
    padded = Image.new("RGB", (left + image_size[1], top + image_size[0]))
    padded.paste(grown, (0, 0))
    return padded.crop((left, top, left + image_size[1], top + image_size[0]))
