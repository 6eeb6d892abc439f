"""The result of a check: findings, counts, class weights; in words and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segdeform.checking.causes import Cause
from segdeform.checking.finding import Finding
from segdeform.checking.weights import balancing_weights
from segdeform.errors import DataError, SegdeformError, UnsafeInputError

_SHOWN = 10  # errors named in the one line of a refusal


@dataclass(frozen=True)
class SplitCount:
    """How many pixels of each class the masks of a split hold."""

    name: str
    pairs: int
    pixels: tuple[int, ...]  # a class
    ignored: int
    sizes: tuple[tuple[int, int], ...] = ()  # of the pictures, (H, W), in their order

    def shares(self) -> list[float]:
        """Returns each class's part of the labelled pixels."""
        return [count / max(1, sum(self.pixels)) for count in self.pixels]


@dataclass(frozen=True)
class Report:
    """What a check found in the splits of a data set."""

    name: str
    root: Path
    classes: tuple[str, ...]
    splits: tuple[SplitCount, ...]
    findings: tuple[Finding, ...]  # in the order of KINDS
    cause: Cause | None  # why the values of all masks do not fit
    files: int
    reused: int  # files whose facts were remembered from an earlier check
    seconds: float

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def pairs(self) -> int:
        return sum(split.pairs for split in self.splits)

    def split(self, name: str) -> SplitCount:
        """Returns what was counted in a split, which must have been checked."""
        return next(split for split in self.splits if split.name == name)

    def class_weights(self) -> list[float]:
        """Suggests train.class_weights from the shares in the first split (`balancing_weights`).

        Nothing where there are not two classes to weigh, or where the values of the masks do not
        count the classes.
        """
        shares = self.splits[0].shares()
        if sum(share > 0 for share in shares) < 2 or self.cause is not None:
            return []
        return balancing_weights(shares)

    def by_kind(self) -> dict[str, list[Finding]]:
        """Returns the findings by kind, in the order of KINDS."""
        groups: dict[str, list[Finding]] = {}
        for finding in self.findings:
            groups.setdefault(finding.kind, []).append(finding)
        return groups

    def repair_offer(self) -> str:
        """Words what --fix would give, "" where that is nothing: no pair would be left in the copy,
        or none with a label."""
        hopeless = {(e.split, e.sample) for e in self.errors if not e.mended}
        whole = any(error.kind == "no-labels" for error in self.errors)
        left = self.pairs - sum(sample is not None for _, sample in hopeless)
        if whole or not left or all(error.kind == "missing-split" for error in self.errors):
            return ""
        if any(error.mended for error in self.errors):
            return "--fix FOLDER writes a repaired copy"
        return f"--fix FOLDER writes a copy of the {left} pairs without an error"

    def summary(self) -> str:
        """Words the check in one line."""
        known = f", {self.reused} of {self.files} files known" if self.reused else ""
        found = Counter(finding.severity for finding in self.findings)
        parts = [
            f"{found[severity]} {severity}{'s' if found[severity] != 1 else ''}"
            for severity in ("error", "warning", "note")
            if found[severity]
        ]
        outcome = ", ".join(parts) or "nothing found"
        return f"data: {self.pairs} pairs checked in {self.seconds:.1f} s{known}: {outcome}"

    def warnings(self) -> Iterator[str]:
        """Yields a line for each kind of warning: the first one, and how many there are."""
        for findings in self.by_kind().values():
            if findings[0].severity == "warning":
                more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
                yield f"{findings[0].line}{more}: {findings[0].advice}"

    def refuse_errors(self) -> None:
        """Raises DataError, or UnsafeInputError where a file is unsafe, naming the first ten."""
        errors = self.errors
        if not errors:
            return
        lines = [error.line for error in errors[:_SHOWN]]
        if errors[0].fix:
            lines[0] = f"{lines[0]}; {errors[0].advice}"
        if len(errors) > _SHOWN:
            more = len(errors) - _SHOWN
            lines.append(f"and {more} more: segdeform check {self.root} shows them")
        raise self.refusal(" | ".join(lines))

    def refusal(self, text: str) -> SegdeformError:
        """Returns the error that these findings end in, with its exit code."""
        unsafe = any(error.kind == "unsafe" for error in self.errors)
        return UnsafeInputError(text) if unsafe else DataError(text)

    def to_json(self) -> dict[str, Any]:
        """Returns everything, every file of every finding, as JSON values."""
        return {
            "dataset": self.name,
            "root": str(self.root),
            "sound": not self.errors,
            "classes": list(self.classes),
            "splits": [
                {
                    "split": split.name,
                    "pairs": split.pairs,
                    "pixels": list(split.pixels),
                    "shares": [round(share, 8) for share in split.shares()],
                    "ignored_pixels": split.ignored,
                }
                for split in self.splits
            ],
            "class_weights": self.class_weights(),
            "counts": {kind: len(found) for kind, found in self.by_kind().items()},
            "findings": [finding.to_json() for finding in self.findings],
            "files": self.files,
            "files_known": self.reused,
            "seconds": round(self.seconds, 3),
        }
