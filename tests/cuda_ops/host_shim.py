"""The CUDA kernels as host code: see cuda_ops/csrc/cuda/launch.h and host_shim.h."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from cuda_ops import build

PLANTED = Path(__file__).with_name("planted_reads.cpp")
SEEDS = ("0", "1", "2")  # of the order in which threads and blocks run
_wide_products = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]


def _wide_product(
    a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype, *, out: torch.Tensor
) -> torch.Tensor:
    """Multiplies as torch does on CUDA alone: half precision operands, float32 sums and result."""
    assert a.dtype == b.dtype != out_dtype == out.dtype == torch.float32
    return out.copy_(a.float() @ b.float())


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Tensors that no one has written to yet start as NaN, those of bytes with all bits set."""
    before = torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fills
        torch.use_deterministic_algorithms(before)


class Poisoned:
    """The operators of a namespace, whose results and workspaces start as NaN in every call."""

    def __init__(self, operators: Any) -> None:
        self.operators = operators

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*operands: Any) -> Any:
            with poisoned_memory():
                return getattr(self.operators, name)(*operands)

        return call


@pytest.fixture(scope="session")
def host_shim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Builds, once for all runs until a source changes, and loads `torch.ops.segdeform_host_shim`.

    Its operators have the schemas of `segdeform` and take CPU tensors; memory that they ask for
    starts as NaN. SEGDEFORM_SHIM_FLAGS holds more flags for the compiler, as scripts/sanitize.sh
    sets.
    """
    # Every module that imports this has a fixture of its own, but torch takes the library once.
    if torch._C._dispatch_has_kernel("segdeform_host_shim::sample_points"):
        return Poisoned(torch.ops.segdeform_host_shim)
    cache = getattr(request.config, "cache", None)  # not with -p no:cacheprovider
    folder = cache.mkdir("host_shim") if cache else tmp_path_factory.mktemp("host_shim")
    with tempfile.TemporaryDirectory() as work:
        flags = os.environ.get("SEGDEFORM_SHIM_FLAGS", "").split()
        path = build.build_host_shim(folder, Path(work), flags, [PLANTED])
    torch.ops.load_library(str(path))
    for product in ("mm", "bmm"):
        _wide_products.impl(f"{product}.dtype_out", _wide_product, "CPU")
    return Poisoned(torch.ops.segdeform_host_shim)
