"""All of `segdeform explain`: one picture looked at, a split measured, everything written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from segdeform.data.channels import shown_colours
from segdeform.data.dataset import Labels
from segdeform.errors import UsageError
from segdeform.explaining.clickable import render_page
from segdeform.explaining.drawing import draw_offsets, draw_points, point_colours
from segdeform.explaining.regions import region_centres
from segdeform.explaining.sampling import LayerSampling, follow, place_of, record
from segdeform.explaining.statistics import LayerStatistics
from segdeform.files.atomic import atomic_path, write_error, write_json, write_text
from segdeform.segmenter import Segmenter

_REGIONS = 6  # looked at where no point is given


def explain_picture(
    segmenter: Segmenter,
    picture: Path,
    output: Path,
    at: Sequence[tuple[int, int]] = (),  # x, y in pixels; none: the middles of predicted regions
) -> dict[str, Any]:
    """Writes points.png, offsets-N.png, index.html and explain.json; returns what is in the last.

    Raises:
        UsageError: a point lies outside the picture, or the folder cannot be written.
        ModelError: no deformable layers.
        DataError: the picture cannot be read or is too large.
    """
    image = segmenter.read(picture)
    height, width = image.shape[:2]
    for x, y in at:
        if not (0 <= x < width and 0 <= y < height):
            raise UsageError(
                f"--at {x},{y}: outside {picture}, which is {width} pixels wide and {height} high"
            )
    layers, labels = record(segmenter, image)
    pixels = [(y, x) for x, y in at] or region_centres(labels, _REGIONS)
    shown = shown_colours(image)
    facts = _facts(segmenter, picture, layers, labels, pixels)
    points = [follow(layers, place_of(layers[-1], pixel)) for pixel in pixels]
    largest = max(float(layer.offset_length().max()) for layer in layers)
    _make_folder(output)
    drawings = {"points.png": draw_points(shown, pixels, points)} | {
        f"offsets-{number}.png": draw_offsets(layer, (height, width), largest)
        for number, layer in enumerate(layers, 1)
    }
    for name, drawing in drawings.items():
        with atomic_path(output / name) as part:
            drawing.save(part, format="PNG")
    write_text(output / "index.html", render_page(picture.name, shown, layers, pixels, facts))
    write_json(output / "explain.json", facts)
    return facts


def _facts(
    segmenter: Segmenter,
    picture: Path,
    layers: list[LayerSampling],
    labels: Labels,  # [H, W]
    pixels: list[tuple[int, int]],  # y, x
) -> dict[str, Any]:
    colours = point_colours(len(pixels))
    return {
        "picture": str(picture),
        "size": list(labels.shape),
        "model": segmenter.info["path"],
        "sha256": segmenter.info["sha256"],
        "layers": [_layer_facts(layer) for layer in layers],
        "points": [
            _point_facts(segmenter, layers, labels, pixel, colour)
            for pixel, colour in zip(pixels, colours, strict=True)
        ],
    }


def _layer_facts(layer: LayerSampling) -> dict[str, Any]:
    return {
        "name": layer.name,
        "kernel": list(layer.kernel),
        "dilation": list(layer.dilation),
        "output_stride": layer.output_stride,
        "effective_dilation": _number(layer.effective_dilation().mean()),
        "mean_offset_pixels": _number(layer.offset_length().mean()),
        "largest_offset_pixels": _number(layer.offset_length().max()),
        "share_outside": _number(layer.outside().mean()),
        "modulation": [_number(np.quantile(layer.modulation, q)) for q in (0.05, 0.5, 0.95)],
    }


def _point_facts(
    segmenter: Segmenter,
    layers: list[LayerSampling],
    labels: Labels,
    pixel: tuple[int, int],
    colour: tuple[int, int, int],
) -> dict[str, Any]:
    place = place_of(layers[-1], pixel)
    points = follow(layers, place)
    row, column = place
    reach = np.hypot(points.y - pixel[0], points.x - pixel[1])
    return {
        "x": pixel[1],
        "y": pixel[0],
        "class": segmenter.classes[labels[pixel]],
        "colour": "#{:02x}{:02x}{:02x}".format(*colour),
        "effective_dilation": _number(layers[-1].effective_dilation()[:, row, column].mean()),
        "samples": len(points.y),
        "samples_outside": points.lost,
        "median_reach_pixels": _number(np.median(reach)) if len(reach) else None,
        "at": np.stack([points.x, points.y], 1).round(2).tolist(),
        "weights": points.weight.round(4).tolist(),
    }


def _number(value: Any) -> float | None:
    number = round(float(value), 4)
    return number if np.isfinite(number) else None  # a kernel of one tap has no dilation


def write_dilation(
    output: Path, statistics: Sequence[LayerStatistics], classes: tuple[str, ...], source: str
) -> dict[str, Any]:
    """Writes dilation.json: effective dilation by layer and class; returns its content."""
    facts = {"data": source, "layers": [layer.to_json(classes) for layer in statistics]}
    _make_folder(output)
    write_json(output / "dilation.json", facts)
    return facts


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
