"""What nvcc makes of the kernels: wide loads and stores where the layout allows them."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

from cuda_ops import build

WIDE = {  # kernel: how its name tells that it handles 16 bytes at a time, and whether it stores so
    "roi_pool.cu": {"pool_bins": True, "gradient_of_shifts": False},
    "deform_conv2d.cu": {"gather_columns": True, "depthwise_forward": True},
    "deform_conv2d_backward.cu": {"gather_input_gradient": True, "sample_gradients": False},
}
SOURCES = [*list(WIDE)[:2], pytest.param("deform_conv2d_backward.cu", marks=pytest.mark.slow)]
VECTORS = ("ILi8EN3c108BFloat16E", "ILi8EN3c104HalfE", "ILi4Ef", "ILi2Ed",
           "IN3c108BFloat16ELi8E", "IN3c104HalfELi8E", "IfLi4E", "IdLi2E")  # fmt: skip


def compiler() -> Path:
    nvcc = build.cuda_compiler()  # raises where SEGDEFORM_CUDA=1 and there is none
    if nvcc is None:
        pytest.skip("there is no CUDA compiler")
    return nvcc


def kernels(source: str, folder: Path) -> dict[str, str]:
    """Compiles a source for one architecture; returns the PTX of each kernel by mangled name."""
    target = folder / "kernels.ptx"
    include = Path(torch.__file__).parent / "include"
    flags = [f for f in build.nvcc_flags(["80"]) if not f.startswith("-gencode")]
    command = [compiler(), *flags, "-arch=compute_80", "-ptx", "-isystem", include]
    subprocess.run([*command, build.SOURCES / "cuda" / source, "-o", target], check=True)
    bodies = re.split(r"^\.visible \.entry |^\.entry ", target.read_text(), flags=re.MULTILINE)
    return {body.partition("(")[0].strip(): body for body in bodies[1:]}


@pytest.mark.skipif(os.environ.get("SEGDEFORM_CUDA") == "0", reason="SEGDEFORM_CUDA=0")
@pytest.mark.parametrize("source", SOURCES)
def test_vectors_are_loaded_and_stored_at_once(source: str, tmp_path: Path) -> None:
    found = kernels(source, tmp_path)
    for name, stores in WIDE[source].items():
        wide = {k: v for k, v in found.items() if name in k and any(t in k for t in VECTORS)}
        assert len(wide) >= 4, f"{name}: {sorted(found)}"  # one a dtype
        for kernel, body in wide.items():
            assert re.search(r"ld\.global(\.nc)?\.v[24]\.", body), kernel
            if stores:
                assert re.search(r"st\.global\.v4\.u32", body), kernel
