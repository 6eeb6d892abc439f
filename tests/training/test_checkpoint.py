from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from segdeform.config.schema import DeformConfig, ModelConfig
from segdeform.errors import ModelError, ResourceError, UsageError
from segdeform.models.deeplab import DeepLab
from segdeform.segmenter import ModelDescription
from segdeform.training.checkpoint import (
    TrainState,
    newest,
    restore,
    save,
)
from segdeform.training.ema import averaged_model
from segdeform.training.run_folder import (
    checkpoint_folders,
    holds_run,
    refuse_output,
    remove_leftovers,
    remove_run,
)

DESCRIPTION = ModelDescription(
    model=ModelConfig(), deform=DeformConfig(), classes=("a",), palette=((0, 0, 0),)
)


def _state(step: int, width: int = 8) -> TrainState:
    """Returns a small state all of whose numbers tell the step."""
    model = nn.Conv2d(width, width, 3).to(memory_format=torch.channels_last)
    averaged = averaged_model(model, 0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        momentum = torch.full_like(parameter, 3.0 * step)
        optimizer.state[parameter]["momentum_buffer"] = momentum
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step)
        for parameter in averaged.parameters():
            parameter.fill_(2.0 * step)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return TrainState(cast(DeepLab, model), averaged, optimizer, scaler, step, seconds=1.5)


def _save(run: Path, step: int) -> Path:
    return save(run, _state(step), {"config": {}}, DESCRIPTION)


def _good_step(run: Path) -> int:
    """Returns the newest good step, whose every number was checked."""
    found = newest(run, warn=lambda _: None)
    assert found is not None
    state = _state(0)
    restore(found, state)
    assert state.step == found.step
    assert state.averaged is not None
    for parameter in state.model.parameters():
        assert (parameter == state.step).all()
        momentum = state.optimizer.state[parameter]["momentum_buffer"]
        assert (momentum == 3 * state.step).all()
        assert momentum.stride() == parameter.stride()
    assert all((parameter == 2 * state.step).all() for parameter in state.averaged.parameters())
    return state.step


def test_last_two_stay(tmp_path: Path) -> None:
    for step in (9, 10, 99_999_999, 100_000_000):  # no order of names, but of numbers
        _save(tmp_path, step)
    assert [path.name for path in checkpoint_folders(tmp_path)] == [
        "step-100000000",
        "step-99999999",
    ]
    assert _good_step(tmp_path) == 100_000_000


def _flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "bit flipped": _flip_a_bit,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "zero-filled": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "missing": Path.unlink,
    "of the other step": lambda path: shutil.copy(
        path.parent.with_name("step-00000001") / path.name, path
    ),
}
FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_newest_falls_back_with_a_warning(tmp_path: Path, damage: str) -> None:
    for name in (*FILES, "manifest.json"):
        run = tmp_path / name
        _save(run, 1)
        DAMAGES[damage](_save(run, 2) / name)
        warnings: list[str] = []
        found = newest(run, warnings.append)
        assert found is not None
        assert found.step == 1, name
        assert "step-00000002" in warnings[0]


def test_swapped_whole_folders_are_noticed(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    _save(tmp_path, 2).rename(tmp_path / "checkpoints" / "step-00000003")
    assert _good_step(tmp_path) == 1


def test_all_damaged_is_an_error(tmp_path: Path) -> None:
    for step in (1, 2):
        _flip_a_bit(_save(tmp_path, step) / "model.safetensors")
    with pytest.raises(ModelError, match="--overwrite"):
        newest(tmp_path, warn=lambda _: None)


def test_saving_again_after_a_fall_back(tmp_path: Path) -> None:
    for step in (4, 6, 8):
        _save(tmp_path, step)
    _flip_a_bit(tmp_path / "checkpoints" / "step-00000008" / "model.safetensors")
    assert _good_step(tmp_path) == 6
    _save(tmp_path, 7)  # the damaged step 8 must neither count as a good one nor stay
    assert [path.name for path in checkpoint_folders(tmp_path)] == [
        "step-00000007",
        "step-00000006",
    ]
    (tmp_path / "checkpoints" / "step-00000007" / "manifest.json").unlink()
    _save(tmp_path, 7)
    assert _good_step(tmp_path) == 7


def _in_child(action: Callable[[], None]) -> int:
    """Runs an action in a forked process and returns the process's id."""
    child = os.fork()
    if child:
        return child
    try:
        action()
        os._exit(0)
    except ResourceError:
        os._exit(7)
    finally:
        os._exit(1)


def test_killed_while_saving(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    chance = random.Random(0)
    for round_ in range(12):
        first = _good_step(tmp_path) + 1
        before = len(checkpoint_folders(tmp_path))

        def save_for_ever(first: int = first) -> None:
            for step in range(first, first + 10_000):
                _save(tmp_path, step)

        child = _in_child(save_for_ever)
        time.sleep(chance.uniform(0.01, 0.15))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        remove_leftovers(tmp_path)
        assert _good_step(tmp_path) >= first - 1, f"round {round_}"
        # A kill before the deletion leaves one more, and so may the next kill.
        assert len(checkpoint_folders(tmp_path)) <= max(before + 1, 3), f"round {round_}"
    last = _save(tmp_path, _good_step(tmp_path) + 1)
    assert checkpoint_folders(tmp_path)[0] == last and len(checkpoint_folders(tmp_path)) == 2


@pytest.mark.parametrize("limit", [0, 100, 300, 1000, 2400])
def test_full_disk_leaves_the_last_one(tmp_path: Path, limit: int) -> None:
    _save(tmp_path, 1)

    def save_with_little_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        _save(tmp_path, 2)

    child = _in_child(save_with_little_room)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert _good_step(tmp_path) == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]


def test_overwrite_deletes_only_what_a_run_wrote(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    mine = [tmp_path / "notes.txt", tmp_path / "checkpoints" / "notes.txt"]
    for path in [*mine, tmp_path / "config.yaml", tmp_path / "log.jsonl"]:
        path.write_text("x")
    assert holds_run(tmp_path)
    refuse_output(tmp_path, resume=False, overwrite=True)
    remove_run(tmp_path)
    assert not holds_run(tmp_path)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(mine)


def test_foreign_file_in_the_model_folder_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.pdf").write_text("x")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=r"thesis\.pdf"):
            refuse_output(tmp_path, resume=False, overwrite=overwrite)


def _files(root: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in root.rglob("*"))


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (("train/images/1.png", "val/masks/1.png", "data.yaml"), "data.yaml, train, val"),
        ((".bashrc", ".ssh/id", "Documents/thesis.odt"), ".bashrc, .ssh, Documents"),
        (("config.yaml", "main.py"), "config.yaml, main.py"),  # another program's config
        (("metrics.json", "report.html", "manifest.json"), "manifest.json, metrics.json"),
        (("checkpoints/epoch=3.ckpt", "log.jsonl"), "checkpoints, log.jsonl"),
        (("a", "b", "c", "d", "e"), "(a, b, c and 2 more)"),
    ],
)
def test_a_run_is_not_begun_among_the_files_of_others(
    tmp_path: Path, names: tuple[str, ...], named: str
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("lr: 1\n")
    before = _files(tmp_path)
    for resume, overwrite in ((False, False), (True, False), (False, True)):
        with pytest.raises(UsageError, match="holds something else than a run") as caught:
            refuse_output(tmp_path, resume=resume, overwrite=overwrite)
        assert named in str(caught.value) and "choose another --output" in str(caught.value)
    assert _files(tmp_path) == before


def test_a_run_is_not_begun_in_a_model_or_in_the_data_set(tmp_path: Path) -> None:
    for name in ("model.json", "manifest.json", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    for place in (tmp_path, tmp_path / "new", tmp_path / "a" / ".." / "new"):
        with pytest.raises(UsageError, match="is a model folder: choose another --output"):
            refuse_output(place, resume=False, overwrite=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "link").symlink_to("data")
    with pytest.raises(UsageError, match="is the data set itself"):
        refuse_output(tmp_path / "link", resume=True, overwrite=False, data=tmp_path / "data")


def test_a_run_is_begun_in_an_empty_folder_and_its_own_is_gone_on_with(tmp_path: Path) -> None:
    """Whatever else was put into it since."""
    for name in (".lock", ".segdeform-0123456789abcdef.tmp.yaml", ".DS_Store"):
        (tmp_path / name).touch()
    refuse_output(tmp_path, resume=False, overwrite=False)
    refuse_output(tmp_path / "new" / "deep", resume=False, overwrite=False)
    assert not (tmp_path / "new").exists()
    config = "data: {name: folder}\nmodel: {}\ndeform: {}\ntrain: {steps: 1}\neval: {}\n"
    (tmp_path / "config.yaml").write_text(config)  # killed before its first checkpoint
    (tmp_path / "predictions").mkdir()
    refuse_output(tmp_path, resume=True, overwrite=False)
    with pytest.raises(UsageError, match="already holds a"):
        refuse_output(tmp_path, resume=False, overwrite=False)
