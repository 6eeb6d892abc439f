"""`segdeform explain`: where deformable layers sample, and how far they reach."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segdeform.cli.inference import Inference
from segdeform.cli.output import (
    MOST_ROWS,
    ROWS_OF_MANY,
    Data,
    Device,
    Json,
    Kind,
    Model,
    Split,
    Threads,
    print_json,
)
from segdeform.cli.progress import progress_bars
from segdeform.errors import UsageError
from segdeform.machine.interrupts import stop_on_interrupt

if TYPE_CHECKING:
    from segdeform.segmenter import Segmenter


def explain(
    model: Model,
    picture: Annotated[
        Path | None, typer.Argument(metavar="[PICTURE]", help="A picture.", show_default=False)
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Folder for pictures, page and JSON.", show_default=False)
    ] = Path("explained"),
    at: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y",
            help="Pixel to look from; repeatable.",
            show_default="the middles of predicted regions",
        ),
    ] = None,
    data: Data = None,
    kind: Kind = None,
    split: Split = "val",
    device: Device = "auto",
    threads: Threads = None,
    json_output: Json = False,
) -> None:
    """Show what deformable layers do: sampling points on a picture, reach by class on a data set.

    With PICTURE: points.png, offsets-N.png and index.html, where a click shows the sampling points.
    With --data: effective dilation of every layer by true class (Dai et al. 2017, table 2).
    """
    from segdeform.data.image_io import image_size
    from segdeform.evaluation.wanted import refuse_early
    from segdeform.model_folder import refuse_missing_model

    places = [_place(text) for text in at or ()]
    if picture is None and data is None:
        raise UsageError("give a PICTURE to look at, or --data ROOT to measure on, or both")
    if places and picture is None:
        raise UsageError("--at is for a PICTURE: give one")
    refuse_missing_model(model)  # all that needs no torch, before its seconds of import
    if picture is not None:
        image_size(picture)
    if data is not None:
        refuse_early(model, kind, data, split, None)

    from segdeform.explaining.explain import explain_picture

    segmenter = Inference(device=device, threads=threads).load(model)
    found: dict[str, Any] = {}
    if picture is not None:
        found["picture"] = explain_picture(segmenter, picture, output, places)
    if data is not None:
        found["dilation"] = _measure(segmenter, kind, data, split, output)
    if json_output:
        print_json(found)
        return
    if picture is not None:
        _print_layers(found["picture"]["layers"])
        print(f"Look at {output / 'points.png'}; click points in {output / 'index.html'}")
    if data is not None:
        _print_dilation(found["dilation"])
        print(f"Written: {output / 'dilation.json'}")


def _place(text: str) -> tuple[int, int]:
    parts = text.split(",")
    try:
        x, y = (int(part) for part in parts)
    except ValueError:
        raise UsageError(f"--at {text}: expected two whole numbers, as in 120,80") from None
    return x, y


def _measure(
    segmenter: Segmenter, kind: str | None, data: Path, split: str, output: Path
) -> dict[str, Any]:
    from segdeform.evaluation.split import load_split
    from segdeform.explaining.explain import write_dilation
    from segdeform.explaining.statistics import effective_dilation

    dataset = load_split(segmenter, kind, data, split)
    with progress_bars() as progress, stop_on_interrupt() as stop:
        shown = partial(progress, "measuring")
        statistics = effective_dilation(segmenter, dataset, progress=shown, stop=stop)
    source = f"{dataset.name} {split} of {data}"
    return write_dilation(output, statistics, segmenter.classes, source)


def _print_layers(layers: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("layer", overflow="fold")
    for header in ("dilation", "effective", "mean offset, px", "samples outside"):
        table.add_column(header, justify="right")
    for layer in layers:
        effective = layer["effective_dilation"]
        table.add_row(
            layer["name"],
            "x".join(map(str, layer["dilation"])),
            "\N{EN DASH}" if effective is None else f"{effective:.2f}",
            f"{layer['mean_offset_pixels']:.1f}",
            f"{layer['share_outside']:.1%}",
        )
    Console().print(table)


def _print_dilation(facts: dict[str, Any]) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    title = f"Effective dilation, mean ± standard deviation: {facts['data']}"
    table = Table("class", title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for layer in facts["layers"]:
        header = f"{layer['layer']}\n(plain: {layer['plain_dilation']:g})"
        table.add_column(header, justify="right", overflow="fold")
    rows = list(zip(*(layer["classes"] for layer in facts["layers"]), strict=True))
    if len(rows) > MOST_ROWS:
        table.caption = f"{ROWS_OF_MANY} of {len(rows)} classes, those of the most pixels"
        rows = sorted(rows, key=lambda row: -int(row[0]["places"]))[:ROWS_OF_MANY]
    for row in rows:
        table.add_row(escape(row[0]["name"]), *map(_spread, row))
    table.add_section()
    table.add_row("all", *(_spread(layer["all"]) for layer in facts["layers"]))
    outside = (f"{layer['share_outside']:.1%}" for layer in facts["layers"])
    table.add_row("outside", *outside)
    Console().print(table)


def _spread(row: dict[str, Any]) -> str:
    if row["mean"] is None:
        return "\N{EN DASH}"
    return f"{row['mean']:.2f} ± {row['std']:.2f}"
