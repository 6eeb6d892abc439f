"""What is asked of a prediction: its pictures, its outputs, and whether a picture is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from segdeform.data.depth import as_json
from segdeform.prediction.place import output_path
from segdeform.prediction.records import Done, is_same_file
from segdeform.results.outputs import Forms
from segdeform.segmenter import Segmenter
from segdeform.version import __version__


class Task(NamedTuple):
    """One picture to predict."""

    source: Path
    name: str  # of its outputs


@dataclass(frozen=True)
class Job:
    """What all pictures of a call have in common."""

    segmenter: Segmenter
    output: Path
    outputs: tuple[str, ...]  # names of outputs.KINDS
    settings: str  # digest of the model and how it is used
    forms: Forms

    def is_done(self, task: Task, entry: Done | None) -> bool:
        """Tells whether a picture's outputs are there, of this very file by these settings."""
        if entry is None or entry.input is None or not self.is_made(entry):
            return False
        if entry.source != task.source or not is_same_file(task.source, entry.input):
            return False
        paths = (output_path(self.output, entry, name) for name in self.outputs)
        return all(path.is_file() for path in paths)

    def is_made(self, entry: Done) -> bool:
        """Tells whether a record is of these settings, and of all outputs as they are asked for."""
        made = entry.outputs
        return entry.settings == self.settings and all(
            made.get(name) == self.forms.of(name) for name in self.outputs
        )


def settings_of(segmenter: Segmenter) -> Mapping[str, Any]:
    """Returns all that a mask depends on beside its picture."""
    # Named only where they are others, so that what earlier versions did is known again.
    others: dict[str, Any] = {}
    if segmenter.precision != "fp32":
        others["precision"] = segmenter.precision
    if segmenter.compiled:
        others["compiled"] = True
    return others | {
        "model": segmenter.info["sha256"],
        "inference": segmenter.options.model_dump(mode="json"),
        "value_range": segmenter.value_range and as_json(segmenter.value_range),
        "bands": segmenter.bands,
        "device": segmenter.device.type,
        "segdeform": __version__,
    }
