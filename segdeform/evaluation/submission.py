"""Label maps as the benchmark servers take them: names, values and the zip."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from segdeform.callbacks import Stop
from segdeform.data.cityscapes import train_ids_to_label_ids
from segdeform.data.dataset import Dataset, Labels, Sample
from segdeform.data.image_io import write_image, write_index_png
from segdeform.errors import InterruptedByUserError, UsageError
from segdeform.files.atomic import atomic_path

# comp6: trained on any pictures but the test set's; comp5 would be VOC's own alone.
_VOC_FOLDER: Final = "results/VOC2012/Segmentation/comp6_test_cls"
# What the servers expect before the file's name.
_ZIP_FOLDERS: Final = {"voc": f"{_VOC_FOLDER}/", "cityscapes": ""}


def refuse_without_server(dataset: Dataset) -> None:
    """Raises UsageError unless a benchmark's server takes label maps of this data set."""
    if dataset.name not in _ZIP_FOLDERS:
        raise UsageError(
            f"--submission is for the data sets {', '.join(sorted(_ZIP_FOLDERS))}, "
            f"not for '{dataset.name}'; segdeform predict writes masks of any pictures"
        )


def label_map_writer(dataset: Dataset, folder: Path) -> Callable[[Sample, Labels], None]:
    """Returns what writes a sample's label map, class indices [H, W], into a folder.

    VOC: palette PNGs of class indices; Cityscapes: PNGs of label ids named CITY_SEQUENCE_FRAME_*.
    """
    if dataset.name == "voc":
        return lambda sample, labels: write_index_png(
            label_map_path(dataset, folder, sample), labels, dataset.palette
        )
    return lambda sample, labels: write_image(
        label_map_path(dataset, folder, sample), train_ids_to_label_ids(labels)
    )


def label_map_path(dataset: Dataset, folder: Path, sample: Sample) -> Path:
    """Returns where `label_map_writer` puts a sample: flat, as both servers want it."""
    stem = sample.name.rpartition("/")[2]
    return folder / (f"{stem}_labelIds.png" if dataset.name == "cityscapes" else f"{stem}.png")


def write_zip(dataset: Dataset, folder: Path, path: Path, stop: Stop | None = None) -> None:
    """Packs the label maps of a folder; equal maps give equal bytes, and it appears whole.

    Raises:
        UsageError, ResourceError: it cannot be written.
        InterruptedByUserError: after a stop.
    """
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for sample in sorted(dataset.samples, key=lambda sample: sample.name):
            if stop is not None and stop():
                raise InterruptedByUserError(f"{path}: packing stopped; it was not written")
            source = label_map_path(dataset, folder, sample)
            entry = zipfile.ZipInfo(_ZIP_FOLDERS[dataset.name] + source.name)  # dated 1980
            entry.external_attr = 0o644 << 16
            entry.create_system = 3  # Unix, wherever it is written
            archive.writestr(entry, source.read_bytes())  # PNGs do not shrink again
