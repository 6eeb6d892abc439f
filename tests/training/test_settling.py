"""What is `auto` gets its values once: told, written, kept by whoever goes on with the run."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from segdeform.config.loading import Draft, dump_config, load_config, load_draft
from segdeform.errors import ConfigError, StoppedError, UsageError
from segdeform.files.manifest import sha256
from segdeform.machine.processes import own_rank
from segdeform.models import build_model, freeze_batch_norm
from segdeform.models.pyramid import fit_to_crop
from segdeform.training import settling, trial
from segdeform.training.loop import train
from segdeform.training.memory import bytes_of_crop
from segdeform.training.pace import Pace
from segdeform.training.plan import Plan
from tests.likenesses import write_cracks
from tests.ranks import run_ranks
from tests.training.conftest import ReporterThat, send, tiny_config

TEXT = """
data: {name: folder, crop: auto, scale: auto}
model: {backbone: mobilenet_v2, weights: none, head_channels: 16}
deform: {layers: 2}
train: {steps: 3, batch_size: auto, class_weights: auto, warmup_steps: auto, save_every: auto,
  eval_every: auto, freeze_bn: auto, backbone_lr_factor: auto, log_every: 1}
"""
AUTO = (
    *("data.crop", "data.scale", "train.batch_size", "train.class_weights", "train.warmup_steps"),
    *("train.save_every", "train.eval_every", "train.freeze_bn", "train.backbone_lr_factor"),
)


@pytest.fixture(scope="module")
def roads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six small pictures of roads, two of them to validate."""
    root = tmp_path_factory.mktemp("roads")
    write_cracks(root / "raw", pictures=6, masked=6, size=(50, 70))
    for number, picture in enumerate(sorted((root / "raw" / "image").iterdir())):
        split = root / ("val" if number > 3 else "train")
        for folder in ("images", "masks"):
            (split / folder).mkdir(parents=True, exist_ok=True)
        picture.rename(split / "images" / picture.name)
        mask = root / "raw" / "masks" / f"{picture.stem}_mask.png"
        values = np.array(Image.open(mask))
        values[20:] = 0  # so few pixels are cracks that they are rare
        Image.fromarray(values).save(split / "masks" / f"{picture.stem}.png")
    lines = ("names: [road, crack]", "train: train/images", "val: val/images")
    (root / "data.yaml").write_text("\n".join([*lines, "label_mapping: {0: 0, 255: 1}\n"]))
    return root


@pytest.fixture
def draft(tmp_path: Path) -> Draft:
    return _draft(tmp_path)


def _draft(folder: Path, *overrides: str) -> Draft:
    (folder / "auto.yaml").write_text(TEXT)
    return load_draft(folder / "auto.yaml", overrides)


def _train(
    config: Any, data: Path, run: Path, reporter: ReporterThat | None = None, **o: Any
) -> str:
    """Trains, and returns the SHA-256 of the weights."""
    quiet = reporter or ReporterThat()
    train(config, data, run, device="cpu", workers=0, reporter=quiet, **o)
    return sha256(run / "model" / "model.safetensors")


def _never(*given: Any) -> Any:
    pytest.fail("it chose again")


def test_choices_are_told_written_and_exact(roads: Path, tmp_path: Path, draft: Draft) -> None:
    reporter = ReporterThat()
    weights = _train(draft, roads, tmp_path / "run", reporter)
    config = load_config(tmp_path / "run" / "config.yaml")  # nothing is auto in it
    assert (config.data.crop, config.train.batch_size) == ((48, 64), 4)
    assert config.train.class_weights is not None and config.train.class_weights[1] > 3
    assert config.train.freeze_bn is False and config.train.steps == 3
    told = "\n".join(reporter.messages)
    assert all(f"  {key}=" in told for key in AUTO) and "train.steps=" not in told
    assert "  data.crop=[48, 64]: as large as pictures of 50x70" in told
    assert _train(config, roads, tmp_path / "again") == weights


def test_augmentation_is_tried_on_the_crop_that_was_chosen(roads: Path, tmp_path: Path) -> None:
    """A quarter turn keeps the square crop that stands where none is given."""
    turns = _draft(tmp_path, "data.augment=[{name: RandomRotate90}]")
    with pytest.raises(ConfigError, match="a crop of 48x64x3 uint8 into 64x48x3"):
        _train(turns, roads, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_seen_is_of_the_right_split(draft: Draft) -> None:
    splits = {
        "train": SimpleNamespace(pixels=(5, 6), sizes=((1, 2),)),
        "val": SimpleNamespace(pixels=(7, 8), sizes=((3, 4), (5, 6))),
    }
    dataset: Any = SimpleNamespace(classes=("a", "b"))
    report: Any = SimpleNamespace(split=splits.get)
    found = settling._look(draft, dataset, report, torch.device("cpu"), 2)
    assert (found.pixels, found.train, found.val) == ((5, 6), ((1, 2),), ((3, 4), (5, 6)))
    assert (found.classes, found.processes, found.no_weights) == (("a", "b"), 2, "")


def test_a_resumed_run_never_chooses_again(
    roads: Path, tmp_path: Path, draft: Draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _train(draft, roads, tmp_path / "whole")
    stopped = tmp_path / "stopped"
    with pytest.raises(StoppedError):
        _train(draft, roads, stopped, ReporterThat(2, send(signal.SIGTERM)))
    before = (stopped / "config.yaml").read_bytes()
    monkeypatch.setattr(settling, "choose", _never)
    lost = shutil.copytree(stopped, tmp_path / "lost")
    (lost / "config.yaml").unlink()
    for run in (stopped, lost):
        assert _train(draft, roads, run, resume=True) == whole
        assert (run / "config.yaml").read_bytes() == before
        shutil.rmtree(run / "checkpoints")  # finished, it needs none
        (run / "config.yaml").unlink()
        assert _train(draft, roads, run, resume=True) == whole
        with pytest.raises(ConfigError, match=r"data\.crop is \[32, 32\] now and was \[48, 64\]"):
            _train(_draft(tmp_path, "data.crop=[32,32]"), roads, run, resume=True)


def test_masks_that_were_mended_meanwhile_change_no_choice(
    roads: Path, tmp_path: Path, draft: Draft
) -> None:
    data, run = shutil.copytree(roads, tmp_path / "data"), tmp_path / "run"
    with pytest.raises(StoppedError):
        _train(draft, data, run, ReporterThat(1, send(signal.SIGTERM)))
    before = (run / "config.yaml").read_bytes()
    for mask in (data / "train" / "masks").iterdir():
        half = np.zeros((50, 70), np.uint8)
        half[:25] = 255  # now no class is rare
        Image.fromarray(half).save(mask)
    _train(draft, data, run, resume=True)
    assert (run / "config.yaml").read_bytes() == before


def test_a_run_of_explicit_values_goes_on_under_a_config_that_became_auto(
    roads: Path, tmp_path: Path, draft: Draft
) -> None:
    config = load_config(
        _write(tmp_path / "old.yaml", TEXT.replace("auto", "null")),
        [
            *("data.crop=[32,48]", "data.scale=[0.5,2]", "train.batch_size=2"),
            *("train.warmup_steps=1", "train.save_every=1", "train.eval_every=0"),
            *("train.freeze_bn=false", "train.backbone_lr_factor=0.5"),
        ],
    )
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        _train(config, roads, run, ReporterThat(1, send(signal.SIGTERM)))
    lines = (run / "config.yaml").read_text().splitlines()
    older = [line for line in lines if not line.startswith("  scale: [0.5, 2.0]")]
    assert len(older) == len(lines) - 1  # as of a version that did not know the key
    (run / "config.yaml").write_text("\n".join(older))
    _train(draft, roads, run, resume=True)
    found = load_config(run / "config.yaml")
    assert (found.train, found.data.crop, found.data.scale) == (
        config.train, config.data.crop, config.data.scale,
    )  # fmt: skip


def _write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_run_that_tells_nothing_asks_for_values(
    roads: Path, tmp_path: Path, draft: Draft
) -> None:
    run = tmp_path / "run"
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"config\.yaml is missing or damaged, and data\.crop"):
        _train(draft, roads, run, resume=True)
    shutil.rmtree(run)
    _train(draft, roads, run, resume=True)  # killed before its first file


def _paced(pace: Pace, tried: list[Plan]) -> Callable[..., Pace]:
    """Returns a trial that is a real one, but whose times are those given."""

    def try_out(plan: Plan, began: float, patience: float) -> Pace:
        real = trial.try_out(plan, began, patience)
        assert patience == 15.0  # a quarter of the minute
        assert min(real.step, real.evaluation, real.saving, real.before) > 0
        assert not (plan.run / "checkpoints").exists()  # thrown away
        tried.append(plan)
        return pace

    return try_out


def _short_trials(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(trial, "WARM_UP", 1)
    patch.setattr(trial, "MEASURED", 2)


def test_a_time_budget_sets_the_steps_and_nothing_else(
    roads: Path, tmp_path: Path, draft: Draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Plan] = []
    _short_trials(monkeypatch)
    # 0.96 * 60 - 4 - 8 - 5 - 2 = 38.6 s; another evaluation of 5 s would be more than a tenth
    monkeypatch.setattr(settling, "try_out", _paced(Pace(3.5, 5.0, 1.0, 4.0), tried))
    reporter, run = ReporterThat(), tmp_path / "run"
    weights = _train(draft, roads, run, reporter, minutes=1.0)
    config = load_config(run / "config.yaml")
    assert config.train.steps == int(38.6 / (3.5 + 1 / 17)) == 10
    assert tried[0].config.data.crop == (48, 64) and tried[0].config.train.warmup_steps > 1000
    assert any(text.startswith("  train.steps=10: 1 minute") for text in reporter.messages)
    assert any(text.startswith("warning: 10 steps teach little") for text in reporter.messages)
    assert _train(config, roads, tmp_path / "again") == weights  # the trial left no trace
    monkeypatch.setattr(settling, "try_out", _never)
    reporter = ReporterThat()
    assert _train(draft, roads, run, reporter, minutes=9.0, resume=True) == weights
    assert any("goes on with its 10 steps" in text for text in reporter.messages)


def test_a_budget_that_is_too_small_leaves_no_run(
    roads: Path, tmp_path: Path, draft: Draft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settling, "try_out", lambda *given: Pace(60.0, 60.0, 1.0, 4.0))
    with pytest.raises(UsageError, match=r"--minutes 2: 10 steps of 60 s .* take 12 minutes"):
        _train(draft, roads, tmp_path / "run", minutes=2.0)
    assert not (tmp_path / "run").exists()


def test_the_time_is_told_after_the_first_steps_and_costs_no_bit(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _short_trials(monkeypatch)
    config, reporter = tiny_config(steps=6), ReporterThat()
    config = config.model_copy(update={"train": config.train.model_copy(update={"eval_every": 5})})
    told = _train(config, shapes, tmp_path / "told", reporter)
    (line,) = (text for text in reporter.messages if text.startswith("about "))
    # 3 of 6 steps are done; after the 5th one there is an evaluation, and at the end.
    assert ": 3 steps of " in line and ", 2 evaluations of " in line and "--minutes" not in line
    monkeypatch.setattr(trial.Forecast, "hear", lambda *given: None)
    assert _train(config, shapes, tmp_path / "untold") == told
    monkeypatch.undo()
    monkeypatch.setattr(trial, "expected", _never)
    _train(tiny_config(steps=6), shapes, tmp_path / "short")  # too few to be told of


def test_a_long_training_names_the_shorter_way(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WARM_UP", 1), ("MEASURED", 1), ("evaluation_seconds", lambda *g: 1250.0)):
        monkeypatch.setattr(trial, name, value)
    reporter = ReporterThat()
    _train(tiny_config(steps=3), shapes, tmp_path / "run", reporter)
    (line,) = (text for text in reporter.messages if text.startswith("about "))
    assert line.startswith("about 21 minutes: 1 steps") and "--minutes 15 --overwrite" in line


def _trains_in_step(text: str, data: Path, run: Path) -> list[str]:
    """Trains in one of two processes, of which only rank 0 may choose and tell the time."""
    first = own_rank() == 0
    settling.choose = settling.choose if first else _never
    real = trial.try_out
    trial.WARM_UP, trial.MEASURED = 1, 1

    def try_out(plan: Plan, began: float, patience: float) -> Pace:
        real(plan, began, patience)
        return Pace(3.5, 5.0, 1.0, 4.0) if first else Pace(9.0, 5.0, 1.0, 4.0)

    settling.try_out = try_out
    own = run if first else run.with_name("nowhere")
    config = run.with_name(f"config-{own_rank()}.yaml")
    config.write_text(text)
    reporter = ReporterThat()
    train(
        load_draft(config, ["train.batch_size=auto"]),
        *(data, own),
        device="cpu",
        workers=0,
        minutes=1.0,
        reporter=reporter,
    )
    return reporter.messages


def test_processes_choose_together(roads: Path, tmp_path: Path) -> None:
    messages, _ = run_ranks(2, _trains_in_step, TEXT, roads, tmp_path / "run")
    assert not (tmp_path / "nowhere").exists()
    config = load_config(tmp_path / "run" / "config.yaml")
    assert (config.train.steps, config.train.batch_size) == (10, 4)
    assert any("2 for each of 2 processes" in text for text in messages)


@pytest.mark.parametrize("freeze", [True, False])
def test_the_memory_of_a_crop_is_counted_without_taking_it(freeze: bool) -> None:
    """Against the tensors that a real forward pass keeps; and in proportion to the area."""
    base = load_config("camvid", ["data.crop=[64,96]", f"train.freeze_bn={freeze}".lower()])
    crop = base.data.model_copy(update={"crop": (128, 192)})
    large = base.model_copy(update={"data": crop})
    ratio = bytes_of_crop(large, 11) / bytes_of_crop(base, 11)
    assert 3.5 < ratio < 4.5
    assert bytes_of_crop(base, 11) == pytest.approx(1.5 * _really_kept(base, freeze), rel=0.1)


def _really_kept(config: Any, freeze: bool) -> int:
    """Returns the bytes of storage, without the weights', that one crop of two takes."""
    config = fit_to_crop(config)
    network = build_model(config.model, config.deform, 11, pretrained=False).train()
    if freeze:
        freeze_batch_norm(network.backbone)
    kept: list[dict[int, int]] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[-1][tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    outputs = []  # alive, or their addresses would be given again
    for count in (1, 2):
        kept.append({})
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            scores = network(torch.zeros(count, 3, *config.data.crop)).logits
            labels = torch.zeros(count, *config.data.crop, dtype=torch.long)
            outputs.append(torch.nn.functional.cross_entropy(scores, labels))
    return sum(kept[1].values()) - sum(kept[0].values())


@pytest.mark.parametrize("crop", [[16, 16], [16, 48]])
def test_a_crop_of_few_values_takes_memory_too(crop: list[int]) -> None:
    """Which BatchNorm would not normalise alone."""
    config = load_config("camvid", [f"data.crop={crop}", "train.freeze_bn=false"])
    small, large = (bytes_of_crop(_cropped(config, factor), 3) for factor in (1, 4))
    assert 0 < 4 * small < large < 20 * small


def _cropped(config: Any, factor: int) -> Any:
    crop = tuple(factor * side for side in config.data.crop)
    return config.model_copy(update={"data": config.data.model_copy(update={"crop": crop})})


def test_a_precision_is_measured_once_and_kept(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By real steps of this very training; a resumed run does not measure again."""
    monkeypatch.setattr(settling, "has_bf16", lambda device: True)
    costs: list[float] = []
    measure = settling.cost_of_precision

    def measured(plan: Any, precision: Any) -> float:
        costs.append(measure(plan, precision))
        return 0.5

    monkeypatch.setattr(settling, "cost_of_precision", measured)
    (tmp_path / "c.yaml").write_text(dump_config(tiny_config(steps=2)))
    draft = load_draft(tmp_path / "c.yaml", ["train.precision=auto"])
    reporter = ReporterThat()
    options: dict[str, Any] = {"device": "cpu", "workers": 0}
    train(draft, shapes, tmp_path / "run", reporter=reporter, **options)
    assert len(costs) == 1 and costs[0] > 0
    assert any('train.precision="bf16": a step in bf16 takes 0.50' in m for m in reporter.messages)
    plain = tiny_config(steps=2, precision="bf16")  # what was measured has left no trace
    train(plain, shapes, tmp_path / "plain", reporter=ReporterThat(), **options)
    ends = [
        (tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("run", "plain")
    ]
    assert ends[0] == ends[1]
    train(draft, shapes, tmp_path / "run", resume=True, reporter=ReporterThat(), **options)
    assert len(costs) == 1
