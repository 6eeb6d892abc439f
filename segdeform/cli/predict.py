"""`segdeform predict`: writes masks and overlays for pictures and folders of pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from segdeform.cli.inference import Inference, inference_options
from segdeform.cli.output import Json, Model, print_json
from segdeform.cli.progress import progress_bars
from segdeform.errors import PartialFailureError
from segdeform.machine.interrupts import stop_on_interrupt

_LISTED = 10  # files of a kind named on the terminal; summary.json has all


@inference_options
def predict(
    model: Model,
    inputs: Annotated[
        list[Path],
        typer.Argument(metavar="INPUT...", help="Pictures or folders.", show_default=False),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False)],
    overlays: Annotated[
        bool, typer.Option("--overlays/--no-overlays", help="Write tinted pictures as well.")
    ] = True,
    *,
    inference: Inference,
    json_output: Json = False,
) -> None:
    """Write a mask and an overlay for each picture; folders are searched recursively."""
    from segdeform.prediction.predict import predict

    segmenter = inference.load(model)
    with progress_bars() as progress, stop_on_interrupt() as stop:
        shown = partial(progress, "predicting")
        summary = predict(segmenter, inputs, output, overlays=overlays, progress=shown, stop=stop)
    if json_output:
        print_json({"output": str(output), **summary.to_json()})
    else:
        others = len(summary.skipped)
        skipped = f", {_count(others, 'other file')} skipped" if others else ""
        print(f"{_count(len(summary.done))} predicted{skipped}: {output / 'masks'}")
        _list("skipped", [str(path) for path in summary.skipped])
        several = [f"{d.source} ({d.frames})" for d in summary.done if d.frames > 1]
        _list("only the first of several frames or pages was predicted", several)
        if summary.earlier:
            print(f"{_count(summary.earlier, 'mask')} of earlier predictions lie there as well")
        if overlays and summary.done:
            print(f"Look at {output / 'overview.png'}")
    for source, reason in summary.failed[:_LISTED]:
        print(f"{source}: {reason}", file=sys.stderr)
    if summary.failed:
        raise PartialFailureError(
            f"{_count(len(summary.failed))} of {len(summary.failed) + len(summary.done)} failed; "
            f"the reasons are in {output / 'summary.json'}"
        )


def _list(what: str, names: Sequence[str]) -> None:
    """Prints the first names; summary.json has all."""
    for name in names[:_LISTED]:
        print(f"{what}: {name}")
    if len(names) > _LISTED:
        print(f"{what}: and {len(names) - _LISTED} more, listed in summary.json")


def _count(number: int, thing: str = "picture") -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
