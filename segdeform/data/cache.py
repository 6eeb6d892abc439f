"""A split as decoded bytes on disk, which training reads instead: crops without decoding.

ROOT/.segdeform-cache/SPLIT-FINGERPRINT/ holds them (`decoded.py` reads them, what writes them is
`preparing/decoding.py`). They are the very arrays that `read_pair` gives, so training has the same
bits with the cache and without it. The fingerprint is of paths, sizes and times of all files, and
of what decodes them: after any change the cache is not used any more.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import PIL
from PIL import features

from segdeform.callbacks import Say
from segdeform.data.dataset import Dataset
from segdeform.data.decoded import open_cache
from segdeform.errors import DataError
from segdeform.version import __version__

VERSION = 2
_FOLDER = ".segdeform-cache"


def with_cache(dataset: Dataset, say: Say) -> Dataset:
    """Returns the data set reading from its cache where there is one that fits the files.

    `say` hears that it is used, or that it no longer fits. Raises DataError for a damaged cache.
    """
    folder = cache_folder(dataset)
    if not folder.is_dir():
        if any(folder.parent.glob(f"{dataset.split}-*")):
            say(
                f"the cache of {dataset.split} is of other files than there are now, and not used: "
                "segdeform prepare --cache writes it anew"
            )
        return dataset
    say(f"{dataset.split}: pictures from {folder}")
    cache = open_cache(folder, len(dataset), dataset.channels, wide=dataset.wide)
    return replace(dataset, cache=cache)


def cache_folder(dataset: Dataset) -> Path:
    """Returns where the cache of these very files is, or would be. Raises DataError."""
    root = dataset.root if dataset.root.is_dir() else dataset.root.parent
    try:
        files = [
            [
                sample.name,
                *_identity(sample.image, root),
                *(_identity(sample.mask, root) if sample.mask else ()),
            ]
            for sample in dataset.samples
        ]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    what: list[Any] = [
        VERSION,
        # What else decoding depends on.
        [
            *(__version__, PIL.__version__, version("tifffile"), version("imagecodecs")),
            *map(features.version, ("jpg", "webp", "libtiff")),
        ],
        [dataset.name, dataset.split, dataset.classes],
        [sorted((dataset.label_map or {}).items()), sorted(dataset.void), dataset.value_range],
        files,
        *([] if dataset.bands is None else [dataset.bands]),
    ]
    fingerprint = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
    return root / _FOLDER / f"{dataset.split}-{fingerprint}"


def _identity(path: Path, root: Path) -> tuple[str, int, int]:
    """Returns path, size and time; the path without ROOT, so that a data set can be moved."""
    status = path.stat()
    place = path.relative_to(root) if path.is_relative_to(root) else path.absolute()
    return str(place), status.st_size, status.st_mtime_ns
