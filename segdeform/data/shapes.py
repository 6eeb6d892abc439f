"""The built-in data set `shapes`: folders that `segdeform prepare shapes` has drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from segdeform.data import folder
from segdeform.data.dataset import Dataset, MissingSplitError


def load(root: Path, split: str) -> Dataset:
    """Lists one split of a generated data set. Raises MissingSplitError when ROOT holds none."""
    if not (root / "classes.json").is_file():
        raise MissingSplitError(
            f"{root}: holds no shapes; run: segdeform prepare shapes --output {root}"
        )
    return replace(folder.load(root, split), name="shapes")
