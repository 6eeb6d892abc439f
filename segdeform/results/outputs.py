"""What can be written of each picture: all outputs by name, and how those are made that vary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from segdeform.errors import UsageError, nearest

Numbers = Literal["float16", "uint8"]


class Kind(NamedTuple):
    """A kind of output; OUTPUT/NAME/ mirrors the inputs."""

    suffixes: tuple[str, ...]  # of its files
    help: str


KINDS = {
    "masks": Kind(("png", "tif"), "class numbers as palette PNG, on a map GeoTIFF"),
    "overlays": Kind(("jpg", "png", "mp4"), "the picture tinted in the classes' colours"),
    "confidence": Kind(("png",), "grey PNG of 255 times the probability of the label"),
    "probabilities": Kind(("npz",), "of all classes, for numpy.load"),
    "polygons": Kind(("geojson",), "GeoJSON of every region, on the map where there is one"),
    "rle": Kind(("json",), "COCO annotations: run lengths, area and box of each class"),
    "cutouts": Kind(("png",), "one class of the picture, transparent elsewhere"),
    "json": Kind(("json",), "size, and of each class pixels, share and mean confidence"),
}
DEFAULT = ("masks", "overlays")


@dataclass(frozen=True)
class Forms:
    """How outputs are made that can be made in several ways."""

    probabilities_type: Numbers = "float16"
    min_area: int = 1  # pixels of a polygon
    simplify: float = 0.0  # pixels by which polygons are smoothed
    skip_classes: tuple[str, ...] = ()  # without polygons
    cutout_class: str | None = None

    def of(self, name: str) -> dict[str, Any]:
        """Returns what an output depends on beside the picture and the labels, JSON values."""
        match name:
            case "probabilities":
                return {"type": self.probabilities_type}
            case "polygons":
                return {
                    "min_area": self.min_area,
                    "simplify": self.simplify,
                    "skip_classes": sorted(set(self.skip_classes)),
                }
            case "cutouts":
                return {"class": self.cutout_class}
        return {}

    def check(self, outputs: Sequence[str], classes: Sequence[str]) -> None:
        """Raises UsageError for a class that is not there, or cut-outs of none."""
        for name in self.skip_classes:
            if name not in classes:
                raise UsageError(f"polygons: no class '{name}'.{nearest(name, classes)}")
        if "cutouts" not in outputs:
            return
        if self.cutout_class is None:
            raise UsageError(
                "cutouts need a class: --cutout-class NAME, in Python cutout_class, of "
                f"{', '.join(classes)}"
            )
        if self.cutout_class not in classes:
            wrong = self.cutout_class
            raise UsageError(f"cutouts: no class '{wrong}'.{nearest(wrong, classes)}")


def known_outputs(names: Sequence[str]) -> tuple[str, ...]:
    """Returns names in the order of KINDS, each once. Raises UsageError for an unknown one."""
    for name in names:
        if name not in KINDS:
            raise UsageError(f"--outputs: no output '{name}'.{nearest(name, KINDS)}")
    return tuple(name for name in KINDS if name in names)
