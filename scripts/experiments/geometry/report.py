"""What `geometry_table.py` shows: the table, learning curves, sampling points on pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from cuda_ops import DeformConv2d
from geometry.data import Split
from geometry.training import NETS, WATCHED, Net
from segdeform.ablation import Interval
from segdeform.explaining.drawing import draw_points
from segdeform.explaining.sampling import follow, place_of, record_layers

Result = dict[str, Any]
Results = Mapping[tuple[str, Net, int], Result]  # by set, network, seed
Row = dict[str, Any]

# Accuracies of plain and deformable convolution, %, that a later note on deformable convolution
# gave for a small network of its own: not this network, budget or protocol.
PUBLISHED = {
    "mnist": (98.82, 99.1),
    "mnist-rotated": (95.78, 98.27),
    "mnist-translated": (95.71, 98.27),
    "mnist-rotated-translated": (87.28, 94.03),
    "cifar": (67.36, 68.52),
    "cifar-rotated": (53.01, 55.16),
}
_PAPER, _INK = (255, 255, 255), (30, 30, 30)
_COLOURS: dict[Net, str] = {"plain": "#5a5ac8", "deformable": "#d7461e"}


def summarise(results: Results, names: Sequence[str]) -> list[Row]:
    """Returns a row of JSON values for each set with a seed that both networks have finished."""
    rows = []
    for name in names:
        seeds = sorted(
            seed
            for set_name, net, seed in results
            if set_name == name and net == "plain" and (name, "deformable", seed) in results
        )
        if not seeds:
            continue
        of = {net: [results[name, net, seed] for seed in seeds] for net in NETS}
        scores = {net: [100 * run["accuracy"] for run in runs] for net, runs in of.items()}
        pairs = zip(scores["deformable"], scores["plain"], strict=True)
        difference = Interval.of([ours - plain for ours, plain in pairs])
        settings = of["plain"][0]["settings"]
        row: Row = {"set": name, "pictures": settings["pictures"], "seeds": seeds}
        row |= {key: settings[key] for key in ("angle", "shift", "frame")}
        for net in NETS:
            row[net] = {
                "mean": statistics.fmean(scores[net]),
                "std": statistics.stdev(scores[net]) if len(seeds) > 1 else None,
                "accuracies": scores[net],
                "parameters": of[net][0]["settings"]["parameters"],
            }
        row["difference"] = vars(difference) | {"beyond_noise": difference.beyond_noise}
        rows.append(row)
    return rows


def render_table(rows: Sequence[Row], results: Sequence[Result], about: Mapping[str, Any]) -> str:
    """Writes the table as Markdown, with all that is needed to make it again."""
    lines = [
        "# Plain and deformable convolution on moved pictures",
        "",
        "Test accuracy in %, mean ± standard deviation over seeds; difference deformable - plain,",
        "taken by seed, with its 95% interval (Student's t); **bold** where that leaves 0 out.",
        "Trained and tested on pictures moved the same way.",
        "",
        "| set | pictures | plain | deformable | difference | seeds | a published note* |",
        "|---|---|---:|---:|---:|---:|---:|",
        *map(_table_line, rows),
        "",
        "\\* plain / deformable, accuracy in % of another network, budget and protocol: only the",
        "direction can be compared.",
        "",
        *_facts(rows, results, about),
    ]
    return "\n".join(lines) + "\n"


def _table_line(row: Row) -> str:
    cells = [row["set"], row["pictures"]]
    for net in NETS:
        std = row[net]["std"]
        cells.append(f"{row[net]['mean']:.2f}" + ("" if std is None else f" ± {std:.2f}"))
    change = row["difference"]
    text = f"{change['mean']:+.2f}"
    if change["low"] is not None:
        text += f" ({change['low']:+.2f} to {change['high']:+.2f})"
    cells.append(f"**{text}**" if change["beyond_noise"] else text)
    plain, deformable = PUBLISHED[row["set"]]
    return f"| {' | '.join([*cells, str(len(row['seeds'])), f'{plain} / {deformable}'])} |"


def _facts(rows: Sequence[Row], results: Sequence[Result], about: Mapping[str, Any]) -> list[str]:
    settings = results[0]["settings"]
    recipe = settings["training"]
    counts = {
        f"{row['plain']['parameters']:,} plain, {row['deformable']['parameters']:,} deformable "
        f"({'MNIST' if row['set'].startswith('mnist') else 'CIFAR-10'})": None
        for row in rows
    }
    places = {_environment(result["environment"]): None for result in results}
    dates = sorted({result["environment"]["date"] for result in results})
    passes = ", ".join(f"{count:.2g} over {name}" for name, count in about["passes"].items())
    motions = "; ".join(f"{row['set']}: {_motion(row)}" for row in rows)
    return [
        f"- Command: `{about['command']}`",
        f"- Runs done: {about['runs']} of {about['of']}; {settings['steps']} steps of "
        f"{settings['batch']} pictures each (passes: {passes}), {recipe['optimizer'].upper()}, "
        f"rate {recipe['lr']}, offset branches {recipe['offset_lr_factor']} of it.",
        f"- Motions: {motions}.",
        f"- Parameters: {'; '.join(counts)}: the plain network is widened until it has as many.",
        *(f"- On: {place}" for place in places),
        f"- Date: {dates[0] if len(dates) == 1 else f'{dates[0]} to {dates[-1]}'}",
    ]


def _motion(row: Row) -> str:
    parts = [f"turned by up to ±{row['angle']}°"] if row["angle"] else []
    parts += [f"shifted by up to ±{row['shift']} pixels along both axes"] if row["shift"] else []
    return f"{' and '.join(parts) or 'upright'} in {row['frame']} x {row['frame']} pixels"


def _environment(values: Mapping[str, Any]) -> str:
    return (
        f"{values['processor']}, {values['threads']} of {values['cores']} cores, Python "
        f"{values['python']}, torch {values['torch']}, torchvision {values['torchvision']}, "
        f"kernels: {values['backend']}"
    )


_PANEL = (5.6, 4.0)  # width and height of a set's learning curves, inches of 100 pixels


def draw_curves(results: Results, names: Sequence[str]) -> Figure:
    """Draws the test error against the steps for each set: a thin line a run, the mean thick."""
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    size = (columns * _PANEL[0], rows * _PANEL[1])
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for panel, name in zip(panels, names, strict=False):
        for net in NETS:
            runs = [run["curve"] for (*row, _), run in results.items() if row == [name, net]]
            if not runs:
                continue
            steps = [point["step"] for point in runs[0]]
            errors = np.array([[_error(point) for point in run] for run in runs])  # [seeds, points]
            panel.plot(steps, errors.T, color=_COLOURS[net], alpha=0.5, linewidth=1)
            panel.plot(steps, errors.mean(axis=0), color=_COLOURS[net], linewidth=3, label=net)
        panel.set(title=name, xlabel="steps", ylabel="test error, %", yscale="log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter("{x:g}")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.grid(axis="y", color="0.85")
    panels[0].legend()
    for panel in panels[len(names) :]:
        panel.remove()
    note = f"Test error of up to {WATCHED} pictures; thin: one seed, thick: mean"
    figure.suptitle(note, fontsize="medium")
    return figure


def _error(point: Mapping[str, float]) -> float:
    """Returns the error of a curve's point, %; a logarithm needs it above 0."""
    return max(100 * (1 - point["accuracy"]), 50 / WATCHED)


_CELL, _CAPTION = 480, 52  # pixels: side of a picture of sampling points, height of its heading
_SHOWN = 4  # pictures a set


def draw_sampling(shown: Mapping[str, tuple[nn.Sequential, Split]]) -> Image.Image:
    """Draws which pixels two places rest on, through all deformable layers, for pictures of sets.

    One place is a digit's most inked part, or a photograph's middle; the other is the middle of the
    upper left quarter. 9^3 samples each, those beyond the border of a layer's input left out.
    """
    size = (_SHOWN * (_CELL + 8), _CAPTION + len(shown) * (_CELL + _CAPTION))
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    note = "What two places (rings) of the last layer rest on: 9 x 9 x 9 samples through 3 layers"
    draw.text((8, 14), note, fill=_INK, font=_font(24))
    for line, (name, (model, test)) in enumerate(shown.items()):
        top = _CAPTION + line * (_CELL + _CAPTION)
        moved = []
        for column, index in enumerate(_first_of_classes(test)):
            picture, lengths = _sampled(model, test.images[index])
            moved.append(lengths)
            canvas.paste(picture, (column * (_CELL + 8), top + _CAPTION))
        lengths_text = ", ".join(f"{value:.2f}" for value in np.mean(moved, axis=0))
        text = f"{name}: samples moved by {lengths_text} pixels on average in layers 2, 3, 4"
        draw.text((8, top + 16), text, fill=_INK, font=_font(22))
    return canvas


def _first_of_classes(test: Split) -> list[int]:
    """Returns the indices of the first pictures of different classes."""
    first: dict[int, int] = {}
    for index, label in enumerate(test.labels.tolist()):
        first.setdefault(label, index)
    return list(first.values())[:_SHOWN]


def _sampled(model: nn.Sequential, image: torch.Tensor) -> tuple[Image.Image, NDArray[np.float64]]:
    """Draws the samples of two places on a picture [C, S, S]; and how far layers moved theirs."""
    layers = {name: m for name, m in model.named_modules() if isinstance(m, DeformConv2d)}
    recorded, _ = record_layers(layers, lambda: model(image[None]), output_stride=4)
    side = image.shape[1]
    centre = (side // 2, side // 2)
    if len(image) == 1:  # a digit need not lie in the middle
        blurred = torch.nn.functional.avg_pool2d(image[None], 5, 1, 2)
        centre = divmod(int(blurred.argmax()), side)
    places = [centre, (side // 4, side // 4)]
    points = [follow(recorded, place_of(recorded[-1], place)) for place in places]
    colours = 3 // len(image)  # a grey picture shows its one channel three times
    pixels = (255 * image).round().byte().repeat(colours, 1, 1).permute(1, 2, 0).numpy()
    drawn = draw_points(np.ascontiguousarray(pixels), places, points)
    lengths = np.array([layer.offset_length().mean() for layer in recorded], np.float64)
    return drawn.resize((_CELL, _CELL), Image.Resampling.LANCZOS), lengths


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)
