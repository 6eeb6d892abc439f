"""Measures what deformable layers add to a training step: step times of several networks in turn.

python scripts/benchmark_step.py camvid [--layers 0 3] [--repeats 12] [--device cpu]
    [--set KEY=VALUE] [--json FILE]

Every network does a whole step (forward, loss, backward, update) on the same random crops, turn by
turn in one process; the loader has no part in it. Prints minimum (median) and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does

import torch

from segdeform.config.loading import load_config
from segdeform.config.schema import Config
from segdeform.machine.cpu import keep_freed_memory
from segdeform.models import build_model, freeze_batch_norm
from segdeform.training.gradients import PRECISIONS
from segdeform.training.losses import segmentation_loss
from segdeform.training.optim import build_optimizer

CLASSES = 11


def make_step(config: Config, device: torch.device) -> Callable[[], None]:
    """Returns a function that does one training step of the config's network, random weights."""
    torch.manual_seed(0)
    train = config.train
    model = build_model(config.model, config.deform, CLASSES, pretrained=False)
    if train.freeze_bn:
        freeze_batch_norm(model.backbone)
    model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = build_optimizer(model, train)
    images = torch.rand(train.batch_size, 3, *config.data.crop, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(CLASSES, (train.batch_size, *config.data.crop), device=device)

    dtype = PRECISIONS[train.precision]

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            output = model(images)
        segmentation_loss(output.logits, output.auxiliary, labels, train, None).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return step


def main() -> None:
    """Prints a line a network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a shipped config or a file")
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 3])
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    device = torch.device(options.device)
    steps, times = {}, {}
    for layers in options.layers:
        config = load_config(options.config, [*options.set, f"deform.layers={layers}"])
        steps[layers], times[layers] = make_step(config, device), []
        steps[layers]()
    for _ in range(options.repeats):
        for layers, step in steps.items():
            began = time.perf_counter()
            step()
            times[layers].append(1e3 * (time.perf_counter() - began))
    least = min(times[options.layers[0]])
    if options.json:
        facts = {
            "config": options.config,
            "set": options.set,
            "device": options.device,
            "torch": torch.__version__,
        }
        options.json.write_text(json.dumps(facts | {"ms by layers": times}, indent=1) + "\n")
    for layers, seen in times.items():
        print(
            f"{layers} deformable layers: {min(seen):.0f} ms ({statistics.median(seen):.0f}), "
            f"{min(seen) / least:.3f} of {options.layers[0]} layers"
        )


if __name__ == "__main__":
    main()
