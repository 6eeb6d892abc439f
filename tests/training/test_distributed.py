"""Several processes are one training: the same loss, gradient and weights as one process."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from segdeform.config.schema import Config, TrainConfig
from segdeform.data import load_dataset
from segdeform.errors import ConfigError
from segdeform.evaluation.evaluate import evaluate
from segdeform.files.tensors import read_tensors, write_tensors
from segdeform.machine.processes import Processes, own_rank
from segdeform.models import build_model
from segdeform.models.deeplab import DeepLab
from segdeform.preparing.shapes import write_shapes
from segdeform.segmenter import load
from segdeform.training import plan as plan_module
from segdeform.training import setup as opening
from segdeform.training import state as states
from segdeform.training import step as steps
from segdeform.training.checkpoint import TrainState, optimizer_tensors
from segdeform.training.gradients import step_seed
from segdeform.training.loop import train
from segdeform.training.optim import set_learning_rate
from segdeform.training.plan import Plan, default_workers
from segdeform.training.run_folder import checkpoint_folders
from tests.ranks import Ranks, run_ranks
from tests.training.conftest import ReporterThat, tiny_config

CPU = torch.device("cpu")
VOID = (0.0, 0.97, 0.2, 1.0, 0.5, 0.9, 0.03)  # share of each picture that has no label


@pytest.fixture(scope="session")
def partly_void(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("void")
    write_shapes(root, seed=3, train=len(VOID), val=3, size=64)
    for path, share in zip(sorted((root / "train" / "masks").iterdir()), VOID, strict=True):
        mask = np.asarray(Image.open(path)).copy()
        mask[:, : round(share * mask.shape[1])] = 255
        Image.fromarray(mask).save(path)
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights whose BatchNorm statistics keep the size of what passes, as if trained."""
    torch.manual_seed(0)
    network = torchvision.models.mobilenet_v2(weights=None)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    network(torch.randn(4, 3, 64, 64))
    path = tmp_path_factory.mktemp("weights") / "weights.safetensors"
    save_file(network.state_dict(), path)
    return path


def small_config(weights: Path, **train: Any) -> Config:
    """Returns a config without dropout, all of whose BatchNorm is frozen."""
    values = {
        "data": {"name": "shapes", "crop": [24, 40]},
        "model": {"backbone": "mobilenet_v2", "weights": str(weights), "head": "deeplab"},
        "deform": {"layers": 2},
        "train": {"batch_size": 6, "log_every": 1, "freeze_bn": True, "schedule": "constant"},
    }
    values["train"].update(train)
    values["model"]["head_channels"] = 16
    return Config.model_validate(values)


def without_kinks(model: DeepLab, seed: int = 0) -> DeepLab:
    """Makes the loss smooth, so that rounding stays small: no ReLU, no sample on an exact pixel."""
    generator = torch.Generator().manual_seed(seed)
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.ReLU | nn.ReLU6):
                setattr(parent, name, nn.SiLU())
    for name, parameter in model.named_parameters():
        if name.endswith("offset_conv.bias"):
            parameter.data.uniform_(0.2, 0.8, generator=generator)
    return model


def trains(config: str, data: Path, run: Path, **options: Any) -> list[str]:
    """Trains in one of several processes; only rank 0 has the run folder. Returns what was told."""
    reporter = ReporterThat()
    own = run if own_rank() == 0 else run.with_name(f"nowhere-{own_rank()}")
    options = {"device": "cpu", "workers": 0, "reporter": reporter, **options}
    result = train(Config.model_validate_json(config), data, own, **options)
    assert result.model == run / "model"
    assert own.exists() == (own_rank() == 0)
    return reporter.messages


def trains_without_kinks(config: str, data: Path, run: Path) -> None:
    """Trains from weights that only rank 0 knows; leaves the first gradient in the run folder."""
    build, update = states._build_network, steps._update

    def update_and_look(plan: Plan, state: TrainState) -> None:
        update(plan, state)
        if state.step == 0 and own_rank() == 0:  # of the first step, the momentum is the gradient
            write_tensors(run / "gradient.safetensors", optimizer_tensors(state))

    def build_without(*arguments: Any, **named: Any) -> tuple[DeepLab, str | None]:
        network, digest = build(*arguments, **named)
        return without_kinks(network, own_rank()), digest

    states._build_network = build_without
    steps._update = update_and_look
    trains(config, data, run)


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Returns |found - expected| / |expected| over all tensors together."""
    assert found.keys() == expected.keys()
    apart = sum(float((found[k].double() - v.double()).square().sum()) for k, v in expected.items())
    return float((apart / sum(float(v.double().square().sum()) for v in expected.values())) ** 0.5)


def test_any_number_of_processes_trains_as_one(
    partly_void: Path, weights: Path, tmp_path: Path
) -> None:
    of_classes = [0.2, 1.0, 3.0, 1.0, 2.0, 0.5, 1.5]
    settings = {"class_weights": of_classes, "label_smoothing": 0.1, "weight_decay": 0, "lr": 3e-3}
    config = small_config(weights, steps=20, **settings)
    parted = config.model_copy(update={"train": config.train.model_copy(update={"accumulate": 2})})
    torch.manual_seed(config.train.seed)
    start = without_kinks(build_model(config.model, config.deform, len(of_classes))).state_dict()
    gradients, changes, losses = {}, {}, {}
    for size in (1, 2, 3):
        run = tmp_path / str(size)
        used = parted if size == 3 else config  # processes and parts are the same to the loss
        run_ranks(size, trains_without_kinks, used.model_dump_json(), partly_void, run)
        gradients[size] = read_tensors(run / "gradient.safetensors")
        end = read_tensors(run / "model" / "model.safetensors")
        changes[size] = {name: end[name] - start[name] for name in end}
        log = map(json.loads, (run / "log.jsonl").read_text().splitlines())
        losses[size] = [entry["loss"] for entry in log if entry["kind"] == "train"]
    for size in (2, 3):
        apart = distance(gradients[size], gradients[1]), distance(changes[size], changes[1])
        print(f"{size} processes: first gradient {apart[0]:.1e}, change {apart[1]:.1e}")
        assert apart[0] < 1e-6 and apart[1] < 1e-3
        assert losses[size] == pytest.approx(losses[1], rel=1e-5)
    assert losses[1][-1] < losses[1][0]


def dies(config: str, data: Path, run: Path, rank: int | None) -> list[str]:
    """Trains with --resume; one rank is killed in its fourth step."""

    def rate(optimizer: Any, train: TrainConfig, step: int) -> float:
        if step == 3 and own_rank() == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return set_learning_rate(optimizer, train, step)

    steps.set_learning_rate = rate
    return trains(config, data, run, resume=True)


def test_a_restart_after_a_lost_rank_ends_with_the_same_bits(shapes: Path, tmp_path: Path) -> None:
    """As under `torchrun --max-restarts`: the store still holds what the lost ones wrote.

    Of three, since only then the bits of a sum depend on its order.
    """
    settings = {"steps": 5, "save_every": 2, "eval_every": 3, "ema_decay": 0.9, "batch_size": 6}
    config = tiny_config(optimizer="adamw", lr=1e-3, **settings)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    messages, *_ = run_ranks(3, trains, config.model_dump_json(), shapes, whole)
    warning = r"\d+ BatchNorm layers see 2 of the 6 crops"
    assert any(re.search(warning, message) for message in messages), messages

    ranks = Ranks(3, dies, config.model_dump_json(), shapes, broken, 1)
    first, second, third = ranks.ended()
    assert second.code == -9
    for end in (first, third):
        assert end.error.startswith("PeerLostError: Another process")
    assert checkpoint_folders(broken)[0].name == "step-00000002"
    ranks.start(config.model_dump_json(), shapes, broken, None)
    assert not any(end.error for end in ranks.ended())
    files = [path.relative_to(whole) for path in checkpoint_folders(whole)[0].glob("*.safetensors")]
    for file in [*files, Path("model/model.safetensors"), Path("metrics.json")]:
        assert (whole / file).read_bytes() == (broken / file).read_bytes(), file
    assert json.loads((whole / "timing.json").read_text())["processes"] == 3
    alone = evaluate(load(whole, "cpu"), load_dataset("shapes", shapes, "val"))
    assert alone.to_json() == json.loads((whole / "metrics.json").read_text())

    again = Ranks(2, resumes_elsewhere, config.model_dump_json(), shapes, [tmp_path / "new", whole])
    assert "UsageError" in (error := again.ended()[0].error) and "copy the folder" in error
    assert not checkpoint_folders(tmp_path / "new")


def resumes_elsewhere(config: str, data: Path, runs: list[Path]) -> None:
    """Resumes where the run folder is on the disk of rank 1."""
    run = runs[own_rank()]
    train(Config.model_validate_json(config), data, run, device="cpu", workers=0, resume=True)


def is_told_to_stop(config: str, data: Path, run: Path) -> list[str]:
    """Rank 1 alone is sent SIGTERM, in its second step."""

    def rate(optimizer: Any, train: TrainConfig, step: int) -> float:
        if step == 1 and own_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return set_learning_rate(optimizer, train, step)

    steps.set_learning_rate = rate
    return trains(config, data, run)


def test_a_stop_of_one_process_saves_and_ends_all(shapes: Path, tmp_path: Path) -> None:
    ends = Ranks(2, is_told_to_stop, tiny_config().model_dump_json(), shapes, tmp_path).ended()
    for end in ends:
        assert end.error.startswith("StoppedError: Stopped on request, saved at step 2 of 4")
    assert checkpoint_folders(tmp_path)[0].name == "step-00000002"


def trains_each_its_own(configs: list[str], data: list[Path], run: Path) -> list[str]:
    """Gives every rank a config and a data set of its own, as on machines of their own."""
    os.environ["LOCAL_RANK"] = "0"
    return trains(configs[own_rank()], data[own_rank()], run)


def test_processes_with_other_settings_or_data_are_refused(shapes: Path, tmp_path: Path) -> None:
    other, run = tmp_path / "other", tmp_path / "run"
    write_shapes(other, seed=0, train=5, val=2, size=64)
    configs = [tiny_config(seed=seed).model_dump_json() for seed in (0, 1)]
    first, second = Ranks(2, trains_each_its_own, configs, [shapes, shapes], run).ended()
    refusal = "train.seed is 1 for process 1 and 0 for process 0"
    assert refusal in second.error and second.error.startswith("ConfigError")
    assert refusal in first.error and first.error.startswith("PeerLostError")
    configs = 2 * configs[:1]
    first, second = Ranks(2, trains_each_its_own, configs, [shapes, other], run).ended()
    assert second.error.startswith("DataError: the train split of process 1 lists other pictures")
    first, second = Ranks(2, trains_each_its_own, configs, [tmp_path, shapes], run).ended()
    assert "holds no shapes" in first.error
    assert second.error.startswith("PeerLostError: Another process failed (number 0: ")
    broken = shutil.copytree(shapes, tmp_path / "broken")
    picture = next((broken / "val" / "images").iterdir())
    picture.write_bytes(picture.read_bytes()[:100])
    first, second = Ranks(2, trains_each_its_own, configs, [shapes, broken], run).ended()
    assert second.error.startswith("DataError") and str(picture) in second.error
    assert str(picture) in first.error and not run.exists()


@pytest.mark.parametrize(
    ("kind", "here", "workers"), [("cpu", 1, 8), ("cpu", 3, 2), ("cuda", 1, 16), ("cuda", 4, 14)]
)
def test_processes_of_a_machine_share_its_cores(
    kind: str, here: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    monkeypatch.setattr(plan_module, "available_cores", lambda: 64)
    assert default_workers(torch.device(kind)) == workers


def test_batch_that_cannot_be_shared(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "processes", lambda device: nullcontext(Processes(0, 3)))
    with pytest.raises(ConfigError, match=r"train\.batch_size = 2 cannot be shared equally by 3"):
        train(tiny_config(), shapes, tmp_path, device="cpu", workers=0, reporter=ReporterThat())


def test_every_part_of_a_step_and_rank_has_its_own_seed() -> None:
    seeds = {step_seed(*key) for key in product(range(3), range(9), range(4), range(2))}
    assert len(seeds) == 3 * 9 * 4 * 2
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3) == step_seed(1, 2, 3, 0)
