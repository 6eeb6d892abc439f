"""Trains the runs of a plan in processes of their own, one at a time on each device."""

from __future__ import annotations

import math
import queue
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open

from segdeform.ablation.plan import Ablation, Arm
from segdeform.callbacks import Say
from segdeform.errors import InterruptedByUserError, ModelError, StoppedError
from segdeform.machine.signals import StopSignals
from segdeform.training.result import TrainResult, read_result

_POLL = 0.2  # seconds between two looks whether an end was asked for


class Finished(NamedTuple):
    """A run that ended well."""

    result: TrainResult
    parameters: int


class Runner:
    """Works the runs off, one at a time on each device."""

    def __init__(self, plan: Ablation, say: Say) -> None:
        self.plan, self.say = plan, say
        self.finished: dict[tuple[Arm, int], Finished] = {}
        self.failed: list[tuple[str, int]] = []  # what it said, exit code
        self._waiting: queue.SimpleQueue[tuple[Arm, int]] = queue.SimpleQueue()
        self._children: set[subprocess.Popen[str]] = set()
        self._starting = threading.Lock()
        self._stopped = False

    def run(self) -> dict[tuple[Arm, int], Finished]:
        """Returns what every run that ended well gave; `failed` has the others.

        Raises InterruptedByUserError or StoppedError after a signal.
        """
        for job in self.plan.runs():
            self._waiting.put(job)
        with StopSignals("the same command goes on") as stop:
            stop.deferred = True
            with ThreadPoolExecutor(len(self.plan.devices)) as pool:
                workers = [pool.submit(self._work, device) for device in self.plan.devices]
                while wait(workers, timeout=_POLL).not_done:
                    if stop() and not self._stopped:
                        self._stop()
            if stop():
                raise stop.error("the runs saved their states")
        for worker in workers:
            worker.result()
        self._raise_stop()
        return self.finished

    def _stop(self) -> None:
        """Has the runs save their states and end, and starts no more."""
        with self._starting:
            self._stopped = True
            for child in self._children:
                child.terminate()

    def _work(self, device: str) -> None:
        while not self._stopped:
            try:
                arm, seed = self._waiting.get_nowait()
            except queue.Empty:
                return
            self._train(arm, seed, device)

    def _train(self, arm: Arm, seed: int, device: str) -> None:
        folder = self.plan.folder(arm, seed)
        log = self.plan.output / "logs" / f"{folder.name}.txt"
        with log.open("a", encoding="utf-8") as file:
            with self._starting:
                if self._stopped:
                    return
                child = subprocess.Popen(
                    self.plan.command(arm, seed, device),
                    stdout=file,
                    stderr=file,
                    stdin=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,  # Ctrl-C is ours to pass on
                )
                self._children.add(child)
            child.wait()
            self._children.discard(child)
        if child.returncode != 0:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = lines[-1].removeprefix("segdeform: ") if lines else "it said nothing"
            self._fail(folder.name, reason, child.returncode)
            return
        try:
            result = read_result(folder)
            self.finished[arm, seed] = Finished(result, _parameters(folder))
        except (ModelError, OSError, SafetensorError) as error:
            self._fail(folder.name, str(error), 0)
            return
        score = "no score" if result.miou is None else f"val mIoU {result.miou:.4f}"
        self.say(f"{folder.name}: {score}, {result.seconds:.0f} s")

    def _fail(self, name: str, reason: str, code: int) -> None:
        self.failed.append((f"{name}: {reason}", code))
        if code in (StoppedError.exit_code, InterruptedByUserError.exit_code):
            self._stopped = True  # from outside: the others wait for a rerun

    def _raise_stop(self) -> None:
        for text, code in self.failed:
            if code == StoppedError.exit_code:
                raise StoppedError(f"{text}; the same command goes on")


def _parameters(run: Path) -> int:
    """Counts the parameters of a run's network, by the header of its weights alone."""
    with safe_open(run / "model" / "model.safetensors", "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    statistic = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's, not learned
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(statistic))
