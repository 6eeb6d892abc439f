"""`segdeform score`: scores a folder of label maps against a folder of masks."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from segdeform.cli.output import Json, print_json
from segdeform.cli.progress import progress_bars
from segdeform.errors import UsageError


def score(
    truth: Annotated[
        Path, typer.Argument(metavar="TRUTH", help="Folder of masks.", show_default=False)
    ],
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS",
            help="Folder of label maps of the same names, or what predict wrote.",
            show_default=False,
        ),
    ],
    classes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="classes.txt, classes.json or a data YAML (names, label_mapping, void_id).",
            show_default="beside the masks or above, else counted",
        ),
    ] = None,
    mapped: Annotated[
        bool,
        typer.Option("--mapped", help="label_mapping applies to the predictions' values too."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the report, metrics and tables.", show_default="none"),
    ] = None,
    boundary_width: Annotated[
        float,
        typer.Option(min=0, max=1, help="Bands of boundary IoU, of the picture's diagonal."),
    ] = 0.02,
    json_output: Json = False,
) -> None:
    """Score label maps, whoever made them: everything that eval reports, from two folders.

    Both hold index images, an integer a pixel. A mask may hold 255 (65535 where there are more than
    255 classes; or void_id): such pixels are not scored. A prediction needs a class in every pixel.
    Masks without a prediction are an error, predictions without a mask are left out and told.
    """
    for folder in (truth, predictions):  # before torch's seconds of import
        if not folder.is_dir():
            raise UsageError(f"{folder}: no such folder")

    from segdeform.cli.eval import print_scores
    from segdeform.evaluation.examples import draw_examples
    from segdeform.evaluation.folders import label_pair, score_folders
    from segdeform.evaluation.report import render_report
    from segdeform.evaluation.result import check_output, write_evaluation
    from segdeform.machine.interrupts import stop_on_interrupt

    if output is not None:
        check_output(output)
    with progress_bars() as progress, stop_on_interrupt() as stop:
        evaluation, dataset = score_folders(
            truth,
            predictions,
            classes,
            mapped=mapped,
            boundary_width=boundary_width,
            progress=partial(progress, "scoring"),
            stop=stop,
            say=partial(print, file=sys.stderr),
        )
        if output is not None:
            examples = draw_examples(
                evaluation,
                dataset.palette,
                lambda index: (None, *label_pair(dataset, index, mapped)),
                stop,
            )
            report = render_report(evaluation, dataset.palette, examples)
            write_evaluation(output, evaluation, report)
    if json_output:
        print_json(evaluation.to_json())
        return
    print_scores(evaluation)
    if output:
        print(f"Look at {output / 'report.html'}; the numbers are in {output / 'metrics.json'}")
