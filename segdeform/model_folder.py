"""Where a model lies on the disk, found without torch, which takes seconds to import."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Final

from segdeform.errors import ModelError
from segdeform.files.manifest import MANIFEST, find_folder, verify_manifest

WEIGHTS: Final = "model.safetensors"
AVERAGED_WEIGHTS: Final = "ema.safetensors"  # in checkpoints
DESCRIPTION: Final = "model.json"
TRAINING_STATE: Final = "state.json"  # in checkpoints
EXPORT: Final = "export.json"  # in folders of exported networks, in the place of weights

_FILES = (DESCRIPTION, WEIGHTS)

_log = logging.getLogger(__name__)


def find_model(path: Path) -> tuple[Path, dict[str, str]]:
    """Finds the folder that a user means; returns it and the verified {file: SHA-256}.

    Of a run folder: its model, else its newest checkpoint that is intact; of a file that was
    exported: its folder. Raises ModelError.
    """
    folders = _candidates(path)
    if folders[0].parent != path / "checkpoints":
        exported = (folders[0] / EXPORT).exists()
        files = (DESCRIPTION, EXPORT) if exported else _FILES
        return folders[0], verify_manifest(folders[0], files)
    for folder in folders:
        try:
            return folder, verify_manifest(folder, _FILES)
        except ModelError as error:
            _log.warning("%s; an older checkpoint is tried", error)
    raise ModelError(f"{path}: all {len(folders)} checkpoints are damaged")


def refuse_missing_model(path: Path) -> None:
    """Raises ModelError where `find_model` would for want of any; reads no weights."""
    try:
        _candidates(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error


def is_exported(path: Path) -> bool:
    """Tells whether a path is a folder of exported networks, or a file in one; reads no weights."""
    try:
        return (_candidates(path)[0] / EXPORT).is_file()
    except (ModelError, OSError):
        return False


def trained_on(path: Path) -> str | None:
    """Returns the kind of data set that a model says it was trained on; None: it does not say."""
    try:
        value = json.loads((_candidates(path)[0] / DESCRIPTION).read_bytes())
        kind = value["training"]["dataset"]
    except (ModelError, OSError, ValueError, TypeError, KeyError):
        return None
    return kind if isinstance(kind, str) else None


def _candidates(path: Path) -> list[Path]:
    """Lists the folders to look into, the best first; never empty. Raises ModelError, OSError."""
    if path.is_file() and (path.parent / EXPORT).is_file():
        path = path.parent
    for folder in map(find_folder, (path, path / "model")):
        if any((folder / name).exists() for name in (*_FILES, MANIFEST)):
            return [folder]
    steps = [folder for folder in path.glob("checkpoints/step-*") if _step(folder) >= 0]
    if steps:
        return sorted(steps, key=_step, reverse=True)
    if path.is_dir():
        raise ModelError(f"{path} holds no model: it has neither {DESCRIPTION} nor checkpoints")
    raise ModelError(f"{path} is not a folder; give a model folder or a run folder")


def _step(folder: Path) -> int:
    """Returns a checkpoint folder's step number, -1 for other names."""
    match = re.fullmatch(r"step-(\d+)", folder.name)
    return int(match[1]) if match else -1
