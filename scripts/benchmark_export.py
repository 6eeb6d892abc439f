"""Pictures a second of exported networks, against the network itself, in one process.

    python scripts/benchmark_export.py [--side 512] [--threads 2] [--rounds 7] [--pure]

Networks of random weights (DeepLabV3+, output stride 16, 21 classes) are exported for every runtime
that is installed, which compares them, too; then each labels the same picture by turns, so that a
machine's moods meet all, from an array in memory to the labels, as `predict` does it. Printed are
the medians over the rounds, in pictures a second, as a table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from segdeform.config.schema import DeformConfig, ModelConfig
from segdeform.export.export import FORMATS, Wanted, export_model
from segdeform.machine.cpu import keep_freed_memory
from segdeform.models import build_model
from segdeform.models.deform import deformable_layers
from segdeform.segmenter import ModelDescription, Segmenter, load, save_model

CLASSES = tuple(f"class {k}" for k in range(21))


def write_model(folder: Path, backbone: str, layers: int) -> None:
    """Writes a model whose BatchNorm and offsets are as after a training."""
    torch.manual_seed(0)
    model = ModelConfig.model_validate({"backbone": backbone, "weights": "none"})
    deform = DeformConfig(layers=layers)
    network = build_model(model, deform, len(CLASSES)).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    for layer in deformable_layers(network).values():
        nn.init.normal_(layer.offset_conv.weight, std=0.01)
    palette = tuple((12 * k, 255 - 12 * k, 7 * k) for k in range(len(CLASSES)))
    description = ModelDescription(model=model, deform=deform, classes=CLASSES, palette=palette)
    save_model(folder, network, description)


def contestants(place: Path, backbone: str, layers: int, pure: bool) -> dict[str, Segmenter]:
    """Returns {name: network}: our own, and one a runtime."""
    write_model(place / "model", backbone, layers)
    found = {"segdeform": load(place / "model", "cpu")}
    for name, runtime in FORMATS.items():
        try:
            version = metadata.version(runtime)
        except metadata.PackageNotFoundError:
            continue
        for plain in (False, True) if pure and layers else (False,):
            folder = place / f"{name}-{plain}"
            export_model(place / "model", folder, Wanted((name,), pure=plain))
            shown = f"{runtime} {version}{' --pure' if plain else ''}"
            found[shown] = load(folder, "cpu")
    return found


def picture(side: int) -> NDArray[np.uint8]:  # [side, side, 3]
    """Draws smooth noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (side // 16, side // 16, 3), np.uint8))
    return np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))


def paces(networks: dict[str, Segmenter], side: int, rounds: int) -> dict[str, float]:
    """Returns pictures a second of each; all take their turn in every round."""
    pixels = picture(side)
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for turn in range(rounds + 1):
        for name, segmenter in networks.items():
            begun = time.perf_counter()
            segmenter.label(pixels)
            if turn:  # the first is for warming up
                seconds[name].append(time.perf_counter() - begun)
    return {name: 1 / statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="+", default=["mobilenet_v2", "resnet50"])
    parser.add_argument("--layers", nargs="+", type=int, default=[0, 3])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--pure", action="store_true", help="also without DeformConv")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_freed_memory()
    print(f"pictures a second, {given.side}x{given.side}, {given.threads} threads")
    for backbone in given.backbones:
        for layers in given.layers:
            with tempfile.TemporaryDirectory() as place:
                networks = contestants(Path(place), backbone, layers, given.pure)
                found = paces(networks, given.side, given.rounds)
            row = ", ".join(f"{name} {pace:.2f}" for name, pace in found.items())
            print(f"{backbone}, {layers} deformable layers: {row}", flush=True)


if __name__ == "__main__":
    main()
