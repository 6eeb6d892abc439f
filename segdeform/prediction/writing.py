"""What is made of a picture: its labels, and the files that show them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from segdeform.callbacks import Stop
from segdeform.data.image_io import write_image, write_index_png
from segdeform.data.label_files import (
    PNG_GREY,
    PNG_RGBA,
    write_index_tiff,
    write_png_rows,
)
from segdeform.errors import (
    InterruptedByUserError,
    PartialFailureError,
    ResourceError,
    SegdeformError,
)
from segdeform.files.atomic import atomic_path, write_json, write_text
from segdeform.prediction.job import Job, Task
from segdeform.prediction.place import every_path, mask_suffix, output_path
from segdeform.prediction.reading import Seen, failure_of
from segdeform.prediction.records import Done
from segdeform.results.cutout import cutout, cutout_rows
from segdeform.results.overlay import reduced_overlay, reduction
from segdeform.results.polygons import features, geojson_lines
from segdeform.results.probabilities import write_probabilities
from segdeform.results.result import Result
from segdeform.results.rle import coco_dataset

_IN_STRIPS = 2**24  # pixels, beyond which a picture is written without a copy of the whole
_ROWS = 256  # of such a strip


def label_picture(job: Job, task: Task, seen: Seen, stop: Stop | None) -> Result:
    """Labels a picture, with all that its outputs need.

    Raises PartialFailureError for what concerns it alone, InterruptedByUserError after a stop.
    """
    assert seen.image is not None
    try:
        return job.segmenter.label(
            seen.image,
            stop=stop,
            confidence=not {"confidence", "json"}.isdisjoint(job.outputs),
            probabilities="probabilities" in job.outputs,
            scratch=job.output,
        )
    except InterruptedByUserError:
        raise
    except SegdeformError as error:
        raise failure_of(task.source, error) from error


def write_outputs(job: Job, task: Task, seen: Seen, result: Result) -> Done:
    """Writes a picture's outputs; returns its facts.

    Raises PartialFailureError for what concerns this picture alone, ResourceError for a full disk.
    """
    done = Done(
        task.source,
        task.name,
        result.size,
        result.shares(),
        seen.frames,
        seen.input,
        job.settings,
        _note(job, seen, result),
        mask_suffix(result.size, seen.place),
        {name: job.forms.of(name) for name in job.outputs},
    )
    try:
        for name in job.outputs:
            path = output_path(job.output, done, name)
            _write(path, name, job, done, seen, result)
            _remove(other for other in every_path(job.output, done.name, [name]) if other != path)
    except ResourceError:
        raise
    except SegdeformError as error:
        raise failure_of(task.source, error) from error
    except MemoryError as error:
        raise PartialFailureError("memory ended while its outputs were written") from error
    return done


def remove_outputs(output: Path, name: str) -> None:
    """Removes what an earlier run left for a picture that now fails."""
    _remove(every_path(output, name))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _note(job: Job, seen: Seen, result: Result) -> str:
    times = reduction(result.size)
    if times == 1 or "overlays" not in job.outputs:
        return seen.note
    smaller = f"so large that its overlay is drawn at 1/{times} of the size"
    return f"{seen.note}; {smaller}" if seen.note else smaller


def _write(path: Path, name: str, job: Job, done: Done, seen: Seen, result: Result) -> None:
    """Writes one output, whole or not at all. Raises ResourceError or UsageError."""
    labels, classes = result.labels, result.classes
    match name:
        case "masks" if path.suffix == ".tif":
            write_index_tiff(path, labels, result.palette, seen.place)
        case "masks":
            write_index_png(path, labels, result.palette)
        case "overlays":
            write_image(path, reduced_overlay(result.image, labels, result.palette))
        case "confidence":
            _write_confidence(path, result)
        case "probabilities":
            with atomic_path(path) as temporary:
                kind = job.forms.probabilities_type
                write_probabilities(temporary, result.probabilities, classes, kind)
        case "polygons":
            _write_polygons(path, job, seen, result)
        case "rle":
            write_text(path, json.dumps(coco_dataset(labels, classes, done.source.name)) + "\n")
        case "cutouts":
            _write_cutout(path, job, result)
        case "json":
            write_json(path, _facts(job, done, seen, result))


def _write_confidence(path: Path, result: Result) -> None:
    values = result.confidence
    if values.size <= _IN_STRIPS:
        write_image(path, values)
        return
    strips = (values[top : top + _ROWS] for top in range(0, len(values), _ROWS))
    write_png_rows(path, result.size, PNG_GREY, 8, strips)


def _write_cutout(path: Path, job: Job, result: Result) -> None:
    assert job.forms.cutout_class is not None  # checked at the start
    label = result.classes.index(job.forms.cutout_class)
    if result.labels.size <= _IN_STRIPS:
        write_image(path, cutout(result.image, result.labels, label))
        return
    strips = cutout_rows(result.image, result.labels, label)
    write_png_rows(path, result.size, PNG_RGBA, 8, strips)


def _write_polygons(path: Path, job: Job, seen: Seen, result: Result) -> None:
    found = features(
        result.labels, result.classes, georeference=seen.place, **job.forms.of("polygons")
    )
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(geojson_lines(found, seen.place))


def _facts(job: Job, done: Done, seen: Seen, result: Result) -> dict[str, Any]:
    facts = {
        "picture": str(done.source),
        "model_sha256": job.segmenter.info["sha256"],
        **result.facts(),
    }
    if seen.place is not None:
        facts["georeference"] = {"transform": seen.place.transform, "epsg": seen.place.epsg}
    return facts
