"""Semantic segmentation with deformable convolutions.

>>> import segdeform
>>> segmenter = segdeform.load("runs/mine")
>>> result = segmenter.predict("street.jpg")  # result.labels: uint8 [H, W]
"""

from __future__ import annotations

from segdeform.version import __version__

# As typing has it, which takes longer to import than Ctrl-C after the Enter key does.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from cuda_ops.layers import DeformConv2d, ModulatedDeformConv2d
    from segdeform.models.deform import deformify
    from segdeform.segmenter import Segmenter, load

# Imported when first asked for: torch takes seconds, and most commands' help needs none.
_HOMES = {
    "DeformConv2d": "cuda_ops.layers",
    "ModulatedDeformConv2d": "cuda_ops.layers",
    "Segmenter": "segdeform.segmenter",
    "deformify": "segdeform.models.deform",
    "load": "segdeform.segmenter",
}

__all__ = [
    "DeformConv2d",
    "ModulatedDeformConv2d",
    "Segmenter",
    "__version__",
    "deformify",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
