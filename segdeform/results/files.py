"""Files of a result: each output as `outputs.KINDS` has it, whole or not there.

Giant pictures are written in strips, without a copy of the whole. What is written raises
ResourceError or UsageError where it cannot be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeform.data.image_io import write_image, write_index_png
from segdeform.data.label_files import PNG_GREY, PNG_RGBA, write_index_tiff, write_png_rows
from segdeform.errors import UsageError, nearest
from segdeform.files.atomic import atomic_path, write_json, write_text
from segdeform.results.cutout import cutout, cutout_rows
from segdeform.results.outputs import KINDS, Forms
from segdeform.results.overlay import reduced_overlay
from segdeform.results.polygons import geojson_text
from segdeform.results.probabilities import write_probabilities

if TYPE_CHECKING:
    from segdeform.results.result import Result

_IN_STRIPS = 2**24  # pixels, beyond which a picture is written without a copy of the whole
_ROWS = 256  # of such a strip
# What a file holds when nothing but its name is given.
_BY_SUFFIX = {
    ".png": "masks",
    ".tif": "masks",
    ".tiff": "masks",
    ".jpg": "overlays",
    ".jpeg": "overlays",
    ".npz": "probabilities",
    ".geojson": "polygons",
    ".json": "json",
}


def output_of(path: Path) -> str:
    """Returns the output that a file of this name holds. Raises UsageError for no known suffix."""
    suffix = path.suffix.lower()
    if suffix not in _BY_SUFFIX:
        raise UsageError(f"{path}: ends in no known suffix.{nearest(suffix, _BY_SUFFIX)}")
    return _BY_SUFFIX[suffix]


def refuse_misnamed(path: Path, name: str) -> None:
    """Raises UsageError for a name that no file has, or that ends like one of another output."""
    if "\0" in str(path):
        raise UsageError(f"{str(path)!r}: no name of a file holds a NUL")
    own = [*KINDS[name].suffixes, *(end[1:] for end, kind in _BY_SUFFIX.items() if kind == name)]
    ends = [f".{end}" for end in own if end != "mp4"]  # of videos
    known = {*_BY_SUFFIX, *(f".{end}" for kind in KINDS.values() for end in kind.suffixes)}
    if (suffix := path.suffix.lower()) in known and suffix not in ends:
        raise UsageError(
            f"{path}: {name} are no file that ends in {suffix}: {' or '.join(dict.fromkeys(ends))}"
        )


def write_output(
    path: Path,
    name: str,
    result: Result,
    forms: Forms,
    known: Mapping[str, Any] | None = None,  # JSON values that begin the facts
) -> None:
    """Writes one output; a mask is a TIFF where its path says so."""
    labels, classes = result.labels, result.classes
    match name:
        case "masks" if path.suffix.lower() in (".tif", ".tiff"):
            write_index_tiff(path, labels, result.palette, result.place)
        case "masks":
            write_index_png(path, labels, result.palette)
        case "overlays":
            write_image(path, reduced_overlay(result.image, labels, result.palette))
        case "confidence":
            _write_confidence(path, result)
        case "probabilities":
            with atomic_path(path) as temporary:
                kind = forms.probabilities_type
                write_probabilities(temporary, result.probabilities, classes, kind)
        case "polygons":
            how = forms.of("polygons")
            text = geojson_text(labels, classes, georeference=result.place, **how)
            with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
                file.writelines(text)
        case "rle":
            write_text(path, json.dumps(result.rle()) + "\n")
        case "cutouts":
            _write_cutout(path, result, forms)
        case "json":
            write_json(path, {**(known or {}), **result.facts()})


def _write_confidence(path: Path, result: Result) -> None:
    values = result.confidence
    if values.size <= _IN_STRIPS:
        write_image(path, values)
        return
    strips = (values[top : top + _ROWS] for top in range(0, len(values), _ROWS))
    write_png_rows(path, result.size, PNG_GREY, 8, strips)


def _write_cutout(path: Path, result: Result, forms: Forms) -> None:
    forms.check(["cutouts"], result.classes)
    assert forms.cutout_class is not None  # it was checked
    label = result.classes.index(forms.cutout_class)
    if result.labels.size <= _IN_STRIPS:
        write_image(path, cutout(result.image, result.labels, label))
        return
    strips = cutout_rows(result.image, result.labels, label)
    write_png_rows(path, result.size, PNG_RGBA, 8, strips)
