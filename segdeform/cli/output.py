"""What the commands share: options of the same meaning, and how results and progress are shown."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from segdeform.errors import UsageError
from segdeform.machine import interrupts

if TYPE_CHECKING:
    from rich.progress import TaskID

    from segdeform.segmenter import Segmenter

Data = Annotated[
    Path | None,
    typer.Option(
        help="Root of the data set; for cityscapes also CITYSCAPES_DATASET.", show_default=False
    ),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Run or model folder.", show_default=False)
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="CPU threads of torch.", show_default="all cores")
]
Tile = Annotated[
    int | None,
    typer.Option(min=0, help="Side of the sliding window, pixels; 0: whole pictures."),
]
Overlap = Annotated[
    float | None, typer.Option(min=0, max=0.99, help="Overlap of neighbouring windows / side.")
]
Scales = Annotated[
    str | None, typer.Option(metavar="A,B,...", help="Average over these scales: 0.75,1,1.25.")
]
Blend = Annotated[
    Literal["gaussian", "uniform"] | None, typer.Option(help="Weights where windows overlap.")
]
Flip = Annotated[bool | None, typer.Option("--flip/--no-flip", help="Average over a flip too.")]


def print_json(value: Any) -> None:
    """Prints a JSON value to stdout; NaN and infinities raise ValueError."""
    print(json.dumps(value, indent=2, allow_nan=False))


def shown_score(value: float | None) -> str:
    """Returns a score with four digits, a dash where there is none."""
    missing = value is None or value != value  # None in JSON, NaN elsewhere
    return "\N{EN DASH}" if missing else f"{value:.4f}"


def load_segmenter(
    model: Path,
    device: str,
    threads: int | None,
    tile: int | None,
    overlap: float | None,
    scales: str | None,
    flip: bool | None,
    blend: str | None,
) -> Segmenter:
    """Loads a model; what is given replaces the model's own inference options."""
    import torch

    from segdeform.config.schema import EvalConfig
    from segdeform.segmenter import load

    if threads is not None:
        torch.set_num_threads(threads)
    given = {
        "tile": tile,
        "overlap": overlap,
        "blend": blend,
        "scales": _numbers(scales),
        "flip": flip,
    }
    segmenter = load(model, device)
    options = segmenter.options.model_dump()
    options |= {key: value for key, value in given.items() if value is not None}
    segmenter.options = EvalConfig(**options)
    return segmenter


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or not all(0.1 <= number <= 10 for number in numbers):
        raise UsageError(f"--scales {text}: expected numbers from 0.1 to 10, as in 0.75,1,1.25")
    return numbers


@contextmanager
def progress_bar(description: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """Lends `progress(done, total)`: a bar on stderr, and nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeLeft())
    hidden = not shown or not sys.stderr.isatty()
    with Progress(*columns, console=console, disable=hidden) as progress:
        task = progress.add_task(description, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def step_bars() -> Iterator[Callable[[str, int, int], None]]:
    """Lends `progress(step, done, total)`: a bar for each step on stderr, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeLeft())
    with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
        tasks: dict[str, TaskID] = {}

        def show(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = progress.add_task(step)
            progress.update(tasks[step], completed=done, total=total)

        yield show


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Lends a question "was Ctrl-C pressed?"; a second Ctrl-C raises KeyboardInterrupt."""
    pressed = False

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    previous = signal.signal(signal.SIGINT, receive)
    try:
        interrupts.refuse_to_go_on()
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)
