"""A run's log as a table and as a picture: RUN/results.csv and RUN/curves.png."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segdeform.callbacks import Say
from segdeform.files.atomic import write_bytes, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TABLE, PICTURE = "results.csv", "curves.png"
_TRAINED = ("loss", "learning_rate", "images_per_second", "loader_wait", "memory_bytes")
_SCORED = ("miou", "accuracy")
_NAMED = 12  # classes that have a colour and a name of their own in the picture

Entry = dict[str, Any]


def write_curves(run: Path, classes: Sequence[str], say: Say) -> None:
    """Writes both from RUN/log.jsonl, each whole or not at all.

    What cannot be read, drawn or written is told by `say`: no run ends for it.
    """
    what = TABLE
    try:
        entries = read_log(run / "log.jsonl")
        write_text(run / TABLE, table(entries, classes))
        what = PICTURE
        write_bytes(run / PICTURE, picture(entries, classes))
    except Exception as error:  # a damaged log, a full disk, fonts, other versions of what draws
        say(f"warning: {what} was not written: {error}; log.jsonl has the numbers")


def read_log(path: Path) -> list[Entry]:
    """Reads the lines of a log, in their order."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def table(entries: Sequence[Entry], classes: Sequence[str]) -> str:
    """Writes a row for each entry; a cell is empty where an entry has no such number.

    A column names the split, where more than one was scored.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    split = ["split"] if any("split" in entry for entry in entries) else []
    writer.writerow(
        ["step", "kind", *split, *_TRAINED, *_SCORED, *(f"IoU {name}" for name in classes)]
    )
    for entry in entries:
        iou = entry.get("iou", {})
        numbers = [entry.get(key) for key in (*split, *_TRAINED, *_SCORED)]
        cells = [*numbers, *(iou.get(name) for name in classes)]
        writer.writerow(
            [entry["step"], entry["kind"], *("" if cell is None else cell for cell in cells)]
        )
    return out.getvalue()


def picture(entries: Sequence[Entry], classes: Sequence[str]) -> bytes:
    """Draws loss and rate beside the scores over the steps; returns a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    trained = [entry for entry in entries if entry["kind"] == "train"]
    first, *others = _by_split(entries).items()
    figure = Figure(figsize=(12, 5), dpi=110)
    FigureCanvasAgg(figure)
    sides = {"left": 0.05, "right": 0.86, "bottom": 0.1, "top": 0.94}
    grid = figure.add_gridspec(2, 2, height_ratios=(3, 1), wspace=0.12, hspace=0.2, **sides)
    loss, rate = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[1, 0])
    scores = figure.add_subplot(grid[:, 1])
    _draw(loss, "training loss", trained, "loss", "#1f77b4")
    _draw(rate, "learning rate", trained, "learning_rate", "#7f7f7f")
    rate.set_xlabel("step")
    rate.set_ylim(bottom=0)
    loss.sharex(rate)
    loss.tick_params(labelbottom=False)
    _draw_scores(scores, first[1], classes, dict(others))
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def _draw(axes: Axes, title: str, entries: Sequence[Entry], key: str, colour: str) -> None:
    points = [(entry["step"], entry[key]) for entry in entries if entry.get(key) is not None]
    _line(axes, points, colour, 1.6, None)
    axes.set_title(title, loc="left", fontsize=10)
    _tidy(axes)


def _by_split(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Returns the evaluations by the names of their splits, "" where there is one; the one that
    decides is the first."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry["kind"] == "val":
            found.setdefault(entry.get("split", ""), []).append(entry)
    return found or {"": []}


def _draw_scores(
    axes: Axes,
    entries: Sequence[Entry],
    classes: Sequence[str],
    others: Mapping[str, Sequence[Entry]],
) -> None:
    """Draws mIoU over the IoU of the classes, with names where these are few."""
    import matplotlib

    named, colours = len(classes) <= _NAMED, matplotlib.colormaps["tab20"]
    for number, name in enumerate(classes):
        points = [(entry["step"], entry.get("iou", {}).get(name)) for entry in entries]
        colour = colours(number % 20) if named else "#cccccc"
        _line(axes, [p for p in points if p[1] is not None], colour, 1.0, name if named else None)
    _line(axes, _means(entries), "black", 2.4, "mIoU")
    for number, (name, scored) in enumerate(others.items()):
        grey = str(0.25 + 0.5 * number / len(others))
        _line(axes, _means(scored), grey, 2.0, f"mIoU {name}", style="--")
    axes.set_title("validation: IoU of the classes and their mean", loc="left", fontsize=10)
    axes.set_xlabel("step")
    axes.set_ylim(0, 1)
    _tidy(axes)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _means(entries: Sequence[Entry]) -> list[tuple[int, float]]:
    return [(entry["step"], entry["miou"]) for entry in entries if entry["miou"] is not None]


def _line(
    axes: Axes,
    points: Sequence[tuple[int, float]],
    colour: Any,
    width: float,
    label: str | None,
    style: str = "-",
) -> None:
    """Draws points as a line; so few that one would not see it, as marks too."""
    mark = "o" if len(points) < 12 else ""
    steps, values = [p[0] for p in points], [p[1] for p in points]
    # One that begins with an underscore would be left out of the legend.
    shown = f" {label}" if label is not None and label.startswith("_") else label
    look = {"color": colour, "linewidth": width, "linestyle": style}
    axes.plot(steps, values, **look, marker=mark, markersize=3, label=shown)


def _tidy(axes: Axes) -> None:
    axes.grid(True, color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
