"""What became of all pictures of a prediction, as summary.json tells it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segdeform.files.atomic import write_json
from segdeform.prediction.inputs import Found
from segdeform.prediction.place import FORMAT, SUMMARY, every_path, identity, written_outputs
from segdeform.prediction.records import Done, read_done, read_failures
from segdeform.segmenter import Segmenter


@dataclass
class Summary:
    """Every picture found is in `done`, in `failed` or, of other processes, still `left`."""

    output: Path
    done: list[Done] = field(default_factory=list)
    kept: int = 0  # of them, those that this call found done
    failed: list[tuple[Path, str]] = field(default_factory=list)  # source, one-line reason
    # In the input folders: other files with what they are, and earlier predictions of ours.
    skipped: list[tuple[Path, str]] = field(default_factory=list)
    own: list[Path] = field(default_factory=list)
    earlier: int = 0  # other pictures of earlier predictions, whose outputs stay where they are
    left: int = 0
    # Of all outputs in the folder, also of earlier predictions: name -> its picture, absolute
    sources: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the lists as JSON values."""
        done = [
            {
                "picture": str(d.source),
                "name": d.name,
                "size": list(d.size),
                "shares": d.shares,
                "frames": d.frames,
            }
            for d in self.done
        ]
        return {
            "done": done,
            "failed": [{"picture": str(path), "reason": reason} for path, reason in self.failed],
            "left": self.left,
            "skipped": len(self.skipped),
            "skipped_files": [
                {"file": str(path), "reason": reason} for path, reason in self.skipped
            ],
            "own_outputs": [str(path) for path in self.own],
            "earlier": self.earlier,
            "sources": dict(sorted(self.sources.items())),
        }


def sum_up(
    output: Path,
    found: Found,
    earlier: Mapping[str, str],  # name -> picture, of outputs that were there before
    is_made: Callable[[Done], bool],  # whether a record is of this job
) -> Summary:
    """Reads what all processes have noted of the pictures found."""
    done, failures = read_done(output), read_failures(output)
    summary = Summary(output, failed=list(found.collisions), skipped=found.skipped, own=found.own)
    planned = {name: str(identity(source)) for source, name in found.pictures}
    failed = set()
    for source, name in found.pictures:
        entry = done.get(name)
        if str(source) in failures:
            summary.failed.append((source, failures[str(source)]))
            failed.add(name)
        elif entry is not None and is_made(entry) and entry.source == source:
            summary.done.append(entry)
        else:
            summary.left += 1
    owners = {**earlier, **planned}
    # Of one that failed, an old output may be left that nobody may remove.
    gone = {name for name in failed if not any(path.is_file() for path in every_path(output, name))}
    summary.sources = {name: path for name, path in owners.items() if name not in gone}
    summary.earlier = len(earlier.keys() - planned.keys())
    return summary


def write_summary(
    summary: Summary, segmenter: Segmenter, outputs: Sequence[str], *, finished: bool
) -> None:
    """Writes summary.json. Raises ResourceError or UsageError."""
    header = {
        "format": FORMAT,
        "finished": finished,
        "model_sha256": segmenter.info["sha256"],
        "classes": list(segmenter.classes),
        "inference": segmenter.options.model_dump(mode="json"),
        "precision": segmenter.precision,
        "compiled": segmenter.compiled,
        "outputs": list(outputs),
        "folders": written_outputs(summary.output, outputs),
    }
    write_json(summary.output / SUMMARY, header | summary.to_json())
