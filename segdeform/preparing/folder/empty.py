"""Pictures without a mask taken as pure background, as those of a road without a crack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from segdeform.callbacks import Progress
from segdeform.checking.facts import Facts, picture_facts
from segdeform.data.dataset import Sample, colour_map
from segdeform.data.file_lists import name_below
from segdeform.data.image_io import write_index_png
from segdeform.preparing.folder.masks import Labelled
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
    """Adds pictures that have no mask, with one of class 0 alone in FOLDER/NAME.png.

    Those that cannot be read, or have the name of another, are among the bad ones.
    """
    samples, pixels = list(labelled.samples), list(labelled.pixels)
    digests, bad = list(labelled.digests), list(labelled.bad)
    taken = {sample.name for sample in samples}
    write = partial(_background, images=images, folder=folder, meaning=labelled.meaning)
    for sample, facts in each(write, pictures, workers, progress):
        if facts.problem or sample.name in taken:
            bad.append((sample.image, facts.text or "another picture has its name"))
            continue
        taken.add(sample.name)
        samples.append(sample)
        counts = np.zeros(len(labelled.meaning.names), np.int64)
        counts[0] = facts.height * facts.width
        pixels.append(counts)
        digests.append(facts.digest)
    added = len(samples) - len(labelled.samples)
    order = sorted(range(len(samples)), key=lambda index: samples[index].name)
    name = labelled.meaning.names[0]
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
    picture: Path, images: Path, folder: Path, meaning: Meaning
) -> tuple[Sample, Facts]:
    name = name_below(picture.with_suffix(""), images)
    facts, path = picture_facts(picture), folder / f"{name}.png"
    if facts.problem is None and not path.exists():
        labels = np.zeros((facts.height, facts.width), np.uint8)
        write_index_png(path, labels, meaning.palette or colour_map(len(meaning.names)))
    return Sample(name, picture, path), facts
