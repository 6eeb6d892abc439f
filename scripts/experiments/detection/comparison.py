"""Runs every arm with every seed, keeps each result, and makes the table of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torchvision.models.detection import FasterRCNN

from detection.detector import Arm, build_detector
from detection.drawing import draw_detector
from detection.scenes import Scene
from detection.training import Recipe, score, train
from segdeform.ablation import Interval
from segdeform.errors import NotFiniteError, UsageError
from segdeform.files.atomic import atomic_path, write_json
from segdeform.files.tensors import check_fit, read_tensors, write_tensors

TITLES: dict[Arm, str] = {
    "plain": "RoIAlign",
    "deformable": "deformable RoI pooling",
    "rfcn": "R-FCN",
    "rfcn-deformable": "R-FCN, deformable",
}
PAIRS: tuple[tuple[Arm, Arm], ...] = (("deformable", "plain"), ("rfcn-deformable", "rfcn"))
MEASURES = ("ap50", "ap", "ap75")


@dataclass(frozen=True)
class Comparison:
    """What is compared, on what; `settings` holds all that a result depends on."""

    arms: Sequence[Arm]
    seeds: int
    names: Sequence[str]  # of the classes
    size: int
    recipe: Recipe
    weights: Path | None
    output: Path
    settings: dict[str, Any]

    def runs(self) -> list[tuple[Arm, int]]:
        """Lists the runs seed by seed: a stopped comparison has compared like with like."""
        return [(arm, seed) for seed in range(self.seeds) for arm in self.arms]

    def result_file(self, arm: Arm, seed: int) -> Path:
        return self.output / f"{arm}-seed{seed}.json"

    def weights_file(self, arm: Arm, seed: int) -> Path:
        return self.output / f"{arm}-seed{seed}.safetensors"

    def build(self, arm: Arm, seed: int) -> FasterRCNN:
        return build_detector(arm, len(self.names), self.size, seed, self.weights)


def run_all(
    comparison: Comparison,
    scenes: Callable[[], tuple[Sequence[Scene], Sequence[Scene]]],
    say: Callable[[str], None],
) -> None:
    """Trains and scores what has no result yet; `scenes` gives training and validation pictures."""
    open_runs = [run for run in comparison.runs() if not comparison.result_file(*run).exists()]
    if not open_runs:
        return
    training, validation = scenes()
    for arm, seed in open_runs:
        name = comparison.result_file(arm, seed).stem
        model = comparison.build(arm, seed)
        try:
            losses = train(
                model,
                training,
                comparison.recipe,
                seed,
                lambda line: say(f"{name}: {line}"),  # noqa: B023
            )
        except FloatingPointError as error:
            raise NotFiniteError(f"{name}: {error}; lower --rate") from error
        found = score(model, validation, len(comparison.names))
        result = {
            "arm": arm,
            "seed": seed,
            **{measure: getattr(found.precision, measure) for measure in MEASURES},
            "ap_by_class": {
                name: None if math.isnan(value) else value
                for name, value in zip(
                    comparison.names, found.precision.by_class.mean(1).tolist(), strict=True
                )
            },
            "mean_shift": found.shift,
            "parameters": sum(p.numel() for p in model.parameters()),
            "first_loss": losses[0],
            "last_loss": losses[-1],
        }
        with atomic_path(comparison.weights_file(arm, seed)) as temporary:
            write_tensors(temporary, model.state_dict())
        write_json(comparison.result_file(arm, seed), result)  # last: it says that all is there
        say(f"{name}: AP50 {result['ap50']:.3f}, AP {result['ap']:.3f}")


def draw(comparison: Comparison, scenes: Sequence[Scene]) -> Path | None:
    """Draws what the deformable detector of seed 0 finds, as OUTPUT/bins.png; None if nothing."""
    source = comparison.weights_file("deformable", 0)
    model = comparison.build("deformable", 0)
    given = read_tensors(source)
    check_fit(model.state_dict(), given, source)
    model.load_state_dict(given)
    picture = draw_detector(model.eval(), scenes, comparison.names)
    if picture is None:
        return None
    with atomic_path(comparison.output / "bins.png") as temporary:
        picture.save(temporary)
    return comparison.output / "bins.png"


def facts(comparison: Comparison, about: dict[str, Any]) -> dict[str, Any]:
    """Gathers the results: means with 95% intervals over seeds, and differences seed by seed."""
    results = {run: _read(comparison.result_file(*run)) for run in comparison.runs()}
    seeds = range(comparison.seeds)
    rows = []
    for arm in comparison.arms:
        runs = [results[arm, seed] for seed in seeds]
        shifts = [run["mean_shift"] for run in runs if run["mean_shift"] is not None]
        rows.append(
            {
                "arm": arm,
                "title": TITLES[arm],
                "parameters": runs[0]["parameters"],
                "mean_shift": sum(shifts) / len(shifts) if shifts else None,
                **{m: asdict(Interval.of([run[m] for run in runs])) for m in MEASURES},
                "runs": runs,
            }
        )
    differences = []
    for one, other in PAIRS:
        if one in comparison.arms and other in comparison.arms:
            change = {
                m: Interval.of([results[one, s][m] - results[other, s][m] for s in seeds])
                for m in MEASURES
            }
            beyond = {m: interval.beyond_noise for m, interval in change.items()}
            differences.append(
                {
                    "arm": one,
                    "against": other,
                    **{m: {**asdict(change[m]), "beyond_noise": beyond[m]} for m in MEASURES},
                }
            )
    return {**about, "settings": comparison.settings, "seeds": comparison.seeds,
            "arms": rows, "differences": differences}  # fmt: skip


def markdown(found: dict[str, Any]) -> str:
    """Formats the facts as Markdown; precisions in percent, with 95% intervals over the seeds."""
    lines = [
        "| pooling | parameters | AP50 | AP | AP75 | mean way of a bin |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["arms"]:
        shift = "-" if row["mean_shift"] is None else f"{100 * row['mean_shift']:.1f}% of the box"
        cells = " | ".join(_percent(row[m]) for m in MEASURES)
        lines.append(f"| {row['title']} | {row['parameters'] / 1e6:.2f} M | {cells} | {shift} |")
    for change in found["differences"]:
        cells = " | ".join(_percent(change[m], sign="+") for m in MEASURES)
        title = f"{TITLES[change['arm']]} - {TITLES[change['against']]}"
        lines.append(f"| *{title}* | | {cells} | |")
    settings = found["settings"]
    lines += [
        "",
        f"{found['seeds']} seeds; mean and 95% interval (Student's t); differences seed by seed. "
        f"{settings['data']}, {settings['train']} pictures to learn from, {settings['val']} to "
        f"score; {settings['recipe']['steps']} steps of {settings['recipe']['batch']}.",
        "",
        f"`{found['command']}`; {found['processor']}, {settings['threads']} threads; torch "
        f"{settings['torch']}, torchvision {settings['torchvision']}; {found['date']}.",
    ]
    return "\n".join(lines) + "\n"


def _percent(interval: dict[str, Any], sign: str = "") -> str:
    text = f"{100 * interval['mean']:{sign}.1f}"
    if interval["low"] is None:
        return text
    return f"{text} [{100 * interval['low']:{sign}.1f}, {100 * interval['high']:{sign}.1f}]"


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); remove it and run again") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: holds no result; remove it and run again")
    return value
