"""Going on with a run folder that is finished, partly lost, or to be scored in another way."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from segdeform.config.schema import Config
from segdeform.data import load_dataset
from segdeform.errors import ConfigError, DataError, ModelError, StoppedError, UsageError
from segdeform.files.manifest import sha256, write_manifest
from segdeform.machine.processes import ALONE
from segdeform.machine.signals import StopSignals
from segdeform.models.pyramid import fit_to_crop
from segdeform.preparing.shapes import write_shapes
from segdeform.segmenter import load
from segdeform.training.loop import train
from segdeform.training.plan import Plan, check_resumable
from segdeform.training.result import TrainResult
from segdeform.training.start import refuse_start
from tests.training.conftest import ReporterThat, send, tiny_config

CONFIG = tiny_config(steps=2, save_every=1, ema_decay=0.5)


def _resume(
    config: Config, data: Path, run: Path, reporter: ReporterThat | None = None
) -> TrainResult:
    quiet = reporter or ReporterThat()
    return train(config, data, run, device="cpu", workers=0, resume=True, reporter=quiet)


def _with_eval(config: Config, **options: Any) -> Config:
    return config.model_copy(update={"eval": config.eval.model_copy(update=options)})


@pytest.fixture(scope="module")
def finished(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainResult]:
    run = tmp_path_factory.mktemp("finished") / "run"
    return run, _resume(CONFIG, shapes, run)


@pytest.fixture
def run(finished: tuple[Path, TrainResult], tmp_path: Path) -> Path:
    return shutil.copytree(finished[0], tmp_path / "run")


def _files(run: Path) -> dict[str, str]:
    """Returns the SHA-256 of what a finished run is asked for."""
    names = ("model/model.safetensors", "metrics.json", "log.jsonl", "config.yaml")
    return {name: sha256(run / name) for name in names}


@pytest.mark.parametrize("lost", ["deleted", "damaged"])
def test_a_finished_run_needs_no_checkpoint(
    shapes: Path, finished: tuple[Path, TrainResult], run: Path, lost: str
) -> None:
    if lost == "deleted":
        shutil.rmtree(run / "checkpoints")
    else:
        for path in run.glob("checkpoints/*/state.json"):
            path.write_text("{}")
    before = _files(run)
    result = _resume(CONFIG, shapes, run)
    assert (result.miou, result.steps) == (finished[1].miou, 2)
    assert _files(run) == before


def test_a_finished_run_without_checkpoints_is_of_one_config_and_one_data_set(
    shapes: Path, run: Path, tmp_path: Path
) -> None:
    shutil.rmtree(run / "checkpoints")
    before = _files(run)
    for other, key in (
        (tiny_config(steps=3, ema_decay=0.5), r"train\.steps is 3 now and was 2"),
        (tiny_config(steps=2, ema_decay=0.5, lr=0.02), r"train\.lr"),
    ):
        with pytest.raises(ConfigError, match=key):
            _resume(other, shapes, run)
    write_shapes(tmp_path / "other", seed=0, train=4, val=3, size=64)
    with pytest.raises(DataError, match="the val split lists other pictures"):
        _resume(CONFIG, tmp_path / "other", run)
    with pytest.raises(ModelError, match="no checkpoint to make its model from"):
        _resume(_with_eval(CONFIG, flip=True), shapes, run)
    assert _files(run) == before


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "bit flipped": lambda model: _flip_a_bit(model / "model.safetensors"),
    "file missing": lambda model: (model / "model.json").unlink(),
    "manifest missing": lambda model: (model / "manifest.json").unlink(),
    "emptied": lambda model: [path.unlink() for path in model.iterdir()],
    "deleted": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_model_is_written_again_from_its_checkpoint(
    shapes: Path, run: Path, damage: str
) -> None:
    before = _files(run)
    DAMAGES[damage](run / "model")
    reporter = ReporterThat()
    _resume(CONFIG, shapes, run, reporter)
    after = _files(run)
    del before["log.jsonl"], after["log.jsonl"]  # one evaluation more, and a time of its own
    assert after == before
    if damage != "deleted":
        assert any("has to be written again" in text for text in reporter.messages)
    result = _resume(CONFIG, shapes, run)
    assert result.model == run / "model"


def test_a_file_put_into_the_model_folder_meanwhile_is_kept(shapes: Path, tmp_path: Path) -> None:
    thesis = tmp_path / "model" / "thesis.pdf"

    def put() -> None:
        thesis.parent.mkdir()
        thesis.write_text("x")

    with pytest.raises(UsageError, match="holds other files"):
        _resume(CONFIG, shapes, tmp_path, ReporterThat(1, put))
    assert thesis.read_text() == "x"
    shutil.rmtree(thesis.parent)
    assert _resume(CONFIG, shapes, tmp_path).steps == 2


def test_neither_model_nor_checkpoint_empties_no_log(shapes: Path, run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    _flip_a_bit(run / "model" / "model.safetensors")
    before = _files(run)
    with pytest.raises(ModelError, match="--overwrite"):
        _resume(CONFIG, shapes, run)
    assert _files(run) == before


def _scored_as(run: Path) -> tuple[Any, Any, Any]:
    """Returns the tile that config, model folder and scores tell of."""
    description = json.loads((run / "model" / "model.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    config = (run / "config.yaml").read_text()
    (tile,) = (line for line in config.splitlines() if line.strip().startswith("tile:"))
    told = metrics["protocol"]["inference"]["tile"]
    return int(tile.partition(":")[2]), description["eval"]["tile"], told


def test_another_way_to_score_goes_on_with_the_same_weights(
    shapes: Path, finished: tuple[Path, TrainResult], run: Path, tmp_path: Path
) -> None:
    weights = sha256(finished[0] / "model" / "model.safetensors")
    tiled = _with_eval(CONFIG, tile=32)

    interrupted = tmp_path / "interrupted"
    with pytest.raises(StoppedError):
        _resume(CONFIG, shapes, interrupted, ReporterThat(1, send(signal.SIGTERM)))
    _resume(tiled, shapes, interrupted)

    class StopsInEvaluation(ReporterThat):
        def evaluating(self, done: int, total: int) -> None:
            send(signal.SIGTERM)()

    unscored = tmp_path / "unscored"  # as after memory ended in the last evaluation
    with pytest.raises(StoppedError, match="not yet evaluated"):
        _resume(CONFIG, shapes, unscored, StopsInEvaluation())
    _resume(tiled, shapes, unscored)

    _resume(tiled, shapes, run)  # finished, and scored otherwise
    for folder in (interrupted, unscored, run):
        assert _scored_as(folder) == (32, 32, 32), folder
        assert sha256(folder / "model" / "model.safetensors") == weights, folder


def test_a_run_from_before_rates_fitted_the_crop_keeps_its_own(
    shapes: Path, tmp_path: Path
) -> None:
    """Its record says nothing of rates, which were 6, 12, 18 then whatever the crop was."""
    run = tmp_path / "run"
    with pytest.raises(StoppedError):
        _resume(CONFIG, shapes, run, ReporterThat(1, send(signal.SIGTERM)))
    (checkpoint,) = (run / "checkpoints").glob("step-*")
    record = json.loads((checkpoint / "state.json").read_text())
    assert record["config"]["model"].pop("aspp_rates") == [1, 1, 2]
    (checkpoint / "state.json").write_text(json.dumps(record))
    write_manifest(checkpoint)
    with pytest.raises(ConfigError, match=r"aspp_rates is \[1, 1, 2\] now and was \[6, 12, 18\]"):
        _resume(CONFIG, shapes, run)
    rates = CONFIG.model.model_copy(update={"aspp_rates": (6, 12, 18)})
    _wake_taps(checkpoint)  # as that version left them
    reporter = ReporterThat()
    _resume(CONFIG.model_copy(update={"model": rates}), shapes, run, reporter)
    assert any("is a map of 3x4 at output stride 16" in text for text in reporter.messages)
    weights = load_file(run / "model" / "model.safetensors")
    assert not weights["head.aspp.branches.3.0.0.weight"][..., 0, :].any()


def _wake_taps(checkpoint: Path) -> None:
    for name in ("model", "ema"):
        path = checkpoint / f"{name}.safetensors"
        tensors = load_file(path)
        tensors["head.aspp.branches.3.0.0.weight"] += 1
        save_file(tensors, path)
    write_manifest(checkpoint)


def test_a_checkpoint_of_before_tells_its_crop_beside_its_model(
    run: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = max((run / "checkpoints").glob("step-*"))
    description = json.loads((checkpoint / "model.json").read_text())
    del description["crop"]
    description["model"]["aspp_rates"] = [6, 12, 18]
    (checkpoint / "model.json").write_text(json.dumps(description))
    _wake_taps(checkpoint)
    segmenter = load(checkpoint, "cpu")
    assert not segmenter.model.state_dict()["head.aspp.branches.3.0.0.weight"][..., 0, :].any()
    assert segmenter.info["crop"] == [48, 64] and "is a map of 3x4" in caplog.text


@pytest.mark.parametrize("killed", [True, False])
def test_scores_never_outlive_their_model(
    shapes: Path, run: Path, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scored in another way and killed between model and scores; or the scores are half a file."""
    tiled = _with_eval(CONFIG, tile=32)
    if killed:

        def dies(*args: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr("segdeform.training.result.write_metrics", dies)
        with pytest.raises(KeyboardInterrupt):
            _resume(tiled, shapes, run)
        monkeypatch.undo()
    else:
        _resume(tiled, shapes, run)
        (run / "metrics.json").write_text('{"miou": 0.')
    _resume(tiled, shapes, run)
    assert _scored_as(run) == (32, 32, 32)


@pytest.mark.parametrize(("stride", "old"), [(8, "12, 24, 36"), (16, "6, 12, 18"), (32, "3, 6, 9")])
def test_the_rates_of_an_older_run_are_those_of_its_stride(
    shapes: Path, tmp_path: Path, stride: int, old: str
) -> None:
    model = CONFIG.model.model_copy(update={"output_stride": stride})
    config = fit_to_crop(CONFIG.model_copy(update={"model": model}))
    pictures, device = load_dataset("shapes", shapes, "train"), torch.device("cpu")
    plan = Plan(
        config, pictures, pictures, tmp_path, device, 0, ALONE, StopSignals(), ReporterThat()
    )
    record = plan.record()
    del record["config"]["model"]["aspp_rates"]
    with pytest.raises(ConfigError, match=rf"model\.aspp_rates is .* now and was \[{old}\]"):
        check_resumable(plan, record)


def test_a_weight_file_that_is_gone_stops_only_who_begins(shapes: Path, tmp_path: Path) -> None:
    gone = CONFIG.model.model_copy(update={"weights": str(tmp_path / "gone.safetensors")})
    config, run = CONFIG.model_copy(update={"model": gone}), tmp_path / "run"
    with pytest.raises(ModelError, match="is missing"):
        refuse_start(config, shapes, run, resume=True)
    (run / "checkpoints" / "step-00000001").mkdir(parents=True)
    refuse_start(config, shapes, run, resume=True)
