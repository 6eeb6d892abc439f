"""What a network says of one picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeform.data.channels import shown_colours
from segdeform.data.georeference import Georeference
from segdeform.data.rasters import Raster
from segdeform.results.facts import class_facts, class_pixels
from segdeform.results.files import output_of, refuse_misnamed, write_output
from segdeform.results.maps import Maps, confidence_of, probabilities_of
from segdeform.results.outputs import Forms, known_outputs
from segdeform.results.overlay import Color, Labels, Picture, overlay
from segdeform.results.polygons import polygons
from segdeform.results.rle import coco_dataset


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """Labels of a picture, and what can be made of them; `np.asarray(result)` are the labels.

    Probabilities are computed when they are first asked for, where they were not from the start.
    """

    maps: Maps
    image: Raster  # [H, W, C], as the network knows it
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    source: Path | None = None  # the file that it was read from
    place: Georeference | None = None  # where it lies on a map, if its file says so
    compute: Callable[..., Maps] | None = None  # the picture's maps anew, as `predict_maps`

    @property
    def labels(self) -> Labels:
        """The class number of every pixel, [H, W] uint8, of more than 255 classes uint16."""
        labels: Labels = self.maps.labels
        return labels

    @cached_property
    def confidence(self) -> NDArray[np.uint8]:
        """The probability of the pixel's class, [H, W], 255 being certain."""
        if self.maps.confidence is not None:
            return self.maps.confidence
        if self.maps.coarse is not None:
            return confidence_of(self.maps.coarse)
        found = self._computed(confidence=True).confidence
        assert found is not None
        return found

    @cached_property
    def probabilities(self) -> NDArray[np.float16]:
        """The probability of every class at every pixel, [K, H, W]: 2 * K bytes a pixel."""
        if self.maps.probabilities is not None:
            return self.maps.probabilities
        if self.maps.coarse is not None:
            return probabilities_of(self.maps.coarse)
        found = self._computed(probabilities=True).probabilities
        assert found is not None
        return found

    def _computed(self, **wanted: bool) -> Maps:
        if self.compute is None:
            raise ValueError(f"{' and '.join(wanted)}: not computed, and no network to do it")
        return self.compute(**wanted)

    def __repr__(self) -> str:
        height, width = self.size
        source = f" of {self.source}" if self.source else ""
        return f"<Result{source}: {height}x{width} labels of {len(self.classes)} classes>"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.labels, dtype=dtype, copy=copy)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the picture, pixels."""
        return self.labels.shape[0], self.labels.shape[1]

    def shares(self) -> dict[str, float]:
        """Returns the share of the pixels of every class that occurs, in the order of classes."""
        pairs = zip(self.classes, class_pixels(self.labels, len(self.classes)), strict=True)
        return {name: int(count) / self.labels.size for name, count in pairs if count}

    def facts(self) -> dict[str, Any]:
        """Returns the size, and pixels, share and mean confidence of every class that occurs."""
        facts = class_facts(self.labels, self.classes, self.confidence)
        if self.place is not None:
            facts["georeference"] = {"transform": self.place.transform, "epsg": self.place.epsg}
        return facts

    def polygons(
        self, *, min_area: int = 1, simplify: float = 0.0, skip_classes: Collection[str] = ()
    ) -> dict[str, Any]:
        """Returns the regions as GeoJSON, on the map where it has one: see `polygons.polygons`."""
        return polygons(
            self.labels,
            self.classes,
            min_area=min_area,
            simplify=simplify,
            skip_classes=skip_classes,
            georeference=self.place,
        )

    def rle(self) -> dict[str, Any]:
        """Returns the labels as a COCO data set of one image: see `rle.coco_dataset`."""
        name = "" if self.source is None else self.source.name
        return coco_dataset(self.labels, self.classes, name)

    def save(self, path: str | Path, output: str | None = None, **forms: Any) -> Path:
        """Writes an output of `outputs.KINDS` and returns where; the file appears whole.

        By default the suffix tells which: .png or .tif the mask, .jpg the overlay, .npz all
        probabilities, .geojson polygons, .json the facts. In a folder it is the mask, called like
        the picture. `forms` are those of `outputs.Forms`:
        `save("cut.png", "cutouts", cutout_class="road")`.

        Raises:
            UsageError: an unknown output or suffix, that of another output, or the file cannot be
            written.
            ResourceError: the disk is full.
        """
        where = Path(path)
        if os.path.isdir(where):  # noqa: PTH112, Path raises for names that are too long
            where /= f"{self.source.stem if self.source else 'result'}.png"
        name = known_outputs([output])[0] if output else output_of(where)
        refuse_misnamed(where, name)
        write_output(where, name, self, Forms(**forms))
        return where

    def overlay(self) -> Picture:
        """Draws the picture tinted in the classes' colours, uint8 [H, W, 3]."""
        return overlay(shown_colours(self.image[:, :]), self.labels, self.palette)
