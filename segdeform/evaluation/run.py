"""All of `segdeform eval`: checks first, then the counting, then everything that is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from segdeform.data.dataset import Dataset
from segdeform.data.image_io import read_image
from segdeform.errors import DataError, UsageError
from segdeform.evaluation import cityscapes
from segdeform.evaluation.boundary import BOUNDARY_WIDTH
from segdeform.evaluation.evaluate import (
    ALONE,
    Evaluation,
    KeepLabels,
    evaluate,
    predict_sample,
    refuse_other_classes,
    share_pictures,
)
from segdeform.evaluation.examples import choose_examples
from segdeform.evaluation.report import render_report
from segdeform.evaluation.result import check_output, write_result
from segdeform.evaluation.submission import label_map_path, label_map_writer, write_zip
from segdeform.files.atomic import write_error
from segdeform.machine.processes import Processes
from segdeform.segmenter import Segmenter

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Wanted:
    """What an evaluation leaves behind."""

    output: Path | None = None  # folder of the result
    official: bool = False  # score with cityscapesscripts too
    submission: Path | None = None  # zip for the benchmark server


def run_evaluation(
    segmenter: Segmenter,
    dataset: Dataset,
    wanted: Wanted,
    *,
    boundary_width: float = BOUNDARY_WIDTH,
    workers: int = 1,
    peers: Processes = ALONE,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Evaluation | None:
    """Scores a split and writes what is wanted; a split without masks is predicted only: None.

    `workers` processes count for the official scripts, while `progress` starts again. Everything
    appears at the end, complete; rank 0 alone writes it, but for the label maps on their way.

    Raises:
        UsageError: before any work, where something wanted cannot be.
        DataError, NotFiniteError, ResourceError, InterruptedByUserError, PeerLostError: as
            `evaluate`, `official_scores` and the writers say; what was there before is kept.
    """
    check_wanted(dataset, wanted)
    refuse_other_classes(segmenter.classes, dataset)
    with _label_maps(wanted, peers) as folder:
        keep = None if folder is None else label_map_writer(dataset, folder)
        if keep is not None and all(sample.mask is None for sample in dataset.samples):
            work = partial(_predict, segmenter, dataset, keep)
            share_pictures(len(dataset), work, peers, progress, stop)
            evaluation = None
        else:
            evaluation = evaluate(
                segmenter,
                dataset,
                boundary_width=boundary_width,
                keep=keep,
                peers=peers,
                progress=progress,
                stop=stop,
            )

        def write() -> None:
            nonlocal evaluation
            if evaluation is not None and folder is not None and wanted.official:
                evaluation = _with_official(evaluation, dataset, folder, workers, progress, stop)
            report = ""
            if evaluation is not None and wanted.output is not None:
                examples = choose_examples(evaluation, segmenter, dataset, stop)
                report = render_report(evaluation, segmenter.palette, examples)
            if wanted.submission is not None and folder is not None:
                write_zip(dataset, folder, wanted.submission, stop)
            if evaluation is not None and wanted.output is not None:
                maps = folder if wanted.official else None
                write_result(wanted.output, evaluation, report, maps)

        with peers.in_step():
            if peers.first:
                write()
    return evaluation


def _predict(segmenter: Segmenter, dataset: Dataset, keep: KeepLabels, index: int) -> None:
    sample = dataset.samples[index]
    keep(sample, predict_sample(segmenter, sample, read_image(sample.image)))


def check_wanted(dataset: Dataset, wanted: Wanted) -> None:
    """Raises UsageError or DataError for what would only show after hours of counting."""
    without = sum(sample.mask is None for sample in dataset.samples)
    if without == len(dataset) and (wanted.submission is None or wanted.output or wanted.official):
        raise UsageError(
            f"split '{dataset.split}' of {dataset.name} has no masks, so nothing can be scored: "
            "give --submission FILE.zip alone to have its label maps for the benchmark's server"
        )
    if 0 < without < len(dataset):
        lacking = next(sample for sample in dataset.samples if sample.mask is None)
        raise DataError(f"{lacking.image}: has no mask, though other pictures have one")
    if wanted.official:
        _check_official(dataset, wanted)
    if wanted.submission is not None:
        label_map_writer(dataset, wanted.submission.parent)
        if wanted.submission.suffix != ".zip" or wanted.submission.is_dir():
            raise UsageError(f"--submission {wanted.submission}: expected the name of a .zip file")
    if wanted.output is not None:
        check_output(wanted.output)


def _check_official(dataset: Dataset, wanted: Wanted) -> None:
    if dataset.name != "cityscapes":
        raise UsageError(f"--official is for cityscapes, not for '{dataset.name}'")
    if wanted.output is None:
        raise UsageError("--official writes label maps: give --output FOLDER")
    for sample in dataset.samples:
        if sample.mask is not None and not sample.mask.name.endswith(cityscapes.TRUTH_ENDING):
            raise DataError(
                f"{sample.mask}: the official scripts need *{cityscapes.TRUTH_ENDING}; "
                "segdeform prepare cityscapes makes them"
            )


@contextmanager
def _label_maps(wanted: Wanted, peers: Processes) -> Iterator[Path | None]:
    """Lends all processes one folder for label maps, beside what they are for; None: not needed."""
    target = wanted.output if wanted.official else wanted.submission
    places = [path.resolve() for path in (wanted.output, wanted.submission) if path is not None]
    with peers.in_step():
        if peers.first:
            for place in places:
                _make_parent(place)
    if target is None:
        yield None
        return
    target = target.resolve()
    folder = target.with_name(f".{target.name}.labels")
    with peers.in_step():
        if peers.first:
            _make_anew(folder)
    try:
        yield folder
    finally:
        if peers.first:
            shutil.rmtree(folder, ignore_errors=True)


def _make_parent(path: Path) -> None:
    """Makes the folder that a path lies in, and sees that it can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(13, os.strerror(13))
    except OSError as error:
        raise write_error(path, error) from error


def _make_anew(folder: Path) -> None:
    try:
        if folder.exists():  # left by a killed run
            shutil.rmtree(folder)
        folder.mkdir()
    except OSError as error:
        raise write_error(folder, error) from error


def _with_official(
    evaluation: Evaluation,
    dataset: Dataset,
    folder: Path,
    workers: int,
    progress: Progress | None,
    stop: Callable[[], bool] | None,
) -> Evaluation:
    """Adds the official scores, once they are seen to agree with ours."""
    pairs = [
        (label_map_path(dataset, folder, sample), sample.mask)
        for sample in dataset.samples
        if sample.mask is not None
    ]
    official = cityscapes.official_scores(pairs, workers=workers, progress=progress, stop=stop)
    ours = dict(zip(evaluation.classes, evaluation.scores.iou, strict=True))
    cityscapes.refuse_other_iou(official, ours)
    return replace(evaluation, official=official.to_json())
