"""Does deformable RoI pooling pay in a detector? Trains the same detector with and without it.

    python scripts/experiments/detection_table.py --weights FILE --output FOLDER

Boxes come from the generated data set `shapes`, or are CamVid's cars (--data). Every run is kept as
soon as it is done: the same command goes on after an interruption, and more --seeds or --arms are
added to what is there. FOLDER then holds table.md, table.json and bins.png. Boxes are scored by
pycocotools, which `pip install -e .[dev]` brings.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmark_ops describes the machine
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does

import torch
import torchvision
import typer
from benchmark_ops import machine
from detection.comparison import (
    Comparison,
    draw,
    facts,
    markdown,
    run_all,
)
from detection.detector import ARMS
from detection.scenes import Scene, car_scenes, class_names, shapes_scenes
from detection.training import Recipe

import cuda_ops
from segdeform.errors import SegdeformError, UsageError
from segdeform.files.atomic import write_json, write_text
from segdeform.files.kept_settings import keep_settings
from segdeform.machine.cpu import keep_freed_memory

app = typer.Typer(add_completion=False)


@app.command()
def main(
    output: Annotated[Path, typer.Option(help="Folder of results, table and picture.")],
    data: Annotated[Path | None, typer.Option(help="CamVid, for its cars; else shapes.")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="MobileNetV2 with torchvision's keys; else random.")
    ] = None,
    arms: Annotated[str, typer.Option(help=f"Of {', '.join(ARMS)}.")] = "plain,deformable",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each arm.")] = 3,
    steps: Annotated[int, typer.Option(min=1)] = 400,
    batch: Annotated[int, typer.Option(min=1, help="Pictures a step.")] = 4,
    size: Annotated[int, typer.Option(min=64, help="Shorter side in pixels.")] = 160,
    train: Annotated[int, typer.Option(min=1, help="Pictures to learn from.")] = 400,
    val: Annotated[int, typer.Option(min=1, help="Pictures to score.")] = 100,
    rate: Annotated[float, typer.Option(min=0, help="Learning rate.")] = 5e-4,
    offset_rate: Annotated[
        float, typer.Option(min=0, help="Learning rate of the offsets, as a share of --rate.")
    ] = 0.1,
    threads: Annotated[int, typer.Option(min=1, help="Results depend on it a little.")] = 1,
) -> None:
    """Trains a small detector with plain and with deformable RoI pooling, and compares them."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    chosen = [arm for arm in ARMS if arm in arms.split(",")]
    if unknown := [word for word in arms.split(",") if word not in ARMS]:
        raise UsageError(f"--arms {unknown[0]}: it is one of {', '.join(ARMS)}")
    recipe = Recipe(steps, batch, rate, offset_rate)
    settings = {
        "data": "shapes" if data is None else "camvid cars",
        "size": size,
        "train": train,
        "val": val,
        "recipe": asdict(recipe),
        "weights": None if weights is None else _digest(weights),
        "threads": threads,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "backend": cuda_ops.backend("cpu", "deform_roi_pool"),
    }
    names = class_names(cars=data is not None)
    comparison = Comparison(chosen, seeds, names, size, recipe, weights, output, settings)
    keep_settings(output, settings)

    def scenes(split: str) -> Sequence[Scene]:
        count = train if split == "train" else val
        if data is None:
            return shapes_scenes(split, count, size)
        return car_scenes(data, split, count)

    run_all(comparison, lambda: (scenes("train"), scenes("val")), _say)
    about = {"command": shlex.join(["python", *sys.argv]), "python": platform.python_version()}
    found = facts(comparison, about | machine(threads))
    write_json(output / "table.json", found)
    write_text(output / "table.md", markdown(found))
    print(markdown(found))
    if "deformable" in chosen:
        picture = draw(comparison, scenes("val"))
        _say(f"drawn: {picture}" if picture else "nothing is found: no picture is drawn")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _digest(weights: Path) -> str:
    try:
        return hashlib.sha256(weights.read_bytes()).hexdigest()
    except OSError as error:
        raise UsageError(f"--weights {weights}: cannot be read: {error.strerror}") from error


if __name__ == "__main__":
    try:
        app()
    except SegdeformError as error:
        print(f"detection_table: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
