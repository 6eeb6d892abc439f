"""Do deformable layers pay here? Trains every arm with every seed and compares what comes out.

Each run is a `segdeform train` of its own, in a folder of its own: a killed ablation goes on where
it was, and its runs are models like any other.
"""

from __future__ import annotations

import json
import math
import queue
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segdeform.atomic import write_error, write_json
from segdeform.errors import (
    InterruptedByUserError,
    PartialFailureError,
    StoppedError,
)

Variant = Literal["v1", "v2"]

# Student's t, 97.5%, for 1, 2, ... degrees of freedom; beyond the last it is a little too wide.
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
      2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086)  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """One network of the comparison; all else is equal."""

    layers: int
    variant: Variant | None  # None: no deformable layer, so none
    dilation: int | None  # None: what the output stride gives

    @property
    def name(self) -> str:
        parts = [f"layers{self.layers}", self.variant or ""]
        parts.append(f"dilation{self.dilation}" if self.dilation else "")
        return "-".join(filter(None, parts))

    def overrides(self) -> list[str]:
        """Returns what sets this arm apart from the config."""
        given = [f"deform.layers={self.layers}"]
        if self.variant:
            given.append(f"deform.variant={self.variant}")
        if self.dilation:
            given.append(f"deform.dilation={self.dilation}")
        return given


def make_arms(
    layers: Sequence[int],
    variants: Sequence[Variant],
    dilations: Sequence[int | None],
    plain_dilations: Sequence[int] = (),  # of further networks without deformable layers
) -> list[Arm]:
    """Lists every combination once: without deformable layers the variant makes no difference."""
    arms = [
        Arm(count, variant if count else None, dilation)
        for dilation in dilations
        for count in layers
        for variant in variants
    ]
    arms += [Arm(0, None, dilation) for dilation in plain_dilations]
    return list(dict.fromkeys(arms))


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with the 95% interval that Student's t gives it; None for one seed."""

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, None, None)
        t = _T[min(len(values) - 1, len(_T)) - 1]
        half = t * statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)

    @property
    def beyond_noise(self) -> bool:
        """Whether the interval of a difference leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass
class ArmResult:
    """What the runs of an arm gave, a value a seed."""

    arm: Arm
    miou: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)  # bytes at the peak
    parameters: int = 0

    def to_json(self) -> dict[str, Any]:
        """Returns means, interval and the single values as JSON values."""
        return {
            "arm": self.arm.name,
            "overrides": self.arm.overrides(),
            "miou": vars(Interval.of(self.miou)),
            "miou_by_seed": self.miou,
            "parameters": self.parameters,
            "seconds": statistics.fmean(self.seconds),
            "peak_memory_bytes": max(self.memory),
        }


@dataclass(frozen=True)
class Plan:
    """An ablation: what is trained, on what, where."""

    config: str
    data: Path | None
    output: Path
    arms: Sequence[Arm]
    seeds: int
    overrides: Sequence[str] = ()
    devices: Sequence[str] = ("auto",)  # one run at a time on each
    threads: int | None = None

    def runs(self) -> list[tuple[Arm, int]]:
        """Lists the runs, seed by seed, so that a stopped ablation has compared like with like."""
        return [(arm, seed) for seed in range(self.seeds) for arm in self.arms]

    def folder(self, arm: Arm, seed: int) -> Path:
        return self.output / f"{arm.name}-seed{seed}"

    def command(self, arm: Arm, seed: int, device: str) -> list[str]:
        """Returns the command line of a run; the same one starts it and goes on with it."""
        settings = [*self.overrides, *arm.overrides(), f"train.seed={seed}"]
        words = [sys.executable, "-m", "segdeform", "train", self.config, "--resume", "--json"]
        words += ["--output", str(self.folder(arm, seed)), "--device", device]
        words += [] if self.data is None else ["--data", str(self.data)]
        words += [] if self.threads is None else ["--threads", str(self.threads)]
        return words + [word for setting in settings for word in ("--set", setting)]


def run_ablation(plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Trains what is not trained yet, writes OUTPUT/ablation.json and returns its content.

    Raises:
        PartialFailureError: a run failed; the others are kept, and the next call tries it again.
        InterruptedByUserError, StoppedError: a run was stopped; call it again.
    """
    try:
        (plan.output / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(plan.output, error) from error
    finished = _Runner(plan, say).run()
    results = [ArmResult(arm) for arm in plan.arms]
    for result in results:
        for seed in range(plan.seeds):
            run = finished[result.arm, seed]
            result.miou.append(run["miou"])
            result.seconds.append(run["seconds"])
            result.memory.append(run["peak_memory_bytes"])
            result.parameters = run["parameters"]
    facts = {
        "config": plan.config,
        "overrides": list(plan.overrides),
        "seeds": plan.seeds,
        "arms": [result.to_json() for result in results],
        "comparisons": compare_arms(results),
        "verdict": verdict(results),
    }
    write_json(plan.output / "ablation.json", facts)
    return facts


class _Runner:
    """Works the runs off, one at a time on each device."""

    def __init__(self, plan: Plan, say: Callable[[str], None]) -> None:
        self.plan, self.say = plan, say
        self.finished: dict[tuple[Arm, int], dict[str, Any]] = {}
        self.failed: list[tuple[str, int]] = []  # what it said, exit code
        self._waiting: queue.SimpleQueue[tuple[Arm, int]] = queue.SimpleQueue()
        self._children: set[subprocess.Popen[str]] = set()
        self._starting = threading.Lock()
        self._stopped = False

    def run(self) -> dict[tuple[Arm, int], dict[str, Any]]:
        for job in self.plan.runs():
            self._waiting.put(job)
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        with ThreadPoolExecutor(len(self.plan.devices)) as pool:
            workers = [pool.submit(self._work, device) for device in self.plan.devices]
            try:
                wait(workers)
            except KeyboardInterrupt as error:
                self._stop()
                wait(workers)
                raise InterruptedByUserError("interrupted; the same command goes on") from error
            finally:
                signal.signal(signal.SIGTERM, before)
        for worker in workers:
            worker.result()
        self._raise_failures()
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
                    stdout=subprocess.PIPE,
                    stderr=file,
                    stdin=subprocess.DEVNULL,
                    text=True,
                    start_new_session=True,  # Ctrl-C is ours to pass on
                )
                self._children.add(child)
            out, _ = child.communicate()
            self._children.discard(child)
        if child.returncode != 0:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = lines[-1].removeprefix("segdeform: ") if lines else "it said nothing"
            self.failed.append((f"{folder.name}: {reason}", child.returncode))
            if child.returncode in (StoppedError.exit_code, InterruptedByUserError.exit_code):
                self._stopped = (
                    True  # somebody stopped it from outside: the others wait for a rerun
                )
            return
        result = json.loads(out)
        self.finished[arm, seed] = result | {"parameters": _parameters(folder)}
        self.say(f"{folder.name}: val mIoU {result['miou']:.4f}, {result['seconds']:.0f} s")

    def _raise_failures(self) -> None:
        if not self.failed:
            return
        stopped = [text for text, code in self.failed if code == StoppedError.exit_code]
        if stopped:
            raise StoppedError(f"{stopped[0]}; the same command goes on")
        text, _ = self.failed[0]
        count = len(self.plan.runs())
        raise PartialFailureError(
            f"{len(self.failed)} of {count} runs failed, the first: {text} (see "
            f"{self.plan.output / 'logs'}; the same command tries again)"
        )


def _parameters(run: Path) -> int:
    """Counts the parameters of a run's network, by the header of its weights alone."""
    from safetensors import safe_open

    with safe_open(run / "model" / "model.safetensors", "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    statistic = ("running_mean", "running_var", "num_batches_tracked")  # BatchNorm's, not learned
    return sum(math.prod(shape) for name, shape in shapes.items() if not name.endswith(statistic))


def compare_arms(results: Sequence[ArmResult]) -> list[dict[str, Any]]:
    """Compares every deformable arm with the plain one of its dilation, seed by seed."""
    plain = {result.arm.dilation: result for result in results if not result.arm.layers}
    found = []
    for result in results:
        base = plain.get(result.arm.dilation)
        if result.arm.layers and base is not None:
            found.append(_difference(result, base))
    return found


def _difference(result: ArmResult, base: ArmResult) -> dict[str, Any]:
    change = Interval.of([a - b for a, b in zip(result.miou, base.miou, strict=True)])
    return {
        "arm": result.arm.name,
        "against": base.arm.name,
        **vars(change),
        "beyond_noise": change.beyond_noise,
        "time_ratio": statistics.fmean(result.seconds) / statistics.fmean(base.seconds),
    }


def verdict(results: Sequence[ArmResult]) -> str:
    """Says in a sentence whether deformable layers paid, against the best plain network.

    The best plain network, because a good part of what deformable layers gain is reach, which a
    larger dilation gives as well (Dai et al. 2017, table 3).
    """
    plain = [result for result in results if not result.arm.layers]
    deformable = [result for result in results if result.arm.layers]
    if not plain or not deformable:
        return "Nothing to compare: give 0 and another number of layers."
    best, base = (
        max(group, key=lambda r: statistics.fmean(r.miou)) for group in (deformable, plain)
    )
    found = _difference(best, base)
    change = f"{found['mean']:+.4f} mIoU, {found['time_ratio']:.2f} times the time"
    pair = f"{best.arm.name} against {base.arm.name}, the best of each: {change}"
    if found["low"] is None:
        return f"{pair}. One seed cannot tell this from noise."
    pair += (
        f", 95% interval {found['low']:+.4f} to {found['high']:+.4f} over {len(base.miou)} seeds"
    )
    if not found["beyond_noise"]:
        return f"Not shown: {pair}. It cannot be told from noise."
    return f"Deformable layers {'paid' if found['mean'] > 0 else 'did not pay'}: {pair}."
