"""What a run writes on its way: RUN/log.jsonl, and the same values for TensorBoard."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeform.evaluation.confusion import Scores
from segdeform.files.atomic import json_number, write_error, write_text
from segdeform.training.meter import LogRecord
from segdeform.training.tracking import Tracker


class RunLog:
    """RUN/log.jsonl, one JSON object a line, and the same values as TensorBoard scalars."""

    def __init__(
        self, run: Path, step: int, trackers: Sequence[Tracker] = (), *, scored: bool = True
    ) -> None:
        """Opens both; what an interrupted run wrote after step `step` is dropped.

        So are the scores of that step unless it counts as `scored`. `trackers` hear of the numbers,
        too.

        Raises:
            ResourceError: the disk is full.
            UsageError: the folder cannot be written to.
        """
        self._path, self._trackers = run / "log.jsonl", trackers
        from torch.utils.tensorboard import SummaryWriter  # costs a second, so only where needed

        lines = _lines_until(self._path, step, scored)
        found = (json.loads(line).get("loss") for line in lines)
        self.losses = [loss for loss in found if loss is not None]  # of the steps before
        write_text(self._path, "".join(lines))
        try:
            self._file = self._path.open("a", encoding="utf-8")
            self._board = SummaryWriter(run / "tensorboard", purge_step=step + 1)
        except OSError as error:
            raise write_error(run, error) from error

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
            self._board.close()
        except OSError as problem:
            if error is None:  # else the disk is full and that error is on its way
                raise write_error(self._path, problem) from problem

    def record(
        self, record: LogRecord, offsets: Mapping[str, Mapping[str, float]] | None = None
    ) -> None:
        """Logs the averages of the last steps under train/, a layer's offsets under offsets/."""
        values = asdict(record)
        del values["step"], values["seconds_left"]
        layers = offsets or {}
        board = {
            f"offsets/{layer}/{name}": value
            for layer, numbers in layers.items()
            for name, value in numbers.items()
        }
        self._write(record.step, "train", values, {"offsets": layers} if layers else {}, board)

    def evaluation(
        self,
        step: int,
        scores: Scores,
        classes: Sequence[str],
        split: str | None = None,
        *,
        first: bool = True,
    ) -> None:
        """Logs the scores of an evaluation under val/, the IoU of each class under val/iou/.

        Of several splits each entry names its own; in TensorBoard those beside the first stand
        under val-SPLIT/.
        """
        board_name = "val" if first else f"val-{split}"
        values = {"miou": scores.miou, "accuracy": scores.accuracy}
        iou = dict(zip(classes, scores.iou, strict=True))
        board = {f"{board_name}/iou/{name}": value for name, value in iou.items()}
        named = {} if split is None else {"split": split}
        self._write(step, "val", values, {**named, "iou": iou}, board, board_name)

    def pictures(self, step: int, drawn: Mapping[str, NDArray[np.uint8]]) -> None:
        """Shows pictures [H, W, 3] by name in TensorBoard, under val/."""
        try:
            for name, picture in drawn.items():
                self._board.add_image(f"val/{name}", picture, step, dataformats="HWC")
        except OSError as error:
            raise write_error(self._path, error) from error

    def final(self, step: int, scores: Scores) -> None:
        """Tells the trackers what the run ends with, under final/; the log ends before."""
        self._track(step, {"final/miou": scores.miou, "final/accuracy": scores.accuracy})

    def _track(self, step: int, scalars: Mapping[str, float]) -> None:
        finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
        for tracker in self._trackers:
            tracker.log(step, finite)

    def _write(
        self,
        step: int,
        kind: str,
        values: Mapping[str, float],
        nested: Mapping[str, Any],  # more for the file
        board: Mapping[str, float],  # more for TensorBoard
        board_name: str | None = None,  # of `values` there; None: the kind
    ) -> None:
        entry = _plain({"step": step, "kind": kind, **values, **nested})
        scalars = {f"{board_name or kind}/{name}": value for name, value in values.items()}
        scalars |= board
        self._track(step, scalars)
        try:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
            for name, value in scalars.items():
                self._board.add_scalar(name, value, step)
        except OSError as error:
            raise write_error(self._path, error) from error


def _plain(value: Any) -> Any:
    """Returns what JSON can hold: numbers that are none become null."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return json_number(value) if isinstance(value, float) else value


def _lines_until(path: Path, step: int, scored: bool) -> list[str]:
    """Returns the whole lines of a log up to a step; a line that a kill cut short is dropped."""
    if step == 0 or not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not line.endswith("\n") or not isinstance(entry, dict):
            continue
        again = entry.get("kind") == "val" and entry.get("step") == step and not scored
        if entry.get("step", step) <= step and not again:
            lines.append(line)
    return lines
