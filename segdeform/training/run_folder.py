"""What a training run writes into its output folder, and how a second run treats it."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

from segdeform.config.strict_yaml import read_yaml
from segdeform.errors import SegdeformError, UsageError
from segdeform.files.atomic import is_temporary
from segdeform.files.manifest import MANIFEST

FILES = (
    "config.yaml",
    "log.jsonl",
    "metrics.json",
    "timing.json",
    "profile.json",
    "results.csv",
    "curves.png",
    "tracking.json",
)
MODEL_FILES = ("model.safetensors", "model.json", MANIFEST)
CHECKPOINT_FILES = (*MODEL_FILES, "ema.safetensors", "optimizer.safetensors", "state.json")
# What may lie in a folder that counts as empty: of a run that was killed before it wrote, and what
# systems put there.
_NOTHING = frozenset((".lock", ".DS_Store", ".gitkeep", ".gitignore", "lost+found", "wandb"))
_STEP = re.compile(r"step-(\d{8,})")


def checkpoint_folders(run: Path) -> list[Path]:
    """Lists the checkpoint folders of a run, the newest first, by step number."""
    folders = [
        path
        for path in (run / "checkpoints").glob("step-*")
        if _STEP.fullmatch(path.name) and path.is_dir()
    ]
    return sorted(folders, key=step_of, reverse=True)


def best_folder(run: Path, step: int) -> Path:
    """Returns where the best network of a run is kept, which is that of a step."""
    return run / "checkpoints" / f"best-{step:08d}"


def best_folders(run: Path) -> list[Path]:
    """Lists the folders of networks that were the best of a run when they were written."""
    return sorted(
        path
        for path in (run / "checkpoints").glob("best-*")
        if re.fullmatch(r"best-\d{8,}", path.name) and path.is_dir()
    )


def step_of(checkpoint: Path) -> int:
    """Returns the step that the name of a checkpoint folder tells."""
    return int(checkpoint.name.removeprefix("step-"))


def holds_run(run: Path) -> bool:
    """Tells whether a training run has written into the folder.

    Other programs call their files config.yaml or metrics.json too: a config counts where it is
    one of ours, scores alone do not.
    """
    return (
        _is_our_config(run / "config.yaml")
        or (run / "model" / MANIFEST).exists()
        or bool(checkpoint_folders(run))
    )


def _is_our_config(path: Path) -> bool:
    try:
        content = read_yaml(path) if path.is_file() else None
    except SegdeformError:
        return False
    return isinstance(content, Mapping) and {"data", "model", "train"} <= content.keys()


def refuse_output(run: Path, *, resume: bool, overwrite: bool, data: Path | None = None) -> None:
    """Refuses a folder in which a run would be among the files of others; changes nothing.

    Raises:
        UsageError: the folder holds a run and neither `resume` nor `overwrite` is given, or both
            are; it holds something else, such as the data set or a model; or a folder that will be
            replaced holds files of somebody else.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other: give one of them")
    if run.exists() and not run.is_dir():
        raise UsageError(f"{run} is not a folder: choose another --output")
    if data is not None and run.resolve() == data.resolve():
        raise UsageError(f"{run} is the data set itself: choose another --output")
    place = run.resolve()
    for folder in (place, *place.parents):
        if (folder / "model.json").is_file() and (folder / MANIFEST).is_file():
            raise UsageError(f"{folder} is a model folder: choose another --output")
    if not holds_run(run):
        _refuse_foreign(run)
    elif not (resume or overwrite):
        if (run / "metrics.json").exists() and (run / "model" / MANIFEST).exists():
            raise UsageError(
                f"{run} already holds a finished run: --resume tells its result, --overwrite "
                "replaces it; another one can begin with its network: --set "
                f"model.weights={shlex.quote(str(run))}, with another --output"
            )
        raise UsageError(
            f"{run} already holds a run: go on with it by --resume, replace it by --overwrite, "
            "or choose another --output"
        )
    _refuse_other_files(run / "model", MODEL_FILES)
    for folder in checkpoint_folders(run):
        _refuse_other_files(folder, CHECKPOINT_FILES)
    for folder in best_folders(run):
        _refuse_other_files(folder, MODEL_FILES)


def _refuse_foreign(run: Path) -> None:
    """Raises UsageError where a folder without a run holds anything."""
    try:
        names = sorted(path.name for path in run.iterdir()) if run.exists() else []
    except OSError as error:
        raise UsageError(
            f"{run} cannot be read ({error.strerror}): choose another --output"
        ) from error
    others = [name for name in names if name not in _NOTHING and not is_temporary(name)]
    # Of a model whose manifest was lost, our files are known by their names.
    if others == ["model"] and (run / "model").is_dir():
        return
    if others:
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise UsageError(
            f"{run} holds something else than a run ({', '.join(others[:3])}{more}): choose "
            "another --output, a new or empty folder"
        )


def remove_leftovers(run: Path) -> None:
    """Deletes the unfinished folders that a killed process left among the checkpoints."""
    for kind in ("step", "best"):
        for path in (run / "checkpoints").glob(f".{kind}-*"):
            shutil.rmtree(path)


def _refuse_other_files(folder: Path, ours: tuple[str, ...]) -> None:
    """Raises UsageError, before the run, where replacing would delete the files of others."""
    if not folder.is_dir():
        return
    others = sorted(path.name for path in folder.iterdir() if path.name not in ours)
    if others:
        raise UsageError(f"{folder} holds '{others[0]}', which no run wrote: move it elsewhere")


def remove_broken_model(run: Path) -> None:
    """Deletes our files of a model folder that has lost its manifest, and no others."""
    if not (run / "model" / MANIFEST).exists():
        for name in MODEL_FILES:
            (run / "model" / name).unlink(missing_ok=True)


def remove_run(run: Path) -> None:
    """Deletes what a run wrote and nothing else; a folder goes when nothing else is in it."""
    for name in FILES:
        (run / name).unlink(missing_ok=True)
    for folder in (*checkpoint_folders(run), *best_folders(run)):
        shutil.rmtree(folder)
    if (run / "model").is_dir():
        shutil.rmtree(run / "model")
    for path in (run / "tensorboard").glob("events.out.tfevents.*"):
        path.unlink()
    for folder in (run / "checkpoints", run / "tensorboard"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
