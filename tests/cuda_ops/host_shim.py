"""The CUDA kernels as host code: see cuda_ops/csrc/cuda/launch.h and host_shim.h."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from cuda_ops import build

SEEDS = ("0", "1", "2")  # of the order in which threads and blocks run


@pytest.fixture(scope="session")
def host_shim(request: pytest.FixtureRequest) -> Any:
    """Builds, once for all runs until a source changes, and loads `torch.ops.segdeform_host_shim`.

    Its operators have the schemas of `segdeform` and take CPU tensors.
    """
    folder = Path(tempfile.mkdtemp())
    if request.config.cache is not None:
        folder = request.config.cache.mkdir("host_shim")
    with tempfile.TemporaryDirectory() as work:
        path = build.build_host_shim(folder, Path(work))
    torch.ops.load_library(str(path))
    return torch.ops.segdeform_host_shim
