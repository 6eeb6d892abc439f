"""Plain against deformable convolution in a small classifier, on moved digits and photographs.

    python scripts/experiments/geometry_table.py --data DIR --output DIR

Six sets: MNIST upright, rotated, translated, both, and CIFAR-10 upright and rotated. Networks are
trained AND tested on pictures moved the same way: angles uniform in [-180, 180) degrees, shifts
uniform whole pixels, anew at every step in training, drawn once for the test. MNIST stands in a
frame of 40 x 40 pixels, in which neither loses a pixel alone; CIFAR-10 turns in its own 32 x 32
and loses its corners; what a picture does not cover is black.

The deformable network: four 3x3 layers (strides 2, 1, 2, 1) with BatchNorm and ReLU, all but the
first deformable (v1), the mean over all places (--pool max: the maximum), a linear layer. The plain
one is the same, its layers widened by one factor until it has at least as many parameters as the
deformable one including the offset branches. Equal steps, batches, pictures, motions and recipe;
one seed decides all of them, so that differences are taken by seed.

The defaults are a small budget, less than one pass over MNIST: networks that learn a set sooner
are ahead on it. --steps gives more. The pooling matters as much as the convolution: a maximum
forgives a plain network that what it looks for lies elsewhere, a mean does not.

OUTPUT gets runs/ (a JSON, the weights and TensorBoard events of each run), table.md, table.json,
curves.png and sampling.png. The same command goes on where it was stopped; a finished run is not
done again.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmark_ops describes the machine
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

import torch
import typer
from benchmark_ops import machine
from geometry.data import SETS, Pictures, find_root, read_pictures
from geometry.report import Result, draw_curves, draw_sampling, render_table, summarise
from geometry.training import (
    NETS,
    Budget,
    Net,
    Pool,
    build_classifier,
    describe_run,
    moved_once,
    train_classifier,
)
from PIL import Image

from segdeform.errors import InterruptedByUserError, ModelError, SegdeformError, UsageError, nearest
from segdeform.files.atomic import atomic_path, write_json, write_text
from segdeform.files.lock import run_lock
from segdeform.files.manifest import read_json, sha256
from segdeform.files.tensors import check_fit, read_tensors, write_tensors
from segdeform.machine.cpu import keep_freed_memory

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Experiment:
    """The runs of one output folder, done and to be done."""

    def __init__(self, output: Path, budget: Budget, seeds: int, pictures: dict[str, Pictures]):
        """Takes the sets' pictures by the name of their source, in sizes as the budget says."""
        self.output, self.budget, self.seeds, self.pictures = output, budget, seeds, pictures
        self._sha256 = {source: found.sha256() for source, found in pictures.items()}

    def run(self, name: str, net: Net, seed: int) -> tuple[Result, bool]:
        """Returns a run's result and whether it had to be trained.

        Raises:
            UsageError: the folder holds this run with other settings.
            ModelError: what it holds is damaged.
            NotFiniteError: training diverged.
        """
        settings = self._settings(name, net, seed)
        path = self.run_path(name, net, seed)
        if path.exists():
            result: Result = read_json(path)
            _refuse_other_settings(path, settings, result)
            return result, False
        row = SETS[name]
        pictures = self.pictures[row.source]
        board = path.with_suffix("")
        shutil.rmtree(board, ignore_errors=True)  # of a run that was stopped
        trained = train_classifier(
            row, net, pictures.train, pictures.test, self.budget, seed, board
        )
        weights = path.with_suffix(".safetensors")
        with atomic_path(weights) as part:
            write_tensors(part, trained.model.state_dict())
        result = {
            "settings": settings,
            "accuracy": trained.accuracy,
            "curve": trained.curve,
            "seconds": trained.seconds,
            "weights_sha256": sha256(weights),
            "environment": machine(torch.get_num_threads()) | {"python": platform.python_version()},
        }
        write_json(path, result)  # last: with it the run is done
        return result, True

    def passes(self) -> dict[str, float]:
        """Returns how often a run sees each training picture, by the name of the data set."""
        seen = self.budget.steps * self.budget.batch
        return {found.name: seen / len(found.train.labels) for found in self.pictures.values()}

    def run_path(self, name: str, net: Net, seed: int) -> Path:
        """Returns where a run's result stands."""
        return self.output / "runs" / f"{name}-{net}-seed{seed}.json"

    def _settings(self, name: str, net: Net, seed: int) -> dict[str, Any]:
        row = SETS[name]
        pictures = self.pictures[row.source]
        channels = pictures.train.images.shape[1]
        about = {"set": name, "seed": seed, "pictures": pictures.name}
        about["pictures_sha256"] = self._sha256[row.source]
        return about | describe_run(row, net, channels, self.budget)

    def load(self, name: str, seed: int) -> torch.nn.Sequential:
        """Loads a finished deformable network.

        Raises:
            ModelError: the weights are not those that the run wrote.
        """
        path = self.run_path(name, "deformable", seed)
        result, weights = read_json(path), path.with_suffix(".safetensors")
        if not weights.is_file() or sha256(weights) != result["weights_sha256"]:
            raise ModelError(f"{weights} is damaged: remove {path} to train this run again")
        channels = self.pictures[SETS[name].source].train.images.shape[1]
        widths = tuple(result["settings"]["widths"])
        model = build_classifier(channels, widths, deformable=True, pool=self.budget.pool)
        tensors = read_tensors(weights)
        check_fit(model.state_dict(), tensors, weights)
        model.load_state_dict(tensors)
        return model.eval()


def _refuse_other_settings(path: Path, wanted: dict[str, Any], found: Result) -> None:
    wanted = json.loads(json.dumps(wanted))
    try:
        held = found["settings"]
        other = [
            key for key in sorted(wanted.keys() | held.keys()) if wanted.get(key) != held.get(key)
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a result of this script: remove it") from error
    if other:
        key = other[0]
        raise UsageError(
            f"{path} was made with {key} {held.get(key)}, and now it is {wanted.get(key)}: "
            "choose another --output"
        )


def run_experiment(experiment: Experiment, names: list[str], command: str, draw: bool) -> None:
    """Does the runs seed by seed, so that a stopped experiment has compared like with like.

    The table is written anew after every pair, the drawings at the end.
    """
    results: dict[tuple[str, Net, int], Result] = {}
    about: dict[str, Any]
    jobs = [(seed, name, net) for seed in range(experiment.seeds) for name in names for net in NETS]
    for done, (seed, name, net) in enumerate(jobs, 1):
        result, trained = experiment.run(name, net, seed)
        results[name, net, seed] = result
        what = f"{result['seconds']:.0f} s" if trained else "done before"
        line = f"{name}, {net}, seed {seed}: {100 * result['accuracy']:.2f} % ({what})"
        print(f"{done}/{len(jobs)}  {line}", file=sys.stderr, flush=True)
        if net == NETS[-1]:
            rows = summarise(results, names)
            about = {"command": command, "runs": done, "of": len(jobs)}
            about["passes"] = experiment.passes()
            write_json(experiment.output / "table.json", about | {"rows": rows})
            table = render_table(rows, list(results.values()), about)
            write_text(experiment.output / "table.md", table)
    print(table)
    if draw:
        with atomic_path(experiment.output / "curves.png") as part:
            draw_curves(results, names).savefig(part)
        with atomic_path(experiment.output / "sampling.png") as part:
            _draw_sampling(experiment, names).save(part)


def _draw_sampling(experiment: Experiment, names: list[str]) -> Image.Image:
    shown = {}
    for name in names:
        row = SETS[name]
        test = experiment.pictures[row.source].test
        shown[name] = (experiment.load(name, 0), moved_once(row, test))
    return draw_sampling(shown)


def _names(text: str) -> list[str]:
    names = [word.strip() for word in text.split(",")]
    for name in names:
        if name not in SETS:
            raise UsageError(f"--sets {name}: unknown.{nearest(name, SETS)}")
    return list(dict.fromkeys(names))


@app.command()
def geometry_table(
    output: Annotated[Path, typer.Option(help="Folder of the runs and the table.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder of torchvision's data sets, or with data/mnist/*.npz, data/cifar10/*.zip.",
            show_default="SEGDEFORM_TEST_DATA",
        ),
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch them into --data.")] = False,
    sets: Annotated[str, typer.Option(metavar="A,B,...", help="Rows.")] = ",".join(SETS),
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each network on each set.")] = 3,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps of a run.")] = 600,
    batch: Annotated[int, typer.Option(min=2, help="Pictures a step.")] = 64,
    train_size: Annotated[
        int | None, typer.Option(min=1, help="Training pictures.", show_default="all")
    ] = None,
    test_size: Annotated[
        int | None, typer.Option(min=1, help="Test pictures.", show_default="all")
    ] = None,
    pool: Annotated[Pool, typer.Option(help="Over places, before the last layer.")] = "mean",
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of torch.", show_default="all cores")
    ] = None,
    draw: Annotated[bool, typer.Option(help="Draw curves.png and sampling.png.")] = True,
) -> None:
    """Compare plain and deformable convolution in a small classifier on moved pictures (CPU)."""
    names = _names(sets)
    root = find_root(data)
    if download and data is None:
        raise UsageError("--download needs --data DIR, where the pictures go")
    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()
    budget = Budget(steps, batch, train_size, test_size, pool)
    pictures = {}
    for source in dict.fromkeys(SETS[name].source for name in names):
        found = read_pictures(source, root, download=download)
        parts = found.train.subset(train_size), found.test.subset(test_size)
        pictures[source] = Pictures(found.name, *parts)
    command = (
        "python scripts/experiments/geometry_table.py --data DIR --output DIR "
        f"--sets {','.join(names)} --seeds {seeds} --steps {steps} --batch {batch} --pool {pool}"
    )
    command += "" if train_size is None else f" --train-size {train_size}"
    command += "" if test_size is None else f" --test-size {test_size}"
    with run_lock(output):
        experiment = Experiment(output, budget, seeds, pictures)
        try:
            run_experiment(experiment, names, command, draw)
        except KeyboardInterrupt as error:
            raise InterruptedByUserError("interrupted; the same command goes on") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit code; a failure is one line on stderr."""
    try:
        app(arguments)
    except SegdeformError as error:
        print(f"geometry_table: {error}", file=sys.stderr)
        return error.exit_code
    except SystemExit as end:  # so Typer ends
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
