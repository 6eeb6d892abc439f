"""`segdeform eval`: scores a model on a data set split."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segdeform.cli.groups import option_groups
from segdeform.cli.inference import Inference
from segdeform.cli.output import (
    MOST_ROWS,
    ROWS_OF_MANY,
    Data,
    Json,
    Kind,
    Model,
    Split,
    print_json,
    shown_score,
)
from segdeform.cli.progress import progress_bars

if TYPE_CHECKING:
    from segdeform.evaluation.evaluate import Evaluation


@option_groups
def evaluate(
    model: Model,
    data: Data = None,
    kind: Kind = None,
    split: Split = "val",
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the report, metrics and tables.", show_default="none"),
    ] = None,
    official: Annotated[
        bool, typer.Option("--official", help="Cityscapes: score by the official scripts too.")
    ] = False,
    submission: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.zip",
            help="VOC and Cityscapes: label maps for the benchmark's server.",
            show_default="none",
        ),
    ] = None,
    boundary_width: Annotated[
        float,
        typer.Option(min=0, max=1, help="Bands of boundary IoU, of the picture's diagonal."),
    ] = 0.02,
    *,
    inference: Inference,
    json_output: Json = False,
) -> None:
    """Score a model on a data set split: mIoU with its uncertainty, per-class IoU, a report.

    Started by torchrun, several processes share the pictures and count the same integers.
    """
    from segdeform.evaluation.wanted import Wanted, refuse_early

    options = inference.options()
    refuse_early(model, kind, data, split, output)  # before torch's seconds of import

    from segdeform.evaluation.run import run_evaluation

    with progress_bars() as progress:
        outcome = run_evaluation(
            model,
            data,
            kind,
            split,
            Wanted(output, official, submission),
            boundary_width=boundary_width,
            device=inference.device,
            threads=inference.threads,
            precision=inference.precision or "fp32",
            runtime=inference.runtime,
            options=options,
            progress=progress,
            say=partial(print, file=sys.stderr),
        )
    if not outcome.first:
        return
    if json_output:
        evaluation = outcome.evaluation
        print_json(evaluation.to_json() if evaluation else {"submission": str(submission)})
        return
    if outcome.evaluation:
        print_scores(outcome.evaluation)
    if output:
        print(f"Look at {output / 'report.html'}; the numbers are in {output / 'metrics.json'}")
    if submission:
        print(f"Written: {submission}")


def print_scores(evaluation: Evaluation) -> None:
    """Prints a row for each class, then the scores over all of them."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from segdeform.evaluation.verdict import warnings

    result = evaluation.to_json()
    protocol, rows = result["protocol"], result["classes"]
    total = max(1, sum(row["truth_pixels"] for row in rows))
    title = f"{protocol['dataset']} {protocol['split']}, {protocol['pictures']} pictures"
    table = Table("class", title=title, box=SIMPLE_HEAD, collapse_padding=True)
    for header in ("IoU", "95% interval", "boundary", "F1", "precision", "recall", "pixels"):
        table.add_column(header, justify="right", no_wrap=True)
    shown = hardest(rows)
    for row in shown:
        scores = [_short(row[key]) for key in ("iou", "boundary_iou", "f1", "precision", "recall")]
        scores.insert(1, _interval(row["iou_interval"]))
        table.add_row(escape(row["name"]), *scores, f"{row['truth_pixels'] / total:.2%}")
    Console().print(table)
    if len(shown) < len(rows):
        print(
            f"The {len(shown)} classes of the lowest IoU, of {len(rows)}: --output and --json have "
            "all of them"
        )
    print(
        f"mIoU {shown_score(result['miou'])} "
        f"(95% interval {_interval(result['miou_interval'])}), the mean over the classes that occur"
    )
    print(f"The commonest class everywhere would score {shown_score(result['constant_miou'])}")
    print(
        f"pixel accuracy {shown_score(result['accuracy'])}, "
        f"mean class accuracy {shown_score(result['mean_accuracy'])}, "
        f"frequency-weighted IoU {shown_score(result['fw_iou'])}, "
        f"mean F1 {shown_score(result['mean_f1'])}, "
        f"boundary IoU {shown_score(result['boundary_iou'])}"
    )
    for warning in warnings(evaluation):
        print(f"warning: {warning}", file=sys.stderr)
    if "official" in result:
        _print_official(result["official"])


def hardest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows to print: all, or, of more classes than a screen is good for, those that
    occur and have the lowest IoU, lowest first; of equal ones the commonest."""
    if len(rows) <= MOST_ROWS:
        return rows
    present = [row for row in rows if row["iou"] is not None]
    return sorted(present, key=lambda row: (row["iou"], -row["truth_pixels"]))[:ROWS_OF_MANY]


def _print_official(official: dict[str, Any]) -> None:
    print(
        f"official scripts: class IoU {shown_score(official['mean_class_iou'])}, "
        f"class iIoU {shown_score(official['mean_class_iiou'])}, "
        f"category IoU {shown_score(official['mean_category_iou'])}, "
        f"category iIoU {shown_score(official['mean_category_iiou'])} ({official['note']})"
    )


def _short(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.3f}"


def _interval(interval: tuple[float, float] | None) -> str:
    return "\N{EN DASH}" if interval is None else f"{interval[0]:.3f}\N{EN DASH}{interval[1]:.3f}"
