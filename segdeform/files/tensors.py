"""Named tensors in files: safetensors only, so that nothing opened can run code."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from segdeform.errors import ModelError, ResourceError


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes named tensors to a .safetensors file; floating ones as float32, any memory layout.

    Raises:
        ResourceError: the disk is full or the place cannot be written.
    """
    values = {
        name: (value.float() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in tensors.items()
    }
    try:
        path.touch()
        mode = path.stat().st_mode & 0o777
        save_file(values, path)
        path.chmod(mode)  # that of any new file; safetensors leaves one that we alone can read
    except (OSError, SafetensorError) as error:
        raise ResourceError(f"cannot write {path}: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads a .safetensors file into memory of its own (not mapped), on the CPU.

    Raises:
        ModelError: the file is missing, damaged or of another format.
    """
    if not path.is_file():
        raise ModelError(f"{path} is missing")
    try:
        return {name: value.clone() for name, value in load_file(path).items()}
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({error})") from error


def check_fit(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], source: Path) -> None:
    """Checks that the names, shapes and kinds (floating or not) of two sets of tensors agree.

    Raises:
        ModelError: names the file and the first tensors that are missing, too many, of another
            shape or kind, or hold values that are not finite.
    """
    missing = sorted(expected.keys() - given.keys())
    unexpected = sorted(given.keys() - expected.keys())
    if missing or unexpected:
        parts = [("lacks", missing), ("has unknown", unexpected)]
        text = " and ".join(f"{verb} {_few(names)}" for verb, names in parts if names)
        raise ModelError(f"{source} does not fit this network: it {text}")
    for name, value in given.items():
        wanted = expected[name]
        if value.shape != wanted.shape:
            shapes = f"{list(value.shape)}, this network needs {list(wanted.shape)}"
            raise ModelError(f"{source} does not fit: {name} has the shape {shapes}")
        if value.is_floating_point() != wanted.is_floating_point():
            kinds = f"{value.dtype}, this network needs {wanted.dtype}"
            raise ModelError(f"{source} does not fit: {name} is {kinds}")
        if not torch.isfinite(value).all():
            raise ModelError(f"{source}: {name} holds values that are not finite")


def _few(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
