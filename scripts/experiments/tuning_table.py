"""What a trained network is worth as a start: from shapes to outlines, against from nothing.

    python scripts/experiments/tuning_table.py --output FOLDER [--steps 120] [--seeds 3]

A network is trained on generated shapes (configs/shapes.yaml), then on outlines, whose colours tell
nothing of the class: from that network (model.weights), and from random weights, by the same steps
and seeds. Printed is val mIoU over the steps, mean and standard deviation over the seeds. The same
call goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from segdeform.config.loading import load_config
from segdeform.preparing.shapes import write_shapes
from segdeform.training.loop import train


def curve(run: Path) -> dict[int, float]:
    """Returns val mIoU by the steps of a run's log."""
    entries = map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return {entry["step"]: entry["miou"] for entry in entries if entry["kind"] == "val"}


def main() -> None:
    """Trains, and prints a row for each way to begin."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--base-steps", type=int, default=220)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    place: Path = options.output
    write_shapes(place / "shapes")
    write_shapes(place / "outlines", outline_only=True)
    base = place / "base"
    config = load_config("shapes", [f"train.steps={options.base_steps}"])
    train(config, place / "shapes", base, device=options.device, resume=True)
    rows: dict[str, list[dict[int, float]]] = {}
    for name, weights in (("from shapes", str(base)), ("from nothing", "none")):
        for seed in range(options.seeds):
            run = place / f"{name.replace(' ', '-')}-{seed}"
            changes = [f"model.weights={weights}", f"train.seed={seed}"]
            changes += [f"train.steps={options.steps}", f"train.eval_every={options.steps // 4}"]
            config = load_config("shapes", [*changes, "data.name=shapes"])
            train(config, place / "outlines", run, device=options.device, resume=True)
            rows.setdefault(name, []).append(curve(run))
    steps = sorted(rows["from nothing"][0])
    print("| val mIoU on outlines, after steps | " + " | ".join(map(str, steps)) + " |")
    print("|---" * (len(steps) + 1) + "|")
    for name, curves in rows.items():
        cells = []
        for step in steps:
            values = [found[step] for found in curves]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3f} ± {spread:.3f}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
