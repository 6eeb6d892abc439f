"""An exported network in the place of the one that it was made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from segdeform.errors import DataError, ModelError, UsageError
from segdeform.models.deeplab import DeepLab, Output
from segdeform.models.features import Backbone
from segdeform.models.resizing import enlarge
from segdeform.runtimes.description import FILES, ExportDescription, Runtime, read_export
from segdeform.runtimes.sessions import Run, installed, open_file


class ExportedNetwork(DeepLab):
    """Has a runtime compute the scores; of the network itself there is nothing to look at.

    Pictures for a network that takes uint8 are rounded to it: they are such already, unless they
    were resized for another scale.
    """

    def __init__(self, run: Run, description: ExportDescription, smallest: int = 1) -> None:
        super().__init__(Backbone(), nn.Identity(), stride=description.stride)
        self._run, self._smallest = run, smallest
        self.takes_bytes = description.input == "uint8"
        # A runtime's memory is not seen from here; it is about that of the network itself.
        self.bytes_a_pixel = description.bytes_a_pixel

    def maps(self, images: Tensor) -> Tensor:  # [N, C, H, W] -> [N, K, h, w] float32
        """Computes the scores, before they are enlarged by `map_stride`.

        Raises DataError for pictures smaller than the file takes.
        """
        if min(images.shape[2:]) < self._smallest:
            raise DataError(
                f"{images.shape[2]}x{images.shape[3]} pixels are fewer than the exported network "
                f"takes, {self._smallest} a side: use the file for another runtime (--runtime)"
            )
        if self.takes_bytes:
            images = images.mul(255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
        (scores,) = self._run(np.ascontiguousarray(images.numpy()), ("scores",))
        return torch.from_numpy(scores)

    def forward(self, images: Tensor) -> Output:  # [N, C, H, W] float32, 0..1
        maps, size = self.maps(images), images.shape[2:]
        return Output(enlarge(maps, self.map_stride(maps, size), size), None)


def open_exported(
    folder: Path, digests: Mapping[str, str], device: str, runtime: Runtime | None
) -> tuple[ExportedNetwork, dict[str, Any]]:
    """Opens an exported folder, whose files are {name: SHA-256}, verified.

    Without a `runtime` it is the first that the folder has a file for and that is installed.
    Returns the network, and what `Segmenter.info` says of it.

    Raises:
        ModelError: the runtime is absent, too old, or does not take the file.
        UsageError: the folder has no file for the runtime, or the runtime has no such device.
    """
    description = read_export(folder)
    chosen, version = _choose(folder, description, runtime)
    run = open_file(chosen, folder, description.outputs, device)
    smallest = description.smallest if chosen == "torch" else 1
    file = FILES[chosen]
    info = {
        "weights": file,
        "sha256": _digest(chosen, digests),
        "deformable_layers": list(description.deformable_layers),
        "parameters": description.parameters,
        "receptive_field": description.receptive_field,
        "runtime": f"{chosen} {version}",
        "export": description.model_dump(mode="json"),
    }
    return ExportedNetwork(run, description, smallest), info


def _choose(
    folder: Path, description: ExportDescription, runtime: Runtime | None
) -> tuple[Runtime, str]:
    """Returns a runtime and its version."""
    if runtime is not None and runtime not in description.runtimes:
        raise UsageError(
            f"--runtime {runtime}: {folder} has files for {', '.join(description.runtimes)} alone"
        )
    candidates = description.runtimes if runtime is None else (runtime,)
    failures = []
    for name in candidates:
        try:
            return name, installed(name, description.operator)
        except ModelError as error:
            failures.append(str(error))
    raise ModelError(f"{folder}: {'; '.join(failures)}")


def _digest(runtime: Runtime, digests: Mapping[str, str]) -> str:
    """Returns what the file is known by; OpenVINO's are two."""
    if runtime != "openvino":
        return digests[FILES[runtime]]
    both = f"{digests['model.xml']} {digests['model.bin']}"
    return hashlib.sha256(both.encode()).hexdigest()
