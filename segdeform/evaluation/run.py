"""All of `segdeform eval`: checks first, then the counting, then everything that is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from segdeform.callbacks import Progress, Say, Steps, Stop
from segdeform.checking import check_sound
from segdeform.data.dataset import Dataset, read_picture
from segdeform.evaluation import cityscapes
from segdeform.evaluation.boundary import BOUNDARY_WIDTH
from segdeform.evaluation.evaluate import (
    Evaluation,
    evaluate,
    predict_sample,
    share_pictures,
)
from segdeform.evaluation.examples import choose_examples
from segdeform.evaluation.report import render_report
from segdeform.evaluation.result import write_evaluation
from segdeform.evaluation.split import chosen_on, load_split, refuse_other_classes, trained_on
from segdeform.evaluation.submission import (
    label_map_path,
    label_map_writer,
    write_zip,
)
from segdeform.evaluation.wanted import Wanted, check_wanted, has_no_masks
from segdeform.files.atomic import write_error
from segdeform.machine.cpu import available_cores, keep_freed_memory
from segdeform.machine.device import resolve_device
from segdeform.machine.interrupts import stop_on_interrupt
from segdeform.machine.processes import ALONE, Processes, own_device, processes
from segdeform.model_folder import is_exported
from segdeform.models.precision import Asked
from segdeform.runtimes.description import Runtime
from segdeform.segmenter import Segmenter, load


@dataclass(frozen=True)
class Outcome:
    """How an evaluation ended in this process."""

    evaluation: Evaluation | None  # None: a split without masks, which was only predicted
    first: bool  # whether this process is the one that speaks for all


def run_evaluation(
    model: Path,
    data: Path | None,
    kind: str | None,  # of the data set; None: the one trained on
    split: str,
    wanted: Wanted,
    *,
    boundary_width: float = BOUNDARY_WIDTH,
    device: str = "auto",
    threads: int | None = None,  # of torch; None: as many as there are cores
    precision: Asked = "fp32",
    runtime: Runtime | None = None,  # of an exported model
    options: Mapping[str, Any] | None = None,  # in the place of the model's own inference options
    progress: Steps | None = None,
    say: Say | None = None,
) -> Outcome:
    """Checks a split, scores a model on it and writes what is wanted.

    Started by torchrun, several processes share the pictures and count the same integers. Ctrl-C
    ends the check at once and the scoring after the window at hand, in all processes.

    Raises:
        SegdeformError: as `segmenter.load`, `load_split`, `check_wanted`, `check_sound`, `score`
            and `predict_for_server` say.
    """
    # Labels depend on the threads in the last bit. torchrun would set one a process: the count must
    # not depend on how many processes there are.
    cores = available_cores()
    own = own_device(resolve_device(device))
    torch.set_num_threads(threads or cores)
    keep_freed_memory()
    with processes(own) as peers:
        shown = progress if peers.first and progress is not None else _hide
        place = device if is_exported(model) else str(own)
        segmenter = load(model, place, precision=precision, runtime=runtime)
        segmenter = segmenter.with_options(**(options or {}))
        dataset = load_split(segmenter, kind, data, split)
        check_wanted(dataset, wanted)
        labelled = True
        with peers.in_step():
            if peers.first_here:
                report = check_sound([dataset], progress=partial(shown, "checking"), say=say)
                labelled = any(report.splits[0].pixels)
                if say is not None and (known := trained_on(segmenter, dataset, data)):
                    say(
                        f"warning: {known} of {len(dataset)} pictures were trained on: the score "
                        "is not that of new ones"
                    )
                if say is not None and (count := chosen_on(segmenter, dataset)):
                    say(
                        f"warning: these weights were chosen as the best of {count} by the score "
                        "on this split: on new pictures they may score a little less"
                    )
        if not peers.share(labelled):  # a test split of placeholders is one without masks
            dataset = dataset.without_masks()
            check_wanted(dataset, wanted)
        with stop_on_interrupt() as stop:
            counting = partial(shown, "evaluating")
            if wanted.submission is not None and has_no_masks(dataset):
                predict_for_server(
                    segmenter,
                    dataset,
                    wanted.submission,
                    peers=peers,
                    progress=counting,
                    stop=stop,
                )
                return Outcome(None, peers.first)
            evaluation = score(
                segmenter,
                dataset,
                wanted,
                boundary_width=boundary_width,
                workers=cores,
                peers=peers,
                progress=counting,
                stop=stop,
            )
        return Outcome(evaluation, peers.first)


def _hide(step: str, done: int, total: int) -> None:
    """Shows nothing: another process does."""


def score(
    segmenter: Segmenter,
    dataset: Dataset,
    wanted: Wanted,
    *,
    boundary_width: float = BOUNDARY_WIDTH,
    workers: int = 1,
    peers: Processes = ALONE,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> Evaluation:
    """Scores a split and writes what is wanted, which appears at the end, complete.

    `workers` processes count for the official scripts, while `progress` starts again. Rank 0 alone
    writes, but for the label maps on their way.

    Raises:
        DataError, NotFiniteError, ResourceError, InterruptedByUserError, PeerLostError: as
            `evaluate`, `official_scores` and the writers say; what was there before is kept.
    """
    refuse_other_classes(segmenter.classes, dataset)
    target = wanted.output if wanted.official else wanted.submission
    places = [path for path in (wanted.output, wanted.submission) if path is not None]
    with _label_maps(target, peers, places) as maps:
        evaluation = evaluate(
            segmenter,
            dataset,
            boundary_width=boundary_width,
            keep=None if maps is None else label_map_writer(dataset, maps),
            peers=peers,
            progress=progress,
            stop=stop,
        )
        with peers.in_step():
            if not peers.first:
                return evaluation
            if maps is not None and wanted.official:
                evaluation = _with_official(evaluation, dataset, maps, workers, progress, stop)
            report = ""
            if wanted.output is not None:
                examples = choose_examples(evaluation, segmenter, dataset, stop)
                report = render_report(evaluation, segmenter.palette, examples)
            if maps is not None and wanted.submission is not None:
                write_zip(dataset, maps, wanted.submission, stop)
            if wanted.output is not None:
                write_evaluation(
                    wanted.output, evaluation, report, maps if wanted.official else None
                )
    return evaluation


def predict_for_server(
    segmenter: Segmenter,
    dataset: Dataset,
    submission: Path,
    *,
    peers: Processes = ALONE,
    progress: Progress | None = None,
    stop: Stop | None = None,
) -> None:
    """Predicts a split whose masks the benchmark keeps to itself and packs what its server takes.

    Raises:
        DataError, NotFiniteError, ResourceError, InterruptedByUserError, PeerLostError: as
            `predict_sample` and `write_zip` say; what was there before is kept.
    """
    refuse_other_classes(segmenter.classes, dataset)
    with _label_maps(submission, peers, [submission]) as maps:
        assert maps is not None  # they are for the submission
        keep = label_map_writer(dataset, maps)

        def predict(index: int) -> None:
            sample = dataset.samples[index]
            image = read_picture(dataset, index)
            keep(sample, predict_sample(segmenter, sample, image, stop))

        share_pictures(len(dataset), predict, peers, progress, stop)
        with peers.in_step():
            if peers.first:
                write_zip(dataset, maps, submission, stop)


@contextmanager
def _label_maps(
    target: Path | None, peers: Processes, places: Sequence[Path]
) -> Iterator[Path | None]:
    """Lends all processes one folder for label maps, beside what they are for; None: not needed.

    The folders that `places`, which are to be written, lie in are made first.
    """
    folder = None
    if target is not None:
        target = target.resolve()
        folder = target.with_name(f".{target.name}.labels")
    with peers.in_step():
        if peers.first:
            for place in places:
                _make_parent(place.resolve())
            if folder is not None:
                _make_anew(folder)
    try:
        yield folder
    finally:
        if folder is not None and peers.first:
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
    stop: Stop | None,
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
