"""`segdeform eval`: scores a model on a data set split."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdeform.cli.output import (
    Data,
    Device,
    Flip,
    Json,
    Model,
    Overlap,
    Scales,
    Threads,
    Tile,
    load_segmenter,
    print_json,
    progress_bar,
    stop_on_interrupt,
)
from segdeform.errors import UsageError

if TYPE_CHECKING:
    from segdeform.evaluation.evaluate import Evaluation


def evaluate(
    model: Model,
    data: Data = None,
    dataset: Annotated[
        str | None, typer.Option(help="Its kind.", show_default="the one trained on")
    ] = None,
    split: Annotated[str, typer.Option(help="Which part of it.")] = "val",
    output: Annotated[
        Path | None, typer.Option(help="Folder to write metrics.json into.", show_default="none")
    ] = None,
    tile: Tile = None,
    overlap: Overlap = None,
    scales: Scales = None,
    flip: Flip = None,
    device: Device = "auto",
    threads: Threads = None,
    json_output: Json = False,
) -> None:
    """Score a model on a data set split: mIoU, per-class IoU, accuracy."""
    from segdeform.checking import check_sound
    from segdeform.data import data_root, load_dataset
    from segdeform.evaluation.evaluate import evaluate, write_metrics

    segmenter = load_segmenter(model, device, threads, tile, overlap, scales, flip)
    name = dataset or segmenter.info["training"].get("dataset")
    if name is None:
        raise UsageError(f"{model} does not say what it was trained on: give --dataset NAME")
    pairs = load_dataset(name, data_root(name, data), split)
    with progress_bar("checking") as progress:
        check_sound([pairs], progress=progress, say=lambda line: print(line, file=sys.stderr))
    with progress_bar("evaluating") as progress, stop_on_interrupt() as stop:
        evaluation = evaluate(segmenter, pairs, progress=progress, stop=stop)
    path = write_metrics(output, evaluation) if output else None
    if json_output:
        print_json(evaluation.to_json())
        return
    print_scores(evaluation)
    if path:
        print(f"Written: {path}")


def print_scores(evaluation: Evaluation) -> None:
    """Prints a row for each class, then the scores over all of them."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    result = evaluation.to_json()
    protocol, rows = result["protocol"], result["classes"]
    total = max(1, sum(row["truth_pixels"] for row in rows))
    title = f"{protocol['dataset']} {protocol['split']}, {protocol['pictures']} pictures"
    table = Table("class", title=title)
    for header in ("IoU", "accuracy", "pixels"):
        table.add_column(header, justify="right")
    for row in rows:
        share = f"{row['truth_pixels'] / total:.2%}"
        table.add_row(escape(row["name"]), _score(row["iou"]), _score(row["accuracy"]), share)
    Console().print(table)
    print(f"mIoU {_score(result['miou'])}, the mean over the classes that occur")
    print(
        f"pixel accuracy {_score(result['accuracy'])}, "
        f"mean class accuracy {_score(result['mean_accuracy'])}, "
        f"frequency-weighted IoU {_score(result['fw_iou'])}"
    )


def _score(value: float | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value:.4f}"
