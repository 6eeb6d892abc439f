"""The CUDA kernels as host code: see cuda_ops/csrc/cuda/launch.h and host_shim.h."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from cuda_ops import build

SEEDS = ("0", "1", "2")  # of the order in which threads and blocks run
_wide_products = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]


def _wide_product(
    a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype, *, out: torch.Tensor
) -> torch.Tensor:
    """Multiplies as torch does on CUDA alone: half precision operands, float32 sums and result."""
    assert a.dtype == b.dtype != out_dtype == out.dtype == torch.float32
    return out.copy_(a.float() @ b.float())


@pytest.fixture(scope="session")
def host_shim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Builds, once for all runs until a source changes, and loads `torch.ops.segdeform_host_shim`.

    Its operators have the schemas of `segdeform` and take CPU tensors. SEGDEFORM_SHIM_FLAGS holds
    more flags for the compiler, as scripts/sanitize.sh sets.
    """
    # Every module that imports this has a fixture of its own, but torch takes the library once.
    if torch._C._dispatch_has_kernel("segdeform_host_shim::sample_points"):
        return torch.ops.segdeform_host_shim
    cache = getattr(request.config, "cache", None)  # not with -p no:cacheprovider
    folder = cache.mkdir("host_shim") if cache else tmp_path_factory.mktemp("host_shim")
    with tempfile.TemporaryDirectory() as work:
        flags = os.environ.get("SEGDEFORM_SHIM_FLAGS", "").split()
        path = build.build_host_shim(folder, Path(work), flags)
    torch.ops.load_library(str(path))
    for product in ("mm", "bmm"):
        _wide_products.impl(f"{product}.dtype_out", _wide_product, "CPU")
    return torch.ops.segdeform_host_shim
