"""Three steps of `train` against the same three steps written by hand, bit for bit.

By hand means: torch's optimisers, autocast, clipping and cross entropy, PIL for the pictures and
the formulas of the config's documentation; of segdeform only the network, the order of an epoch and
the transform of one crop. Every config key that training reads is at another value than its default
in some case, so that a key that does not arrive changes the bits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from segdeform.config.schema import IMAGENET_MEAN, Config, DataConfig, TrainConfig
from segdeform.data import load_dataset
from segdeform.data.sampler import epoch_order
from segdeform.data.transforms import TrainTransform
from segdeform.evaluation.evaluate import evaluate
from segdeform.files.tensors import read_tensors
from segdeform.models import build_model, freeze_batch_norm
from segdeform.models.deeplab import DeepLab
from segdeform.segmenter import load
from segdeform.training.loop import train
from tests.training.conftest import ReporterThat

CLASSES, SIZES = 4, ((41, 67), (53, 39), (29, 88), (61, 45), (37, 37))  # pictures, [H, W]
# Sums of these weights, also smoothed by 1/8, are exact in float32 in any order.
WEIGHTS = (0.5, 2.0, 1.25, 0.25)
DATA = {
    "crop": (35, 51),
    "scale": (0.7, 1.6),
    "max_class_share": 0.4,
    "flip": 0.9,
    "rotate": 25.0,
    "color": 0.7,
    "class_balance": 0.6,
    "augment": ({"name": "Affine", "shear": [-20, 20], "p": 0.7},),
}
NUMBERS = {"mean": (0.2, 0.45, 0.7), "std": (0.15, 0.3, 0.4)}  # of the channels
BASE = {
    "steps": 3,
    "batch_size": 2,
    "lr": 0.03,
    "momentum": 0.8,
    "weight_decay": 0.05,
    "poly_power": 1.7,
    "min_lr_factor": 0.2,
    "backbone_lr_factor": 0.5,
    "offset_lr_factor": 3.0,
    "seed": 5,
    "log_every": 1,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "warm-up, poly": {"warmup_steps": 2},
    "warm-up, cosine": {"warmup_steps": 2, "schedule": "cosine"},
    "constant": {"schedule": "constant", "channels_last": False},
    "adamw": {"optimizer": "adamw", "lr": 1e-3},
    "class weights": {"class_weights": WEIGHTS},
    "smoothing": {"label_smoothing": 0.3},
    "weights, smoothing": {"class_weights": WEIGHTS, "label_smoothing": 0.125},
    "clipping": {"clip_grad_norm": 0.5},
    "average": {"ema_decay": 0.15},
    "bf16": {"precision": "bf16"},
    "ohem, threshold": {"loss": "ohem", "ohem_keep": 0.1, "ohem_threshold": 0.25},
    "ohem, share": {"loss": "ohem", "ohem_keep": 0.6, "ohem_threshold": 0.01},
    "focal": {"loss": "focal", "focal_gamma": 1.5},
    "boundary": {"loss": "boundary", "boundary_width": 2, "boundary_strength": 1.5},
    "slower towards the pictures": {"layer_decay": 0.75},
    "parts": {"batch_size": 4, "accumulate": 2, "class_weights": WEIGHTS},
    "blocks computed again": {"checkpointing": True, "precision": "bf16"},
    "auxiliary head": {"auxiliary_head": True, "auxiliary_weight": 0.7},
    "frozen": {"freeze_bn": True},
    "all": {
        "class_weights": WEIGHTS,
        "label_smoothing": 0.125,
        "clip_grad_norm": 0.5,
        "ema_decay": 0.15,
        "precision": "bf16",
        "loss": "ohem",
        "ohem_keep": 0.6,
        "ohem_threshold": 0.01,
        "auxiliary_head": True,
        "auxiliary_weight": 0.7,
        "freeze_bn": True,
        "schedule": "cosine",
        "warmup_steps": 1,
    },
}


def _config(case: str, **sections: Any) -> Config:
    train_keys = {**BASE, **CASES[case]}
    model: dict[str, Any] = {"backbone": "mobilenet_v2", "weights": "none", "head_channels": 16}
    model["aspp_rates"] = (1, 1, 2)  # what fits the crop
    model["auxiliary_head"] = train_keys.pop("auxiliary_head", False)
    values = {
        "data": {"name": "folder", **DATA, **NUMBERS},
        "model": model,
        "deform": {"layers": 2},
    }
    return Config.model_validate({**values, "train": train_keys, **sections})


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise of five odd sizes with masks of four classes and void, one of them nearly all void."""
    root, chance = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, sizes in (("train", SIZES), ("val", ((33, 58), (45, 31)))):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number, (height, width) in enumerate(sizes):
            image = chance.integers(0, 256, (height, width, 3), np.uint8)
            coarse = chance.choice([0, 1, 2, 3, 255], (height // 9 + 1, width // 9 + 1))
            mask = np.kron(coarse, np.ones((9, 9))).astype(np.uint8)[:height, :width]
            if number == 1:
                mask[:, 8:] = 255
            Image.fromarray(image).save(root / split / "images" / f"{number}.png")
            Image.fromarray(mask).save(root / split / "masks" / f"{number}.png")
    (root / "classes.txt").write_text("a\nb\nc\nd\n")
    return root


def _batches(config: Config, root: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Cuts the crops of each step: epochs in their orders, one after the other."""
    data, settings = config.data, config.train
    transform = TrainTransform(
        crop=data.crop,
        scale=data.scale,
        max_class_share=data.max_class_share,
        flip=data.flip,
        rotate=data.rotate,
        color=data.color,
        mean=data.mean or IMAGENET_MEAN,
        augment=data.augment,
        class_balance=data.class_balance,
    )
    for step in range(settings.steps):
        images, labels = [], []
        for position in range(step * settings.batch_size, (step + 1) * settings.batch_size):
            epoch, place = divmod(position, len(SIZES))
            index = int(epoch_order(settings.seed, epoch, len(SIZES))[place])
            image, mask = (
                np.asarray(Image.open(root / "train" / kind / f"{index}.png"))
                for kind in ("images", "masks")
            )
            image, mask = transform(image, mask, settings.seed, epoch, index)
            images.append(image)
            labels.append(mask)
        yield torch.tensor(np.stack(images)), torch.tensor(np.stack(labels)).long()


def _rate(settings: TrainConfig, step: int) -> float:
    share = step / settings.steps
    curve = {
        "poly": (1 - share) ** settings.poly_power,
        "cosine": (1 + math.cos(math.pi * share)) / 2,
        "constant": 1.0,
    }[settings.schedule]
    rate = settings.min_lr_factor + (1 - settings.min_lr_factor) * curve
    if step < settings.warmup_steps:
        rate *= (step + 1) / settings.warmup_steps
    return settings.lr * rate


def _mean_loss(
    settings: TrainConfig, logits: Tensor, labels: Tensor, all_labels: Tensor | None = None
) -> Tensor:
    """Divides the cross entropy of the labelled pixels by the weights of their smoothed targets.

    The latter are those of the whole batch, where `labels` is a part of it.
    """
    weights = torch.tensor(settings.class_weights or [1.0] * CLASSES)
    smoothing = settings.label_smoothing
    total = F.cross_entropy(
        logits,
        labels,
        weights if settings.class_weights else None,
        reduction="sum",
        ignore_index=255,
        label_smoothing=smoothing,
    )
    whole = labels if all_labels is None else all_labels
    of_pixels = weights[whole[whole != 255]]
    return total / ((1 - smoothing) * of_pixels + smoothing * weights.mean()).sum()


def _hard(settings: TrainConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the labels of the hard pixels, the others void."""
    truth = logits.detach().softmax(1).permute(0, 2, 3, 1)[labels != 255]
    truth = truth[range(len(truth)), labels[labels != 255]]
    last = truth.sort().values[math.ceil(settings.ohem_keep * len(truth)) - 1]
    kept = labels.clone()
    kept[labels != 255] = torch.where(
        (truth < settings.ohem_threshold) | (truth <= last), labels[labels != 255], 255
    )
    assert 0 < (kept != 255).sum() < (labels != 255).sum(), "the case tries nothing"
    return kept


def _mean_of_costs(settings: TrainConfig, logits: Tensor, labels: Tensor) -> Tensor:
    """Weighs the cross entropy of each pixel by how badly it is known, or by what is near it."""
    costs = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
    seen = (labels != 255).float()
    if settings.loss == "focal":
        return (seen * (-(-costs).expm1()) ** settings.focal_gamma * costs).sum() / seen.sum()
    near = torch.ones_like(costs)
    reach = settings.boundary_width
    for n, y, x in torch.nonzero(labels != 255).tolist():
        window = labels[n, max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        if len(window[window != 255].unique()) > 1:
            near[n, y, x] += settings.boundary_strength
    weight = seen * near
    assert seen.sum() < weight.sum() < (1 + settings.boundary_strength) * seen.sum()
    return (weight * costs).sum() / weight.sum()


def _optimizer(settings: TrainConfig, model: DeepLab) -> torch.optim.Optimizer:
    """Gives every parameter a group of its own, by its name and shape."""
    groups = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = settings.backbone_lr_factor if name.startswith("backbone.") else 1.0
        if name.startswith("backbone.features."):  # 18 blocks
            factor *= settings.layer_decay ** (18 - int(name.split(".")[2]))
        factor *= settings.offset_lr_factor if ".offset_conv." in name else 1.0
        decay = settings.weight_decay if parameter.dim() == 4 else 0.0
        groups.append({"params": [parameter], "factor": factor, "weight_decay": decay})
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups)
    return torch.optim.SGD(groups, momentum=settings.momentum)


@torch.no_grad()
def _average(settings: TrainConfig, average: nn.Module, model: nn.Module, step: int) -> None:
    decay = min(settings.ema_decay, (1 + step) / (10 + step))
    current = model.state_dict()
    for name, value in average.state_dict().items():
        moves = value.is_floating_point() and step > 0
        value.copy_(value.lerp(current[name], 1 - decay) if moves else current[name])


def _three_steps_by_hand(config: Config, root: Path) -> dict[str, Any]:
    """Trains; returns network, average, momenta and what is logged of each step."""
    settings = config.train
    torch.manual_seed(settings.seed)
    model = build_model(config.model, config.deform, CLASSES, **NUMBERS)
    if settings.freeze_bn:
        freeze_batch_norm(model.backbone)
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    model = model.to(memory_format=layout).train()
    average, optimizer, logged = deepcopy(model), _optimizer(settings, model), []
    for step, (images, labels) in enumerate(_batches(config, root)):
        rate = _rate(settings, step)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        optimizer.zero_grad()
        total = 0.0
        for part in range(settings.accumulate):
            seed = [settings.seed, step, 0, part] if part else [settings.seed, step, 0]
            entropy = np.random.SeedSequence(seed).generate_state(1, np.uint64)
            torch.manual_seed(int(entropy[0]))  # of dropout
            size = settings.batch_size // settings.accumulate
            rows = slice(part * size, (part + 1) * size)
            inputs = images[rows].permute(0, 3, 1, 2).contiguous(memory_format=layout).float() / 255
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16"):
                output = model(inputs)
            truth = labels[rows]
            hard = _hard(settings, output.logits, truth) if settings.loss == "ohem" else truth
            mean = _mean_of_costs if settings.loss in ("focal", "boundary") else _mean_loss
            if settings.accumulate > 1:
                loss = _mean_loss(settings, output.logits, truth, labels)
            else:
                loss = mean(settings, output.logits, hard)
            if config.model.auxiliary_head:
                side = _mean_loss(settings, output.auxiliary, truth)
                loss = loss + settings.auxiliary_weight * side
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if settings.clip_grad_norm:
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad_norm)
            assert norm > 2 * settings.clip_grad_norm, "the case tries nothing"
        optimizer.step()
        _average(settings, average, model, step)
        logged.append((total, rate))
    momenta = {
        f"{name}/{key}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    return {"model": model, "average": average, "momenta": momenta, "logged": logged}


def _assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    differing = [name for name, value in expected.items() if not torch.equal(found[name], value)]
    assert not differing


@pytest.mark.parametrize("case", CASES)
def test_three_steps_are_those_by_hand(pictures: Path, tmp_path: Path, case: str) -> None:
    config = _config(case)
    expected = _three_steps_by_hand(config, pictures)
    train(config, pictures, tmp_path, device="cpu", workers=0, reporter=ReporterThat())

    last = tmp_path / "checkpoints" / "step-00000003"
    _assert_same(read_tensors(last / "model.safetensors"), expected["model"].state_dict())
    _assert_same(read_tensors(last / "optimizer.safetensors"), expected["momenta"])
    best = expected["average"] if config.train.ema_decay else expected["model"]
    model = read_tensors(tmp_path / "model" / "model.safetensors")
    _assert_same(model, best.state_dict())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    logged = [(e["loss"], e["learning_rate"]) for e in lines if e["kind"] == "train"]
    assert logged == expected["logged"]
    if config.train.freeze_bn:
        torch.manual_seed(config.train.seed)
        start = build_model(config.model, config.deform, CLASSES).state_dict()
        norms = [name.removesuffix("running_var") for name in start if "running_var" in name]
        for norm in norms:
            same = all(torch.equal(start[n], model[n]) for n in start if n.startswith(norm))
            assert same == norm.startswith("backbone."), norm


def test_every_key_of_training_is_tried_at_another_value_than_its_default() -> None:
    free = {
        "steps",
        "epochs",
        "batch_size",
        "compile",  # rounds otherwise: test_compiled.py
        "keep_best",
        "patience",
        "save_every",
        "eval_every",
        "log_every",
    }
    tried = set(BASE).union(*CASES.values()) - {"auxiliary_head"}
    assert tried | free == set(TrainConfig.model_fields)
    settled = {"name", "train_split", "val_split", "channels", "normalize"}  # by the data set
    assert {*DATA, *NUMBERS} == set(DataConfig.model_fields) - settled
    configs = [_config(case) for case in CASES]
    for section, keys in (("train", tried), ("data", {*DATA, *NUMBERS})):
        for key in keys:
            default = str(getattr(getattr(Config(), section), key))
            values = {str(getattr(getattr(config, section), key)) for config in configs}
            assert values - {default}, f"{section}.{key}"


@pytest.mark.parametrize("key", [*DATA, "mean"])
def test_every_key_of_the_data_changes_the_crops(pictures: Path, key: str) -> None:
    plain = {**DATA, **NUMBERS, key: getattr(Config().data, key)}
    if key == "mean":
        del plain["std"]
    ours = _batches(_config("plain"), pictures)
    others = _batches(_config("plain", data={"name": "folder", **plain}), pictures)
    pairs = zip(ours, others, strict=True)
    assert not all(torch.equal(a[0], b[0]) for a, b in pairs), "tries nothing"


def test_evaluations_are_made_as_the_config_says(pictures: Path, tmp_path: Path) -> None:
    options = {"tile": 24, "overlap": 0.5, "blend": "uniform", "scales": [0.75, 1.25], "flip": True}
    config = _config("average", eval=options)
    config = config.model_copy(
        update={"train": config.train.model_copy(update={"eval_every": 2, "save_every": 2})}
    )
    train(config, pictures, tmp_path, device="cpu", workers=0, reporter=ReporterThat())
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    logged = {e["step"]: (e["miou"], e["accuracy"]) for e in lines if e["kind"] == "val"}
    dataset = load_dataset("folder", pictures, "val")
    for step, folder in ((2, tmp_path / "checkpoints" / "step-00000002"), (3, tmp_path / "model")):
        segmenter = load(folder, "cpu")
        assert segmenter.options.model_dump(mode="json", include=set(options)) == options, folder
        scores = evaluate(segmenter, dataset).scores
        assert logged[step] == (scores.miou, scores.accuracy), folder
        plain = Config().eval.model_dump(include=set(options))
        segmenter.options = segmenter.options.model_copy(update=plain)
        assert evaluate(segmenter, dataset).scores.accuracy != scores.accuracy, "tries nothing"
