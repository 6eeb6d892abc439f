"""Named tensors in files; nothing that is opened can run code.

Our own files are safetensors. Others' .pth files are read by torch's weights-only unpickler, which
makes tensors and plain Python values alone.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from struct import error as StructError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from segdeform.errors import EXHAUSTED, ModelError, ResourceError
from segdeform.machine.memory import memory_that_ended

PICKLED_BYTES = 2**32  # of the largest .pth file that is opened
# What mmengine's training checkpoints hold beside tensors and texts: histories of the loss, as
# arrays. They are not wanted, and what is made in their place is empty.
_LEFT_OUT = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
    "builtins.getattr",
)


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
        ResourceError: there are no file handles left.
    """
    if not path.is_file():
        raise ModelError(f"{path} is missing")
    try:
        path.open("rb").close()  # safetensors calls a file missing that it has no handle for
        return {name: value.clone() for name, value in load_file(path).items()}
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        _refuse_ended(path, error)
        raise ModelError(f"{path} is not a readable safetensors file ({error})") from error


def _refuse_ended(path: Path, error: Exception) -> None:
    """Raises what an error is about where memory or file handles ended: the file may be whole."""
    if memory_that_ended(error):
        raise error
    # torch and safetensors tell the errno in words alone.
    told = re.search(r"\((?:os error )?(\d{1,4})\)\s*$", str(error))
    number = getattr(error, "errno", None) or (int(told[1]) if told else 0)
    if number in EXHAUSTED:
        raise ResourceError(f"{path}: cannot be read: {os.strerror(number)}") from error


class _Nothing:
    """Stands for what a file holds of a class in _LEFT_OUT; takes anything and keeps nothing."""

    def __new__(cls, *_: object) -> _Nothing:
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def read_pickled(path: Path) -> Any:
    """Reads a .pth file of torch: tensors on the CPU, numbers, texts, and containers of them.

    No code in it is run, and no more memory is taken than the file has bytes.

    Raises:
        ModelError: the file is missing, damaged, too large, or holds what is none of these.
        ResourceError: there are no file handles left.
    """
    if not path.is_file():
        raise ModelError(f"{path} is missing")
    _refuse_large(path)
    try:
        with (
            torch.serialization.safe_globals([(_Nothing, name) for name in _LEFT_OUT]),
            warnings.catch_warnings(action="ignore"),  # of what is refused here in one line
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (AttributeError, AssertionError, pickle.UnpicklingError) as error:
        raise ModelError(f"{path} holds more than tensors; it is not opened") from error
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError) as error:
        _refuse_ended(path, error)
        raise _damaged(path, error) from error
    except (ArithmeticError, StructError) as error:
        raise _damaged(path, error) from error


def plain_tensors(value: object, path: Path) -> dict[str, Tensor]:
    """Returns what was read from a file, if it is names to tensors of this memory.

    Raises:
        ModelError: it is not, or the tensors claim more bytes than the file has.
    """
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and _is_plain(tensor) for name, tensor in value.items()
    ):
        raise ModelError(f"{path} is not a plain state dict (names to tensors)")
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in value.values())
    if claimed > path.stat().st_size:
        raise ModelError(f"{path} is damaged: its tensors claim {claimed} bytes, more than it has")
    return dict(value)


def _refuse_large(path: Path) -> None:
    """Raises ModelError for a file that is large, or that would become so when it is unpacked."""
    size = path.stat().st_size
    if size > PICKLED_BYTES:
        raise ModelError(f"{path} has {size} bytes; at most {PICKLED_BYTES} are opened")
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        _refuse_ended(path, error)
        raise _damaged(path, error) from error
    if unpacked > size:  # torch packs nothing
        raise ModelError(f"{path} would unpack to {unpacked} bytes; it is not opened")


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
    )


def _damaged(path: Path, error: Exception) -> ModelError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return ModelError(f"{path} is damaged or no torch file ({first})")


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
