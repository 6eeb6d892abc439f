"""What a training run writes into its output folder, and how a second run treats it."""

from __future__ import annotations

import shutil
from pathlib import Path

from segdeform.errors import UsageError
from segdeform.files.manifest import MANIFEST
from segdeform.training.checkpoint import checkpoint_folders, remove_leftovers

FILES = ("config.yaml", "log.jsonl", "metrics.json", "timing.json")
MODEL_FILES = ("model.safetensors", "model.json", MANIFEST)
CHECKPOINT_FILES = (*MODEL_FILES, "ema.safetensors", "optimizer.safetensors", "state.json")


def holds_run(run: Path) -> bool:
    """Tells whether a training run has written into the folder."""
    return (
        any((run / name).exists() for name in FILES)
        or (run / "model" / MANIFEST).exists()
        or bool(checkpoint_folders(run))
    )


def refuse_run(run: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuses a folder with a run unless told to resume or overwrite it; deletes nothing good.

    Raises:
        UsageError: the folder holds a run and neither is given, or both are; or a folder that
            will be replaced holds files of somebody else.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other: give one of them")
    if holds_run(run) and not (resume or overwrite):
        raise UsageError(
            f"{run} already holds a run: go on with it by --resume, replace it by --overwrite, "
            "or choose another --output"
        )
    _refuse_other_files(run / "model", MODEL_FILES)
    for folder in checkpoint_folders(run):
        _refuse_other_files(folder, CHECKPOINT_FILES)
    remove_leftovers(run)


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
    for folder in checkpoint_folders(run):
        shutil.rmtree(folder)
    if (run / "model").is_dir():
        shutil.rmtree(run / "model")
    for path in (run / "tensorboard").glob("events.out.tfevents.*"):
        path.unlink()
    for folder in (run / "checkpoints", run / "tensorboard"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
