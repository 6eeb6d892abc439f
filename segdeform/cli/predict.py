"""`segdeform predict`: writes masks and overlays for pictures and folders of pictures."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segdeform.cli.groups import option_groups
from segdeform.cli.inference import Inference
from segdeform.cli.numbers import whole_number
from segdeform.cli.output import Json, Model, print_json
from segdeform.cli.outputs import Outputs
from segdeform.cli.progress import progress_bars
from segdeform.errors import PartialFailureError, UsageError
from segdeform.machine.interrupts import stop_on_interrupt

if TYPE_CHECKING:
    from segdeform.prediction.summary import Summary

_SHOWN = 100  # letters of an option that is none
_LISTED = 10  # files of a kind named on the terminal; summary.json has all


@option_groups
def predict(
    model: Model,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="Pictures, videos, folders, 'quoted/**/*.jpg', @list.txt, or -.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the results.", show_default=False)],
    frames: Annotated[
        str,
        typer.Option(
            metavar="first|all",
            help="Of pictures with several frames or pages; of a video it is always all.",
        ),
    ] = "first",
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Predict again what is done; else only what is left."),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Of N processes with the same command, do the I-th share (torchrun's need none). "
            "Side by side on one machine give each its part of the cores by --threads.",
            show_default="1/1",
        ),
    ] = None,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="TOP,LEFT,HEIGHT,WIDTH",
            help="Predict this part of each picture, pixels; a mask has its size and place.",
            show_default="the whole",
        ),
    ] = None,
    value_range: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Black and white in pictures of more than 8 bits: 0,4095.",
            show_default="what the model says",
        ),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Compile the network for sizes that come again: for many pictures."
        ),
    ] = False,
    profile: Annotated[
        bool, typer.Option("--profile", help="Say what took the time, and what would take less.")
    ] = False,
    *,
    writing: Outputs,
    inference: Inference,
    json_output: Json = False,
) -> None:
    """Write a mask and an overlay for each picture, or other outputs; folders are searched through.

    FOLDER/street/a.jpg becomes OUTPUT/masks/street/a.png, whatever lies beside it; a picture given
    by name becomes OUTPUT/masks/a.png; of pictures on a map masks are GeoTIFFs. Nothing takes the
    place of another picture's: a second a.png in the same folder is listed as failed, and an output
    folder with another a.png is refused.

    '@list.txt' has a path a line; - reads a picture, or such lines, from standard input. A video
    gives OUTPUT/masks/NAME/000000.png and so on, and a video of overlays; so do, each frame or page
    by itself, pictures with several, where --frames all is given.

    predictions.jsonl and failures.jsonl in OUTPUT have a line for each picture as it finishes. The
    same command after an interruption, or with more pictures, does what is left; a picture that has
    changed since, or another model or option, is predicted again.
    """
    from segdeform.model_folder import refuse_missing_model
    from segdeform.prediction.listing import refuse_missing
    from segdeform.prediction.place import refuse_foreign

    if frames not in ("first", "all"):
        raise UsageError(f"--frames {frames}: expected first or all")
    share = None if shard is None else _shard(shard)
    limits = None if value_range is None else _range(value_range)
    part = None if window is None else _window(window)
    inference.options()
    outputs, forms = writing.names(), writing.forms()
    refuse_missing_model(model)  # all that needs no torch, before its seconds of import
    refuse_missing(inputs)
    refuse_foreign(output, inputs)

    from segdeform.machine.processes import own_share
    from segdeform.machine.stopwatch import Stopwatch, untimed
    from segdeform.prediction.predict import Shard, predict
    from segdeform.prediction.profile import lines, network_timed, profile_of
    from segdeform.windows import Window

    if share is None and own_share()[1] > 1 and Path("-") in inputs:
        raise UsageError("-: processes of torchrun cannot share standard input; give @list.txt")
    segmenter = inference.load(model, "auto")
    if limits is not None:
        segmenter.value_range = limits
    if compiled:
        segmenter.compile(partial(print, file=sys.stderr))
    watch = Stopwatch() if profile else None
    with (
        progress_bars() as progress,
        stop_on_interrupt() as stop,
        network_timed(segmenter, watch) if watch else nullcontext(),
    ):
        shown = partial(progress, "predicting")
        summary = predict(
            segmenter,
            inputs,
            output,
            outputs=outputs,
            forms=forms,
            every_frame=frames == "all",
            window=None if part is None else Window(*part),
            overwrite=overwrite,
            shard=Shard(*(share or own_share())),
            progress=shown,
            stop=stop,
            clock=watch or untimed,
        )
    found = profile_of(watch) if watch else None
    if json_output:
        told = {"profile": found.to_json()} if found else {}
        print_json({"output": str(output), **summary.to_json(), **told})
    else:
        _tell(summary, output, outputs)
        if found:
            print("\n".join(lines(found, segmenter)))
    _tell_failures(summary, output)


def _tell(summary: Summary, output: Path, outputs: Sequence[str]) -> None:
    """Prints what was done, and what a person should know of it."""
    count = len(summary.skipped)
    skipped = f", {_count(count, 'other file')} skipped" if count else ""
    kept = f", {summary.kept} of them before" if summary.kept else ""
    print(f"{_count(len(summary.done))} predicted{kept}{skipped}: {output / outputs[0]}")
    if summary.left:
        print(f"{_count(summary.left)} left to other processes")
    _list("skipped", [f"{path} ({reason})" for path, reason in summary.skipped])
    _list("left out, as masks of an earlier prediction", [str(path) for path in summary.own])
    several = [f"{d.source} ({d.frames})" for d in summary.done if d.is_first_of_several]
    _list("only the first of several frames or pages (--frames all: each)", several)
    _list("warning", [f"{d.source}: {d.note}" for d in summary.done if d.note])
    if summary.earlier:
        others = _count(summary.earlier, "picture")
        print(f"What earlier predictions made of {others} lies there as well")
    if "overlays" in outputs and summary.done:
        print(f"Look at {output / 'overview.png'}")


def _tell_failures(summary: Summary, output: Path) -> None:
    """Prints the first failures; raises PartialFailureError where there are any."""
    for source, reason in summary.failed[:_LISTED]:
        print(f"{source}: {reason}", file=sys.stderr)
    if len(summary.failed) > _LISTED:
        print(f"and {len(summary.failed) - _LISTED} more that failed", file=sys.stderr)
    if summary.failed:
        raise PartialFailureError(
            f"{_count(len(summary.failed))} of {len(summary.failed) + len(summary.done)} failed; "
            f"the reasons are in {output / 'failures.jsonl'}"
        )


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not (low < high and math.isfinite(low) and math.isfinite(high)):
        raise UsageError(f"--value-range {text}: expected two numbers, black and white: 0,4095")
    return low, high


def _window(text: str) -> tuple[int, int, int, int]:
    """Reads TOP,LEFT,HEIGHT,WIDTH."""
    numbers = [n for part in text.split(",") if (n := whole_number(part)) is not None]
    if len(numbers) != 4 or text.count(",") != 3 or 0 in numbers[2:]:
        raise UsageError(
            f"--window {text[:_SHOWN]}: expected the first row and column, and how many of each: "
            "0,512,2048,2048"
        )
    top, left, height, width = numbers
    return top, left, height, width


def _shard(text: str) -> tuple[int, int]:
    """Reads I/N; returns I from 0, and N."""
    first, _, last = text.partition("/")
    number, count = whole_number(first), whole_number(last)
    if number is None or count is None or not 1 <= number <= count:
        raise UsageError(f"--shard {text[:_SHOWN]}: expected I/N with I from 1 to N, as in 2/8")
    return number - 1, count


def _list(what: str, names: Sequence[str]) -> None:
    """Prints the first names; summary.json has all."""
    for name in names[:_LISTED]:
        print(f"{what}: {name}")
    if len(names) > _LISTED:
        print(f"{what}: and {len(names) - _LISTED} more, listed in summary.json")


def _count(number: int, thing: str = "picture") -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
