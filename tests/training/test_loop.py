from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from segdeform.config.loading import load_config
from segdeform.config.schema import Config, ModelConfig
from segdeform.data import load_dataset
from segdeform.errors import (
    ConfigError,
    DataError,
    InterruptedByUserError,
    ModelError,
    NotFiniteError,
    RunLockedError,
    SegdeformError,
    StoppedError,
    UsageError,
)
from segdeform.evaluation.evaluate import evaluate
from segdeform.files.lock import run_lock
from segdeform.files.manifest import sha256, write_manifest
from segdeform.files.tensors import read_tensors
from segdeform.models import build_model
from segdeform.models.pyramid import fit_to_crop
from segdeform.preparing.shapes import write_shapes
from segdeform.segmenter import load
from segdeform.training import checkpoint, optim, result
from segdeform.training import step as steps
from segdeform.training.channels import fit_to_bands
from segdeform.training.checkpoint import newest
from segdeform.training.loop import train
from segdeform.training.result import TrainResult
from segdeform.training.run_folder import checkpoint_folders
from tests.training.conftest import ReporterThat, send, tiny_config


class _PowerCutError(Exception):
    """Ends the process in the middle of things, as far as the files are concerned."""


def _cut_power() -> None:
    raise _PowerCutError


def _train(config: Config, data: Path, run: Path, **options: Any) -> TrainResult:
    options = {"device": "cpu", "workers": 0, "reporter": ReporterThat(), **options}
    return train(config, data, run, **options)


def _digests(run: Path) -> dict[str, str]:
    """Returns the SHA-256 of all that must not depend on interruptions."""
    last = checkpoint_folders(run)[0]
    files = [run / "model" / "model.safetensors", run / "metrics.json", *last.glob("*.safetensors")]
    return {str(path.relative_to(run)): sha256(path) for path in files}


def _log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


EXACT: dict[str, dict[str, Any]] = {
    "sgd": {"ema_decay": 0.9, "warmup_steps": 2},
    "adamw": {"optimizer": "adamw", "lr": 1e-3, "precision": "bf16", "clip_grad_norm": 1.0},
}


@pytest.mark.parametrize("kind", EXACT)
def test_interrupted_run_ends_with_the_same_bits(shapes: Path, tmp_path: Path, kind: str) -> None:
    config = tiny_config(**EXACT[kind], steps=6, save_every=2, eval_every=4)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    first = _train(config, shapes, whole, workers=1)

    with pytest.raises(_PowerCutError):  # before the first checkpoint
        _train(config, shapes, broken, reporter=ReporterThat(1, _cut_power))
    with pytest.raises(InterruptedByUserError, match="saved at step 3 of 6"):
        _train(config, shapes, broken, resume=True, reporter=ReporterThat(3, send(signal.SIGINT)))
    assert not (broken / "model").exists()
    with pytest.raises(_PowerCutError):
        _train(config, shapes, broken, resume=True, reporter=ReporterThat(5, _cut_power))
    again = _train(config, shapes, broken, resume=True)

    digests = _digests(whole)
    assert len(digests) == (5 if kind == "sgd" else 4)
    assert _digests(broken) == digests
    assert again.miou == first.miou
    keys = ("step", "kind", "learning_rate", "miou")
    assert [[e.get(key) for key in keys] for e in _log(broken)] == [
        [e.get(key) for key in keys] for e in _log(whole)
    ]


def test_finished_run(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tiny_config(ema_decay=0.5, steps=2)
    done = _train(config, shapes, run)
    assert done.model == run / "model"
    assert done.steps == 2
    whole = fit_to_crop(fit_to_bands(config, load_dataset("shapes", shapes, "train")))
    assert load_config(run / "config.yaml") == whole

    segmenter = load(run, "cpu")
    assert segmenter.info["crop"] == [48, 64]
    assert load(checkpoint_folders(run)[0], "cpu").info["crop"] == [48, 64]
    evaluation = evaluate(segmenter, load_dataset("shapes", shapes, "val"))
    assert evaluation.to_json() == json.loads((run / "metrics.json").read_text())
    assert evaluation.scores.miou == done.miou
    averaged = checkpoint_folders(run)[0] / "ema.safetensors"
    assert sha256(averaged) == sha256(run / "model" / "model.safetensors")

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    assert _train(config, shapes, run, resume=True) == done
    assert {path: path.stat().st_mtime_ns for path in before} == before

    assert done.weights_step == done.steps
    with pytest.raises(UsageError, match=r"finished run: .*--set model.weights=.*run, with"):
        _train(config, shapes, run)
    (run / "notes.txt").write_text("mine")
    assert _train(config, shapes, run, overwrite=True).miou == done.miou
    assert (run / "notes.txt").exists()


def test_seconds_and_images_count_no_evaluation(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock of its own: a step of two pictures takes 2 s, an evaluation 2000 s."""
    now = 0.0

    class SlowEvaluation(ReporterThat):
        def evaluating(self, done: int, total: int) -> None:
            nonlocal now
            now += 1000

    def set_learning_rate(*given: Any) -> float:
        nonlocal now
        now += 2
        return optim.set_learning_rate(*given)

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(steps, "set_learning_rate", set_learning_rate)
    config = tiny_config(steps=4, eval_every=1, save_every=2)
    with pytest.raises(StoppedError):
        _train(config, shapes, tmp_path, reporter=SlowEvaluation(2, send(signal.SIGTERM)))
    done = _train(config, shapes, tmp_path, resume=True, reporter=SlowEvaluation())
    logged = [e["images_per_second"] for e in _log(tmp_path) if e["kind"] == "train"]
    assert (logged, done.images_per_second, done.seconds) == ([1.0] * 4, 1.0, 8.0)


def test_other_config_or_data_is_not_resumed(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(StoppedError) as caught:
        _train(tiny_config(), shapes, run, reporter=ReporterThat(1, send(signal.SIGTERM)))
    assert caught.value.exit_code == 75
    kept = checkpoint_folders(run)
    with pytest.raises(ConfigError, match=r"train\.lr is 0\.5 now and was 0\.01"):
        _train(tiny_config(lr=0.5), shapes, run, resume=True)
    with pytest.raises(ConfigError, match=r"train\.steps"):
        _train(tiny_config(steps=9), shapes, run, resume=True)
    other = tmp_path / "other"
    write_shapes(other, seed=0, train=5, val=2, size=64)
    with pytest.raises(DataError, match="the train split lists other pictures"):
        _train(tiny_config(), other, run, resume=True)
    assert checkpoint_folders(run) == kept
    record = json.loads((kept[0] / "state.json").read_text())
    del record["config"]["train"]["auxiliary_weight"]  # as if the key were newer than the run
    (kept[0] / "state.json").write_text(json.dumps(record))
    write_manifest(kept[0])
    with pytest.raises(ConfigError, match=r"train\.auxiliary_weight is 0\.5 now and was 0\.4"):
        _train(tiny_config(auxiliary_weight=0.5), shapes, run, resume=True)
    assert _train(tiny_config(save_every=3, log_every=2), shapes, run, resume=True).steps == 4


def test_stopped_in_the_final_evaluation(shapes: Path, tmp_path: Path) -> None:
    class StopsInEvaluation(ReporterThat):
        def evaluating(self, done: int, total: int) -> None:
            send(signal.SIGTERM)()

    config, run = tiny_config(steps=1), tmp_path / "run"
    with pytest.raises(StoppedError, match="not yet evaluated"):
        _train(config, shapes, run, reporter=StopsInEvaluation())
    assert not (run / "metrics.json").exists()
    _train(config, shapes, run, resume=True)
    assert (run / "metrics.json").exists()


@pytest.mark.usefixtures("hang_up_heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_while_saving_lose_no_save(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    write = checkpoint.write_tensors

    def write_tensors(*given: Any) -> None:
        send(number)()
        write(*given)
        send(number)()

    monkeypatch.setattr(checkpoint, "write_tensors", write_tensors)
    with pytest.raises(StoppedError, match="saved at step 2 of 4"):
        _train(tiny_config(), shapes, tmp_path, reporter=ReporterThat(2, send(number)))
    found = newest(tmp_path, warn=pytest.fail)
    assert found is not None and found.step == 2


def test_signals_while_the_model_is_written_are_too_late(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = result.write_metrics

    def write_metrics(*given: Any) -> None:
        send(signal.SIGINT)()
        send(signal.SIGTERM)()
        write(*given)

    monkeypatch.setattr(result, "write_metrics", write_metrics)
    assert _train(tiny_config(steps=1), shapes, tmp_path).steps == 1
    assert (tmp_path / "metrics.json").exists()


def test_not_finite_keeps_the_last_checkpoint(shapes: Path, tmp_path: Path) -> None:
    config = tiny_config(lr=1e25, warmup_steps=4, schedule="constant", save_every=1, steps=8)
    with pytest.raises(NotFiniteError, match=r"step \d.*train\.lr") as caught:
        _train(config, shapes, tmp_path)
    assert caught.value.exit_code == 9
    assert not (tmp_path / "model").exists()
    found = newest(tmp_path, warn=pytest.fail)
    assert found is not None and found.step == 1
    tensors = read_tensors(found.folder / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in tensors.values())


def test_learns_four_pictures(shapes: Path, tmp_path: Path) -> None:
    config = tiny_config(steps=40, batch_size=4, lr=0.05, log_every=5, warmup_steps=5)
    augmentation = {"scale": (1, 1), "flip": 0, "color": 0, "crop": (64, 64)}
    config = config.model_copy(update={"data": config.data.model_copy(update=augmentation)})
    _train(config, shapes, tmp_path)
    losses = [entry["loss"] for entry in _log(tmp_path) if entry["kind"] == "train"]
    assert losses[-1] < 0.5 * losses[0], losses


def test_frozen_batch_norm_stays_as_it_was(shapes: Path, tmp_path: Path) -> None:
    config = tiny_config(steps=2, freeze_bn=True)
    _train(config, shapes, tmp_path)
    torch.manual_seed(config.train.seed)
    start = build_model(config.model, config.deform, len(load(tmp_path, "cpu").classes))
    end = read_tensors(tmp_path / "model" / "model.safetensors")
    moved = {
        name.split(".")[0]
        for name, value in start.state_dict().items()
        if "running_" in name and not torch.equal(value, end[name])
    }
    assert moved == {"head"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"class_weights": [1, 2]}}, "train.class_weights"),
        ({"train": {"precision": "fp16"}}, "train.precision"),
        ({"deform": {"layers": 99}}, "deform.layers"),
    ],
)
def test_settings_that_do_not_fit(
    shapes: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    values = tiny_config().model_dump()
    for section, keys in changes.items():
        values[section].update(keys)
    with pytest.raises(ConfigError, match=message):
        _train(Config.model_validate(values), shapes, tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_split_that_is_both_trained_on_and_scored_is_warned_of(
    shapes: Path, tmp_path: Path
) -> None:
    config = tiny_config(steps=1)
    same = config.model_copy(update={"data": config.data.model_copy(update={"train_split": "val"})})
    for settings, warned in ((same, True), (config, False)):
        reporter = ReporterThat()
        _train(settings, shapes, tmp_path / f"{warned}", reporter=reporter)
        told = "warning: 'val' is data.train_split and in data.val_split"
        assert any(line.startswith(told) for line in reporter.messages) == warned


def test_bad_data_is_refused_before_the_first_step(shapes: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_shapes(data, seed=0, train=2, val=2, size=64)
    picture = next((data / "val" / "images").iterdir())
    picture.write_bytes(picture.read_bytes()[:100])
    with pytest.raises(DataError, match=picture.name):
        _train(tiny_config(), data, tmp_path / "run")
    with pytest.raises(DataError, match="nowhere"):
        _train(tiny_config(), tmp_path / "nowhere", tmp_path / "run2")
    (tmp_path / "empty").mkdir()
    lost = tiny_config().model_copy(update={"model": ModelConfig(weights="lost.pth")})
    with pytest.raises(ModelError, match=r"lost\.pth"):
        _train(lost, shapes, tmp_path / "empty")
    with pytest.raises(ModelError, match=r"lost\.pth"):
        _train(lost, shapes, tmp_path / "new" / "run")
    # Nothing is left that would stand in the way of the corrected command.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "empty"]
    assert not list((tmp_path / "empty").iterdir())


def test_two_runs_in_one_folder(shapes: Path, tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(RunLockedError):
        _train(tiny_config(), shapes, tmp_path)


def test_resume_and_overwrite_exclude_each_other(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(SegdeformError, match="exclude"):
        _train(tiny_config(), shapes, tmp_path, resume=True, overwrite=True)
