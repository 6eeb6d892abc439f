"""What became of all pictures of a prediction, as summary.json tells it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segdeform.data.unread import is_video
from segdeform.files.atomic import write_json
from segdeform.prediction.inputs import Found
from segdeform.prediction.job import Job
from segdeform.prediction.place import FORMAT, SUMMARY, has_outputs, identity, written_outputs
from segdeform.prediction.records import (
    Done,
    Failure,
    Part,
    frame_name,
    read_done,
    read_failures,
)


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
    earlier: int = 0  # masks of earlier predictions of other pictures, left where they are
    left: int = 0
    # Of every mask below `output`, also of earlier predictions: name -> its picture, absolute
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
                "frame": d.frame,
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
    job: Job,
    found: Found,
    earlier: Mapping[str, str],  # name -> picture, of outputs that were there before
) -> Summary:
    """Reads what all processes have noted of the pictures found."""
    done, failures = read_done(job.output), read_failures(job.output)
    pages, failed_pages = frames_of(done.values()), _failed_frames(failures)
    summary = Summary(
        job.output, failed=list(found.collisions), skipped=found.skipped, own=found.own
    )
    failed = set()
    for source, name in found.pictures:
        part, entry = Part(str(source)), done.get(name)
        if part in failures:
            summary.failed.append((source, failures[part].reason))
            failed.add(name)
        elif entry is not None and _answers(job, source, entry):
            summary.done.append(entry)
        elif job.every_frame and (name in pages or part.picture in failed_pages):
            right = [page for page in pages.get(name, []) if _answers(job, source, page)]
            wrong = failed_pages.get(part.picture, [])
            summary.done += right
            summary.failed += [(source, why.of(which)) for which, why in wrong]
            frames = [why.frames for _, why in wrong] or [page.frames for page in right[:1]]
            summary.left += max(0, min(frames, default=1) - len(right) - len(wrong))
        else:
            summary.left += 1
    planned = {name: str(identity(source)) for source, name in found.pictures}
    owners = {**earlier, **planned}
    # Of one that failed, there may be frames before a break, or what nobody may remove.
    gone = {name for name in failed if not _has_any(job.output, name)}
    summary.sources = {name: path for name, path in owners.items() if name not in gone}
    summary.earlier = len(earlier.keys() - planned.keys())
    return summary


def _answers(job: Job, source: Path, entry: Done) -> bool:
    """Tells whether an entry is what this call is asked for."""
    if not job.is_made(entry) or entry.source != source:
        return False
    wanted = not job.every_frame or is_video(source) or entry.frames == 1
    return wanted or entry.frame is not None


def _has_any(output: Path, name: str) -> bool:
    return has_outputs(output, name) or has_outputs(output, frame_name(name, 0))


def frames_of(done: Iterable[Done]) -> dict[str, list[Done]]:
    """Returns the entries of frames by the name of their picture, in order."""
    found: dict[str, list[Done]] = {}
    for entry in done:
        if entry.frame is not None:
            found.setdefault(entry.of, []).append(entry)
    for entries in found.values():
        entries.sort(key=lambda entry: entry.frame or 0)
    return found


def _failed_frames(failures: Mapping[Part, Failure]) -> dict[str, list[tuple[Part, Failure]]]:
    found: dict[str, list[tuple[Part, Failure]]] = {}
    for part, failure in failures.items():
        if part.frame is not None:
            found.setdefault(part.picture, []).append((part, failure))
    return {name: sorted(entries, key=lambda e: e[0].frame or 0) for name, entries in found.items()}


def write_summary(summary: Summary, job: Job, *, finished: bool) -> None:
    """Writes summary.json. Raises ResourceError or UsageError."""
    header = {
        "format": FORMAT,
        "finished": finished,
        "model_sha256": job.segmenter.info["sha256"],
        "classes": list(job.segmenter.classes),
        "inference": job.segmenter.options.model_dump(mode="json"),
        "precision": job.segmenter.precision,
        "compiled": job.segmenter.compiled,
        "outputs": list(job.outputs),
        "folders": written_outputs(summary.output, job.outputs),
        "frames": "all" if job.every_frame else "first",
    }
    write_json(summary.output / SUMMARY, header | summary.to_json())
