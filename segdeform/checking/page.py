"""Writes the result of a check as one HTML page, with pictures of what is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from segdeform.checking.finding import KINDS, Finding
from segdeform.checking.report import Report
from segdeform.checking.weights import RULE
from segdeform.data.channels import shown_colours
from segdeform.data.dataset import Dataset, read_pair, read_picture
from segdeform.data.image_io import opened
from segdeform.errors import SegdeformError
from segdeform.files.atomic import write_text
from segdeform.files.html import data_uri, page_template
from segdeform.results.overlay import overlay

_PICTURED = 6  # findings of a kind that are shown with their pictures
_SAMPLES = 4  # pairs of a split that are shown whatever is found
_LISTED = 60  # findings of a kind that are listed at all; the JSON has every one
_SIDE = 240  # pixels, the longer side of a thumbnail
_OUTSIDE = (255, 0, 255)  # the colour of pixels outside the classes
_VOID = (224, 224, 224)


@dataclass(frozen=True)
class _Shown:
    finding: Finding
    picture: str  # data URI, or ""
    mask: str


@dataclass(frozen=True)
class _Sample:
    name: str
    picture: str  # data URI
    tinted: str  # data URI, the picture under its mask's colours


def write_page(path: Path, report: Report, datasets: Sequence[Dataset]) -> None:
    """Writes the report as one self-contained file: no script, nothing loaded from elsewhere.

    Raises ResourceError or UsageError when it cannot be written.
    """
    by_split = {dataset.split: dataset for dataset in datasets}
    groups = [
        {
            "kind": KINDS[kind],
            "count": len(findings),
            "pictured": [_show(by_split, finding) for finding in findings[:_PICTURED]],
            "listed": findings[_PICTURED:_LISTED],
            "more": max(0, len(findings) - _LISTED),
        }
        for kind, findings in report.by_kind().items()
    ]
    page = page_template("segdeform.checking", "page.html.j2").render(
        report=report,
        groups=groups,
        rows=_class_rows(report, datasets[0]),
        samples=[(dataset.split, shown) for dataset in datasets if (shown := _samples(dataset))],
        rule=RULE,
        weights=", ".join(f"{weight:g}" for weight in report.class_weights()),
    )
    write_text(path, page)


def _samples(dataset: Dataset) -> list[_Sample]:
    """Makes thumbnails of a few pairs, evenly over a split; what cannot be read is left out."""
    colours = np.full((dataset.ignore + 1, 3), _VOID, np.uint8)
    colours[: len(dataset.palette)] = dataset.palette
    palette = [(int(red), int(green), int(blue)) for red, green, blue in colours]
    shown = []
    count = min(_SAMPLES, len(dataset))
    for index in dict.fromkeys(np.linspace(0, len(dataset) - 1, count).round().astype(int)):
        try:
            picture, labels = read_pair(dataset, int(index))
        except SegdeformError:
            continue
        pixels = shown_colours(picture)
        plain, tinted = (
            data_uri(_small(Image.fromarray(np.ascontiguousarray(image))), "JPEG")
            for image in (pixels, overlay(pixels, labels, palette))
        )
        shown.append(_Sample(dataset.samples[index].name, plain, tinted))
    return shown


def _class_rows(report: Report, dataset: Dataset) -> list[dict[str, Any]]:
    shares = [split.shares() for split in report.splits]
    return [
        {
            "name": name,
            "index": index,
            "colour": "#{:02x}{:02x}{:02x}".format(*dataset.palette[index]),
            "shares": [column[index] for column in shares],
        }
        for index, name in enumerate(report.classes)
    ]


def _show(datasets: dict[str, Dataset], finding: Finding) -> _Shown:
    """Makes the thumbnails of a finding; whatever cannot be shown is left out."""
    if finding.sample is None:
        return _Shown(finding, "", "")
    dataset = datasets[finding.split]
    sample = dataset.samples[finding.sample]
    try:
        pixels = shown_colours(read_picture(dataset, finding.sample))
        picture = data_uri(_small(Image.fromarray(pixels)), "JPEG")
    except SegdeformError:
        picture = ""
    try:
        mask = _mask_picture(dataset, sample.mask, finding) if sample.mask else ""
    except SegdeformError:
        mask = ""
    return _Shown(finding, picture, mask)


def _mask_picture(dataset: Dataset, path: Path, finding: Finding) -> str:
    """Draws a mask in its classes' colours, and a ring around the pixel of the finding."""
    try:
        labels = dataset.lookup[dataset.decode_mask(path)]
        colours = np.full((dataset.ignore + 2, 3), _VOID, np.uint8)
        colours[: len(dataset.palette)] = dataset.palette
        colours[-1] = _OUTSIDE  # of label -1
        shown = Image.fromarray(colours[labels])
    except SegdeformError:  # a mask of another kind is shown as it is
        with opened(path) as image:
            shown = image.convert("RGB")
    small = _small(shown, Image.Resampling.NEAREST)
    place = finding.place
    if place is not None and place.row is not None and place.column is not None:
        scale = small.width / shown.width
        x, y = (place.column + 0.5) * scale, (place.row + 0.5) * scale
        drawer = ImageDraw.Draw(small)
        for radius, colour in ((9, "black"), (8, "white"), (7, "black")):
            drawer.ellipse((x - radius, y - radius, x + radius, y + radius), outline=colour)
    return data_uri(small, "PNG")


def _small(image: Image.Image, method: Image.Resampling = Image.Resampling.BILINEAR) -> Image.Image:
    factor = _SIDE / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, method, reducing_gap=2.0 if factor < 1 and method != 0 else None)
