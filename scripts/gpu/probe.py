"""Prints the facts of the native libraries; fails unless this GPU runs every operator natively."""

from __future__ import annotations

import json
import sys

import torch

from cuda_ops import library


def other_sources(status: library.LibraryStatus) -> bool:
    """Says whether a library was built from other sources than those beside it."""
    try:
        from cuda_ops import build
    except ModuleNotFoundError:  # without setuptools nothing can be built anyway
        return False
    sources = {"_C.so": build.cpu_sources, "_C_cuda.so": build.cuda_sources}[status.file]()
    here = build.source_digest(sources)
    return status.build.get("sources", here) != here


def main() -> str | None:
    """Returns what is wrong."""
    halves = {
        half.file: {
            "loaded": half.loaded,
            "reason": half.reason,
            "build": half.build,
            "other_sources": other_sources(half),
        }
        for half in (library.cpu_library, library.cuda_library)
    }
    print(json.dumps(halves), flush=True)  # before what stderr gets at the end
    lacking = [o for o in library.FALLBACKS if not library.has_kernel(o, "cuda")]
    if lacking:
        return f"no CUDA kernel of {', '.join(lacking)}: {library.cuda_library.reason}"
    image = torch.arange(12.0, device="cuda").reshape(3, 4)
    point = torch.tensor([[1.5, 2.25]], device="cuda")
    value = torch.ops.segdeform.sample_points(image, point).item()
    return None if value == 8.25 else f"the GPU computes {value} instead of 8.25"


if __name__ == "__main__":
    sys.exit(main())
