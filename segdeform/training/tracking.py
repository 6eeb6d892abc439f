"""A run's numbers sent to Weights & Biases or MLflow, where that is asked for.

RUN/log.jsonl has all of it; a service is a second reader, and never the reason why a training ends
or waits: each is talked to in a thread of its own, and one that fails is warned of once and left
alone. Where the numbers go (project, server, offline) the services' own variables say: WANDB_MODE,
WANDB_PROJECT, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, Protocol

from segdeform.callbacks import Say
from segdeform.errors import SegdeformError, UsageError
from segdeform.files.atomic import write_json
from segdeform.files.manifest import read_json

SERVICES = ("wandb", "mlflow")
KEPT = "tracking.json"  # in the run folder: the id of its run at each service
_PROJECT = "segdeform"
_STARTING = 60  # seconds for a service to answer at first
_ENDING = 60.0  # seconds for it to take what is left, at the end
_PARAMS = 100  # as many as MLflow takes at once
_KEEPING = Lock()  # the ids of all services lie in one file

Scalars = Mapping[str, float]


class Service(Protocol):
    """One run at a service."""

    id: str

    def log(self, step: int, scalars: Scalars) -> None:
        """Sends the numbers of a step."""

    def finish(self) -> None:
        """Ends the run there, sent to the last number."""


class Wandb:
    """A run of Weights & Biases."""

    def __init__(self, run: Path, config: Mapping[str, Any], kept: str | None) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=run.name,
            id=kept,
            resume=None if kept is None else "allow",
            dir=str(run),
            config=dict(config),
            settings=wandb.Settings(init_timeout=_STARTING, silent=True),
        )
        self.id = str(self._run.id)

    def log(self, step: int, scalars: Scalars) -> None:
        """Sends the numbers of a step."""
        self._run.log(dict(scalars), step=step)

    def finish(self) -> None:
        """Ends the run there."""
        self._run.finish()


class Mlflow:
    """A run of MLflow."""

    def __init__(self, run: Path, config: Mapping[str, Any], kept: str | None) -> None:
        import mlflow

        self._mlflow = mlflow
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ and "MLFLOW_EXPERIMENT_ID" not in os.environ:
            mlflow.set_experiment(_PROJECT)
        started = mlflow.start_run(run_id=kept, run_name=run.name if kept is None else None)
        self.id = str(started.info.run_id)
        if kept is None:
            values = list(config.items())
            for first in range(0, len(values), _PARAMS):
                mlflow.log_params(dict(values[first : first + _PARAMS]))

    def log(self, step: int, scalars: Scalars) -> None:
        """Sends the numbers of a step, by names in which MLflow takes letters, digits, _-. /."""
        named = {re.sub(r"[^\w\-. /]", "_", name): value for name, value in scalars.items()}
        self._mlflow.log_metrics(named, step=step)

    def finish(self) -> None:
        """Ends the run there."""
        self._mlflow.end_run()


_KINDS: dict[str, type[Wandb] | type[Mlflow]] = {"wandb": Wandb, "mlflow": Mlflow}


class Tracker:
    """Sends numbers to one service from a thread of its own."""

    def __init__(self, name: str, run: Path, config: Mapping[str, Any], say: Say) -> None:
        self._name, self._path, self._say = name, run / KEPT, say
        self._waiting: SimpleQueue[tuple[int, Scalars] | None] = SimpleQueue()
        self._failed = False
        arguments = (_KINDS[name], run, config)
        self._thread = Thread(target=self._work, args=arguments, name=f"track {name}", daemon=True)
        self._thread.start()

    def log(self, step: int, scalars: Scalars) -> None:
        """Hands numbers over, at once."""
        if not self._failed:
            self._waiting.put((step, dict(scalars)))

    def close(self) -> None:
        """Waits until all is sent, or so long as one can."""
        self._waiting.put(None)
        self._thread.join(_ENDING)
        if self._thread.is_alive() and not self._failed:
            self._failed = True
            self._say(
                f"warning: {self._name} has not answered for {_ENDING:.0f} s: what it lacks is in "
                f"{self._path.parent}/log.jsonl"
            )

    def _work(self, kind: type[Wandb] | type[Mlflow], run: Path, config: Mapping[str, Any]) -> None:
        try:
            kept = _kept(self._path)
            service: Service = kind(run, config, kept.get(self._name))
            with _KEEPING:
                write_json(self._path, _kept(self._path) | {self._name: service.id})
            while (entry := self._waiting.get()) is not None:
                service.log(*entry)
            service.finish()
        except (Exception, SystemExit) as error:  # whatever their clients raise
            if not self._failed:
                reason = str(error).strip().partition("\n")[0] or type(error).__name__
                self._say(f"warning: {self._name} fails, and is told no more: {reason}")
            self._failed = True


def refuse_untrackable(names: Sequence[str]) -> None:
    """Raises UsageError for a service that is not known or whose package is not installed."""
    for name in names:
        if name not in SERVICES:
            raise UsageError(f"--track {name}: it must be {' or '.join(SERVICES)}")
        if find_spec(name) is None:
            raise UsageError(
                f"--track {name} needs a package that is not installed: "
                f"pip install 'segdeform[{name}]'"
            )


@contextmanager
def tracked(
    names: Sequence[str], run: Path, config: Mapping[str, Any], say: Say
) -> Iterator[list[Tracker]]:
    """Yields a tracker for each service; at the end they are waited for, not for ever.

    `config` are values by their keys.
    """
    trackers = [Tracker(name, run, config, say) for name in dict.fromkeys(names)]
    try:
        yield trackers
    finally:
        for tracker in trackers:
            tracker.close()


def _kept(path: Path) -> dict[str, str]:
    """Returns the ids that an earlier start of this run was given, by service."""
    try:
        found = read_json(path) if path.exists() else {}
    except SegdeformError:  # damaged: then it is a new run there
        return {}
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}
