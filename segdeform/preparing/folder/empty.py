"""Pictures without a mask taken as pure background, as those of a road without a crack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from segdeform.callbacks import Progress
from segdeform.checking.facts import Facts, picture_facts
from segdeform.data.dataset import Sample, colour_map, label_type
from segdeform.data.file_lists import name_below
from segdeform.data.image_io import write_index_png
from segdeform.errors import DataError
from segdeform.preparing.folder.masks import Labelled, name_fault
from segdeform.preparing.folder.meaning import Meaning
from segdeform.preparing.side_by_side import each


def with_background(
    labelled: Labelled,
    pictures: Sequence[Path],
    images: Path,
    folder: Path,
    workers: int,
    progress: Progress,
) -> Labelled:
    """Adds pictures that have no mask, with one of the background alone in FOLDER/NAME.png.

    Those that cannot be read or listed, or have the name of another, are among the bad ones.
    Raises DataError where no class is known to be the background.
    """
    if not pictures:
        return labelled
    background = labelled.meaning.background()
    if background is None:
        classes = ", ".join(labelled.meaning.names)
        raise DataError(
            "--keep-empty: no class has the value 0 or the colour black, so that nothing tells "
            f"which of {classes} is what a picture without a mask shows: call it 'background' "
            "by --values or --classes, or leave --keep-empty out"
        )
    samples, pixels = list(labelled.samples), list(labelled.pixels)
    digests, bad = list(labelled.digests), list(labelled.bad)
    taken = {sample.name for sample in samples}
    listable = []
    for picture in pictures:
        if why := name_fault(_name(picture, images), picture):
            bad.append((picture, why))
        else:
            listable.append(picture)
    write = partial(
        _background, images=images, folder=folder, meaning=labelled.meaning, background=background
    )
    for sample, facts in each(write, listable, workers, progress):
        if facts.problem or sample.name in taken:
            bad.append((sample.image, facts.text or "another picture has its name"))
            continue
        taken.add(sample.name)
        samples.append(sample)
        counts = np.zeros(len(labelled.meaning.names), np.int64)
        counts[background] = facts.height * facts.width
        pixels.append(counts)
        digests.append(facts.digest)
    added = len(samples) - len(labelled.samples)
    order = sorted(range(len(samples)), key=lambda index: samples[index].name)
    name = labelled.meaning.names[background]
    told = f"{added} pictures without a mask are taken as {name} alone (--keep-empty)"
    return replace(
        labelled,
        samples=tuple(samples[index] for index in order),
        pixels=np.array([pixels[index] for index in order], np.int64),
        digests=tuple(digests[index] for index in order),
        bad=tuple(bad),
        meaning=replace(labelled.meaning, told=(*labelled.meaning.told, told)),
    )


def _background(
    picture: Path, images: Path, folder: Path, meaning: Meaning, background: int
) -> tuple[Sample, Facts]:
    name = _name(picture, images)
    facts, path = picture_facts(picture), folder / f"{name}.png"
    if facts.problem is None and not path.exists():
        kind = label_type(len(meaning.names))
        labels = np.full((facts.height, facts.width), background, kind)
        write_index_png(path, labels, meaning.palette or colour_map(len(meaning.names)))
    return Sample(name, picture, path), facts


def _name(picture: Path, images: Path) -> str:
    return name_below(picture.with_suffix(""), images)
