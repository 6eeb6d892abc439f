"""What can be imported, known without torch."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from segdeform.errors import ModelError, UsageError, nearest

_ADDRESS = "https://download.pytorch.org/models/"
PREFIX = "torchvision:"
SUFFIXES = (".pth", ".pt", ".safetensors")


class Pretrained(NamedTuple):
    """A network of torchvision with weights to download."""

    backbone: str
    url: str  # ends in the beginning of the file's SHA-256
    mean_iou: float  # that torchvision reports, of COCO val2017 with VOC's classes


# Their weights COCO_WITH_VOC_LABELS_V1.
TORCHVISION = {
    "deeplabv3_resnet50": Pretrained(
        "resnet50", f"{_ADDRESS}deeplabv3_resnet50_coco-cd0a2569.pth", 0.664
    ),
    "deeplabv3_resnet101": Pretrained(
        "resnet101", f"{_ADDRESS}deeplabv3_resnet101_coco-586e9e4e.pth", 0.674
    ),
    "deeplabv3_mobilenet_v3_large": Pretrained(
        "mobilenet_v3_large", f"{_ADDRESS}deeplabv3_mobilenet_v3_large-fc3c493d.pth", 0.603
    ),
}


def refuse_source(source: str, weights: Path | None) -> None:
    """Refuses what cannot be imported, or is not there, before torch's seconds of import.

    Raises:
        UsageError: no such source, or --weights without need.
        ModelError: a file is missing or of another kind.
    """
    if not source.startswith(PREFIX):
        if weights is not None:
            raise UsageError(f"--weights is for {PREFIX}NAME; {source} is a file itself")
        path = Path(source)
        if not path.exists() and path.suffix not in SUFFIXES:
            known = ", ".join(PREFIX + name for name in TORCHVISION)
            raise UsageError(
                f"unknown source '{source}'.{_nearest_of(source)} Known: {known}, and .pth or "
                ".safetensors files of torchvision's DeepLabV3 or of mmsegmentation's DeepLabV3 "
                "and DeepLabV3+"
            )
        return _refuse_file(path)
    name = source.removeprefix(PREFIX)
    if name not in TORCHVISION:
        raise UsageError(f"unknown source '{source}'.{nearest(name, TORCHVISION)}")
    if weights is not None:
        _refuse_file(weights)


def refuse_occupied(output: Path, overwrite: bool) -> None:
    """Raises UsageError where a model or anything else lies at `output`, unless overwritten."""
    if overwrite or not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    raise UsageError(f"{output} exists already; --overwrite replaces a model folder")


def _nearest_of(source: str) -> str:
    """Returns " Did you mean 'torchvision:...'?" where only the prefix is missing or misspelt."""
    name = source.rpartition(":")[2]
    return f" Did you mean '{PREFIX}{name}'?" if name in TORCHVISION else ""


def _refuse_file(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"{path} {'is a folder' if path.is_dir() else 'is missing'}")
    if path.suffix not in SUFFIXES:
        raise ModelError(f"{path} is none of {', '.join(SUFFIXES)}")
