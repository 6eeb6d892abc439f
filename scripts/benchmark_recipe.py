"""Images a second in training, against torchvision's reference recipe written with its own parts.

    python scripts/benchmark_recipe.py --data CAMVID [--workers 1] [--steps 12] [--rounds 5]
        [--weights FILE] [--precision fp32,bf16]

Both see CamVid in batches of the same crops, resized by the same range, flipped, with jittered
colours; both train the same network (configs/camvid.yaml without deformable layers, so that nothing
of ours but the loop is in it; --layers 3 for both with them). Theirs: PIL, torchvision's transforms
v2, torch's DataLoader with as many workers, autocast, cross entropy, SGD. Ours: the loader, the
loss, the optimiser and the averaging of `segdeform train`, SGD too.

Measured by turns: the data path alone, then whole steps, data included. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from segdeform.config.loading import load_config
from segdeform.config.schema import IMAGENET_MEAN, IMAGENET_STD, Config
from segdeform.data import load_dataset
from segdeform.data.cache import with_cache
from segdeform.data.dataset import Dataset
from segdeform.data.loader import train_loader
from segdeform.machine.cpu import keep_freed_memory
from segdeform.models import build_model, freeze_batch_norm
from segdeform.training.ema import averaged_model
from segdeform.training.gradients import PRECISIONS
from segdeform.training.losses import segmentation_loss
from segdeform.training.optim import build_optimizer, set_learning_rate

Batches = Iterator[tuple[Tensor, Tensor]]


class Pairs(TorchDataset[tuple[Tensor, Tensor]]):
    """The files of a data set, read and varied as torchvision's reference does it."""

    def __init__(self, dataset: Dataset, config: Config) -> None:
        self.dataset = dataset
        height, width = config.data.crop
        low, high = config.data.scale
        strength = config.data.color
        # The range of the shorter side that gives the range of the scale.
        side = 360
        self.transform = v2.Compose(
            [
                v2.RandomResize(int(low * side), int(high * side) + 1, antialias=True),
                v2.RandomHorizontalFlip(config.data.flip),
                v2.RandomCrop(
                    (height, width), pad_if_needed=True, fill={tv_tensors.Image: 0, "others": 255}
                ),
                v2.ColorJitter(strength, strength, strength, strength / 4),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD)),
            ]
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = self.dataset.samples[index]
        assert sample.mask is not None
        with Image.open(sample.image) as picture, Image.open(sample.mask) as mask:
            image = v2.functional.pil_to_tensor(picture.convert("RGB"))
            labels = v2.functional.pil_to_tensor(mask)[0]
        image, labels = self.transform(tv_tensors.Image(image), tv_tensors.Mask(labels))
        labels = labels.long()
        labels[labels >= len(self.dataset.classes)] = 255  # CamVid's void
        return image, labels


def their_batches(dataset: Dataset, config: Config, workers: int) -> Batches:
    """Yields normalised float batches without end."""
    loader = DataLoader(
        Pairs(dataset, config),
        config.train.batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def our_batches(dataset: Dataset, config: Config, workers: int) -> Batches:
    """Yields batches of bytes without end, nearly."""
    return train_loader(
        dataset,
        config.data,
        seed=0,
        first_step=0,
        steps=2**20,
        batch_size=config.train.batch_size,
        workers=workers,
    )


def network(config: Config, classes: int) -> nn.Module:
    """Builds the network that both train."""
    torch.manual_seed(0)
    model = build_model(config.model, config.deform, classes)
    if config.train.freeze_bn:
        freeze_batch_norm(model.backbone)
    return model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload, no-any-return]


def their_step(model: nn.Module, config: Config, precision: str) -> Callable[[Any], None]:
    """Returns a step as in torchvision's references/segmentation/train.py."""
    train, dtype = config.train, PRECISIONS[precision]
    optimizer = torch.optim.SGD(
        model.parameters(), train.lr, momentum=train.momentum, weight_decay=train.weight_decay
    )
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, 1000, power=0.9)
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)

    def step(batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        # Our network normalises by itself: theirs is undone, which costs a thousandth of the step.
        images = (images * std + mean).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = F.cross_entropy(model(images).logits, labels, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()

    return step


def our_step(model: Any, config: Config, precision: str) -> Callable[[Any], None]:
    """Returns a step as `segdeform train` does it, with the average of the weights."""
    train, dtype = config.train, PRECISIONS[precision]
    optimizer, average = build_optimizer(model, train), averaged_model(model, 0.995)

    def step(batch: tuple[Tensor, Tensor]) -> None:
        images, labels = batch
        images = images.to(torch.float32, memory_format=torch.channels_last) / 255
        set_learning_rate(optimizer, train, 1)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = model(images)
        segmentation_loss(output.logits, None, labels.long(), train, None).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 10)
        optimizer.step()
        average.update_parameters(model)

    return step


def seconds(batches: Batches, count: int, work: Callable[[Any], None] | None) -> float:
    """Returns the seconds of each of `count` batches."""
    began = time.perf_counter()
    for batch in islice(batches, count):
        if work is not None:
            work(batch)
    return (time.perf_counter() - began) / count


def main() -> None:
    """Prints the images a second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=0, help="deformable, of both")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--precision", default="fp32,bf16")
    options = parser.parse_args()
    keep_freed_memory()
    changes = [f"model.weights={options.weights}", f"deform.layers={options.layers}"]
    changes += ["train.optimizer=sgd", "train.lr=0.01", "data.max_class_share=1"]
    config = load_config("camvid", [*changes, "train.class_weights=null"])
    plain = load_dataset("camvid", options.data, config.data.train_split)
    cached, batch = with_cache(plain, print), config.train.batch_size
    paths: dict[str, Batches] = {
        "torchvision": their_batches(plain, config, options.workers),
        "segdeform": our_batches(plain, config, options.workers),
    }
    if cached.cache is not None:
        paths["segdeform, cache"] = our_batches(cached, config, options.workers)
    for batches in paths.values():
        next(batches)  # workers come up
    times: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(options.rounds):
        for name, batches in paths.items():
            seconds(batches, 2, None)  # what was made ahead while others were measured
            times[name].append(seconds(batches, options.steps, None))
    show("data path", times, batch)
    classes = len(plain.classes)
    for precision in options.precision.split(","):
        steps = {
            "torchvision": their_step(network(config, classes), config, precision),
            "segdeform": our_step(network(config, classes), config, precision),
        }
        times = {name: [] for name in steps}
        for turn in range(options.rounds + 1):
            for name, step in steps.items():
                spent = seconds(paths[name], max(2, options.steps // 3), step)
                if turn:
                    times[name].append(spent)
        show(f"whole step, {precision}", times, batch)


def show(what: str, times: dict[str, list[float]], batch: int) -> None:
    """Prints medians as images a second, and how they relate to the first."""
    rates = {name: batch / statistics.median(spent) for name, spent in times.items()}
    first = next(iter(rates.values()))
    shown = ", ".join(f"{name} {rate:.1f} ({rate / first:.2f}x)" for name, rate in rates.items())
    print(f"{what}: {shown} images/s", flush=True)


if __name__ == "__main__":
    main()
