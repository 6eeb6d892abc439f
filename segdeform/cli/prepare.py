"""`segdeform prepare`: makes a data set ready, or verifies the one that lies in a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from segdeform.cli.output import Json, print_json
from segdeform.cli.progress import progress_bars


def prepare(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="voc, cityscapes, camvid, shapes or folder (your own).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="Root of the data set; for cityscapes also CITYSCAPES_DATASET.",
            show_default=False,
        ),
    ] = None,
    archive: Annotated[
        list[Path] | None,
        typer.Option(help="An archive at hand of voc, SBD or cityscapes; repeatable."),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch what is missing of voc or cityscapes.")
    ] = False,
    sbd: Annotated[bool, typer.Option(help="Add SBD's masks to voc: the split trainaug.")] = True,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache", help="Also write the pictures decoded, for training to map into memory."
        ),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of shapes' pictures.", show_default="0")
    ] = None,
    outline_only: Annotated[
        bool, typer.Option("--outline-only", help="Shapes of random colours: a hard task.")
    ] = False,
    deformation: Annotated[
        float | None,
        typer.Option(min=0, max=2, help="Bending and shear of shapes.", show_default="1"),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Threads that read the pictures.")] = 2,
    json_output: Json = False,
) -> None:
    """Make a data set ready: unpack, download, convert or generate it; read every file of it.

    What is there already is kept: a second run only verifies, an interrupted one is continued.
    """
    from segdeform.data import data_root
    from segdeform.preparing.prepare import prepare

    root = data_root(name, output, "--output")
    look = {"seed": seed, "outline_only": outline_only or None, "deformation": deformation}
    with progress_bars() as progress:
        summary = prepare(
            name,
            root,
            archives=archive or (),
            download=download,
            sbd=sbd,
            cache=cache,
            shapes={key: value for key, value in look.items() if value is not None},
            workers=workers,
            progress=progress,
        )
    if json_output:
        print_json({**asdict(summary), "root": str(summary.root)})
        return
    pairs = ", ".join(f"{split} {count}" for split, count in summary.splits.items())
    print(f"{name} in {root}: {pairs} pairs of picture and mask, {len(summary.classes)} classes")
    for message in summary.messages:
        print(message)
    split = " --set data.train_split=trainaug" if "trainaug" in summary.splits else ""
    print(f"Next:  segdeform train {name} --data {root} --output RUN{split}")
