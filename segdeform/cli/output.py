"""What the commands share: options of the same meaning, and how results are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

Data = Annotated[
    Path | None,
    typer.Option(
        help="Root of the data set; for cityscapes also CITYSCAPES_DATASET.", show_default=False
    ),
]
Kind = Annotated[
    str | None, typer.Option("--dataset", help="Its kind.", show_default="the one trained on")
]
Split = Annotated[str, typer.Option(help="Which part of it.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:N or auto.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Model = Annotated[
    Path, typer.Argument(metavar="MODEL", help="Run or model folder.", show_default=False)
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=4096, help="CPU threads of torch.", show_default="all cores"),
]

MOST_ROWS = 255  # of a table on a screen, a class each
ROWS_OF_MANY = 40  # of a table of more classes than that


def print_json(value: Any) -> None:
    """Prints a JSON value to stdout; NaN and infinities raise ValueError."""
    print(json.dumps(value, indent=2, allow_nan=False))


def shown_score(value: float | None) -> str:
    """Returns a score with four digits, a dash where there is none."""
    missing = value is None or value != value  # None in JSON, NaN elsewhere
    return "\N{EN DASH}" if missing else f"{value:.4f}"
