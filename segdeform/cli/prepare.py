"""`segdeform prepare`: generates a data set, or verifies the one that lies in a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from segdeform.cli.output import Json, print_json, progress_bar


def prepare(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="shapes, camvid, voc or folder (your own).", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option(help="Root of the data set.", show_default=False)],
    seed: Annotated[int, typer.Option(min=0, help="Of generated pictures.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read the pictures.")] = 2,
    json_output: Json = False,
) -> None:
    """Generate the data set shapes, or verify every picture and mask of another in place."""
    from segdeform.data.prepare import prepare

    with progress_bar("drawing") as progress:
        summary = prepare(name, output, seed=seed, workers=workers, progress=progress)
    if json_output:
        print_json({**asdict(summary), "root": str(summary.root)})
        return
    pairs = ", ".join(f"{split} {count}" for split, count in summary.splits.items())
    print(f"{name} in {output}: {pairs} pairs of picture and mask, {len(summary.classes)} classes")
    for message in summary.messages:
        print(message)
    print(f"Next:  segdeform train {name} --data {output} --output RUN")
