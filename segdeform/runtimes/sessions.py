"""The runtimes: each opens a file of an exported network, and runs it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from segdeform.errors import ModelError, UsageError
from segdeform.runtimes.description import FILES, Runtime

Arrays = list[NDArray[Any]]
Run = Callable[[NDArray[Any], Sequence[str]], Arrays]
"""Pictures and the names of the outputs that are wanted -> these outputs."""

# The oldest that run what is exported, without the deformable operator and with it, as found by
# running it: none older than ONNX Runtime 1.19 and OpenVINO 2024.6 was tried.
LEAST: dict[Runtime, tuple[str, str]] = {
    "onnxruntime": ("1.19", "1.25"),
    "openvino": ("2024.6", "2024.6"),
    "torch": ("2.10", "2.10"),
}
_EXTRAS: dict[Runtime, str] = {
    "onnxruntime": "segdeform[onnx]",
    "openvino": "segdeform[openvino]",
    "torch": "segdeform",
}


def installed(runtime: Runtime, operator: bool) -> str:
    """Returns the version of a runtime that is to run networks, with the deformable `operator`.

    Raises:
        ModelError: it is absent, or too old for what is exported; names the line that mends it.
    """
    least = LEAST[runtime][operator]
    try:
        version = metadata.version(runtime)
    except metadata.PackageNotFoundError:
        raise ModelError(f"{runtime} is not installed: pip install '{_EXTRAS[runtime]}'") from None
    if _numbers(version) < _numbers(least):
        other = ""
        if operator and runtime == "onnxruntime":
            other = ", the first with DeformConv on the CPU, or export with --pure to do without it"
        raise ModelError(f"{runtime} {version} is too old: pip install '{runtime}>={least}'{other}")
    return version


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def open_file(runtime: Runtime, folder: Path, outputs: tuple[str, ...], device: str) -> Run:
    """Opens a runtime's file in an exported folder whose outputs, in order, are these.

    It computes on as many threads as torch does now.

    Raises:
        ModelError: the runtime does not take the file.
        UsageError: the runtime has no such device.
    """
    path = folder / FILES[runtime]
    openers = {"onnxruntime": _onnxruntime, "openvino": _openvino, "torch": _torch}
    try:
        return openers[runtime](path, outputs, device)
    except (UsageError, ModelError, MemoryError):
        raise
    except Exception as error:  # every runtime has exceptions of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{path}: {runtime} {metadata.version(runtime)} does not take it: {reason}. An "
            "operator that it lacks is left out by exporting with --pure"
        ) from error


def _onnxruntime(path: Path, outputs: tuple[str, ...], device: str) -> Run:
    import onnxruntime

    kind = "CUDAExecutionProvider" if device.startswith("cuda") else "CPUExecutionProvider"
    if kind not in onnxruntime.get_available_providers():
        raise UsageError(
            f"--device {device}: this onnxruntime has no {kind}: pip install onnxruntime-gpu, or "
            "use --device cpu"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.enable_mem_pattern = False  # it serves pictures of one size only
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=[kind])
    only = onnxruntime.RunOptions()
    only.only_execute_path_to_fetches = True  # what is not wanted is not computed

    def run(pictures: NDArray[Any], wanted: Sequence[str]) -> Arrays:
        found: Arrays = session.run(list(wanted), {"image": pictures}, only)
        return found

    return run


def _openvino(path: Path, outputs: tuple[str, ...], device: str) -> Run:
    with nothing_told():
        import openvino

    if device != "cpu":
        raise UsageError(f"--device {device}: exported networks run on the CPU by openvino")
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",  # some processors would choose bf16
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.Core().compile_model(os.fspath(path), "CPU", settings)

    def run(pictures: NDArray[Any], wanted: Sequence[str]) -> Arrays:
        found = compiled(pictures)
        return [np.array(found[outputs.index(name)]) for name in wanted]

    return run


@contextmanager
def nothing_told() -> Iterator[None]:
    """Keeps OpenVINO from telling its makers of its use, unasked: it does not in CI."""
    with patch.dict(os.environ, CI="true"):
        yield


def _torch(path: Path, outputs: tuple[str, ...], device: str) -> Run:
    import cuda_ops  # noqa: F401  its operators are in the file

    if device != "cpu":
        raise UsageError(
            f"--device {device}: a network exported for torch runs on the CPU; the model that it "
            "was made of runs on CUDA"
        )
    program = torch.export.load(path).module()

    def run(pictures: NDArray[Any], wanted: Sequence[str]) -> Arrays:
        with torch.inference_mode():
            found = program(torch.from_numpy(pictures))
        return [found[outputs.index(name)].numpy() for name in wanted]

    return run
