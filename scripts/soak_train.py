"""Breaks trainings in every way that is promised to be harmless, and counts.

kills        killed (SIGKILL, SIGTERM, SIGINT) at random moments until it ends: the same bits as a
             run that was left alone; `--ranks` of the rounds are of two processes under torchrun
disk         no file may grow beyond a limit, of `--sizes` limits: a good checkpoint stays, and the
             run goes on to the same bits with room again
corruptions  files of a run folder damaged: noticed, exit code 5 or the same bits, never in silence
steps        many steps of a tiny network in one process: memory and open files stay flat

    python scripts/soak_train.py --work FOLDER [--only kills,disk] [--kills 500] [--seed 1]

Ends with exit code 1 at the first promise that is broken, and says how to see it again.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segdeform.config.loading import dump_config
from segdeform.config.schema import Config
from segdeform.files.manifest import sha256
from segdeform.preparing.shapes import write_shapes

REPOSITORY = Path(__file__).parents[1]
_LEAST = 64  # bytes that a file may have on a full disk
LIMIT = 300.0  # seconds that any command may take: more is a hang
PARTS = ("kills", "disk", "corruptions", "steps")


class BrokenError(Exception):
    """A promise does not hold."""


def config(**train: Any) -> Config:
    """Returns a tiny training with averaging, evaluations on the way, and a choice by them."""
    settings = {
        "steps": 40,
        "batch_size": 4,
        "optimizer": "adamw",
        "log_every": 1,
        "save_every": 3,
        "eval_every": 5,
    }
    choice = {"ema_decay": 0.5, "keep_best": True, "patience": 4, "accumulate": 2, "lr": 1e-3}
    return Config.model_validate(
        {
            "data": {"name": "shapes", "crop": [32, 48]},
            "model": {"backbone": "mobilenet_v2", "weights": "none", "head_channels": 8},
            "deform": {"layers": 1},
            "train": {**settings, **choice, **train},
        }
    )


def command(work: Path, run: Path, ranks: int, name: str = "config.yaml") -> list[str]:
    """Returns the command that begins a run or goes on with it."""
    words = [sys.executable, "-m"]
    if ranks > 1:
        words += ["segdeform.machine.torchrun", "--standalone", "--nproc-per-node", str(ranks)]
        words += ["-m"]
    words += ["segdeform", "train", str(work / name), "--data", str(work / "data")]
    words += ["--output", str(run), "--resume", "--device", "cpu", "--workers", "0"]
    return words if ranks > 1 else [*words, "--threads", "1"]


def start(words: list[str], log: Path, before: Callable[[], None] | None = None) -> Any:
    """Starts a command as a group of processes of its own."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    with log.open("a") as file:
        return subprocess.Popen(
            words,
            stdout=file,
            stderr=file,
            env=environment,
            start_new_session=True,
            preexec_fn=before,
        )


def wait(child: Any, seconds: float = LIMIT) -> int:
    """Returns the exit code; a command that takes too long is killed, which breaks a promise."""
    try:
        return int(child.wait(seconds))
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        raise BrokenError(f"P8: a command hung for {seconds:.0f} s") from None


def call(words: list[str], log: Path, before: Callable[[], None] | None = None) -> int:
    """Runs a command to its end and returns its exit code."""
    return wait(start(words, log, before))


def digests(run: Path) -> dict[str, str]:
    """Returns the SHA-256 of all that interruptions must not change."""
    last = max((run / "checkpoints").glob("step-*"))
    files = [run / "model" / "model.safetensors", run / "metrics.json", *last.glob("*.safetensors")]
    return {str(path.relative_to(run)): sha256(path) for path in files}


def whole_run(work: Path, ranks: int) -> tuple[Path, float]:
    """Returns a run that was left alone, and the seconds that it took."""
    run = work / f"whole-{ranks}"
    shutil.rmtree(run, ignore_errors=True)
    began = time.monotonic()
    if code := call(command(work, run, ranks), work / "whole.log"):
        raise BrokenError(f"the run that was left alone ended with exit code {code}")
    return run, time.monotonic() - began


def same(run: Path, expected: dict[str, str]) -> None:
    """Raises BrokenError unless a finished run has the bits expected."""
    found = digests(run)
    if found != expected:
        odd = sorted(name for name in expected if found.get(name) != expected[name])
        raise BrokenError(f"P1: {run} differs in {', '.join(odd) or 'the names of its files'}")


def soak_kills(work: Path, options: argparse.Namespace, chance: random.Random) -> str:
    """Kills runs until enough kills have hit one at work."""
    counts = {signal.SIGKILL: 0, signal.SIGTERM: 0, signal.SIGINT: 0}
    finished, together = 0, 0
    wholes: dict[int, tuple[dict[str, str], float]] = {}
    while sum(counts.values()) < options.kills:
        ranks = 2 if chance.random() < options.ranks else 1
        if ranks not in wholes:
            run, seconds = whole_run(work, ranks)
            wholes[ranks] = digests(run), seconds
        expected, seconds = wholes[ranks]
        run = work / "killed"
        shutil.rmtree(run, ignore_errors=True)
        for _ in range(50):
            child = start(command(work, run, ranks), work / "kills.log")
            try:  # a kill may meet imports, a step, an evaluation, a save or the last files
                code = child.wait(chance.uniform(0.4, 0.9) * seconds)
            except subprocess.TimeoutExpired:
                number = chance.choices(list(counts), [6, 1, 1])[0]
                if number == signal.SIGKILL:
                    os.killpg(child.pid, number)
                else:
                    child.send_signal(number)
                counts[number] += 1
                together += ranks > 1
                code = wait(child)
            if code == 0:
                break
            if code not in (-9, -2, -15, 75, 130, 137, 143, 11):
                raise BrokenError(f"P1: exit code {code} after a kill")
        if code != 0 and (code := call(command(work, run, ranks), work / "kills.log")):
            raise BrokenError(f"P1: exit code {code} of the run that was left alone in the end")
        same(run, expected)
        finished += 1
        print(f"  {sum(counts.values())} kills, {finished} runs ended alike", flush=True)
    shown = ", ".join(f"{count} {number.name}" for number, count in counts.items())
    return f"{shown}; {together} of them of two processes; {finished} runs, all with the same bits"


def soak_disk(work: Path, options: argparse.Namespace, chance: random.Random) -> str:
    """Runs out of room at many sizes of the files, after a first checkpoint is there."""
    whole, _ = whole_run(work, 1)
    expected = digests(whole)
    last = max((whole / "checkpoints").glob("step-*"))
    largest = max(path.stat().st_size for path in last.iterdir())
    base = work / "full-base"
    shutil.rmtree(base, ignore_errors=True)
    while not list((base / "checkpoints").glob("step-*")):
        child = start(command(work, base, 1), work / "disk.log")
        while child.poll() is None and not list((base / "checkpoints").glob("step-*")):
            time.sleep(0.01)
        child.kill()
        child.wait()
    ended = 0
    for number in range(options.sizes):
        # Up to just below the largest file, the small files' sizes densely. Where no file at all
        # may be written Python has no place for what it keeps for a moment, either.
        size = int(_LEAST * (largest / _LEAST) ** (number / options.sizes))
        run = work / "full"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(base, run)

        def little_room(size: int = size) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

        code = wait(
            subprocess.Popen(
                command(work, run, 1),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
                preexec_fn=little_room,
            )
        )
        if code not in (0, 7):
            raise BrokenError(f"P2: exit code {code} where files may have {size} bytes")
        ended += code == 7
        _good_checkpoint(run)
        if code := call(command(work, run, 1), work / "disk.log"):
            raise BrokenError(f"P2: exit code {code} with room again, after {size} bytes")
        same(run, expected)
        print(f"  {number + 1} sizes", flush=True)
    return f"{options.sizes} sizes, {ended} ended for want of room, all went on to the same bits"


def _good_checkpoint(run: Path) -> None:
    from segdeform.training.checkpoint import newest

    if newest(run, lambda _: None) is None:
        raise BrokenError(f"P2: {run} has no good checkpoint")


def soak_corruptions(work: Path, options: argparse.Namespace, chance: random.Random) -> str:
    """Damages files of a run folder; looks whether it is noticed by every way of opening it."""
    from segdeform.errors import ModelError
    from segdeform.segmenter import load
    from segdeform.training.checkpoint import newest

    whole, _ = whole_run(work, 1)
    folders = [*(whole / "checkpoints").glob("*-*"), whole / "model"]
    last = max((whole / "checkpoints").glob("step-*"))
    expected = sha256(last / "ema.safetensors")
    counts: dict[str, int] = {}
    resumed = 0
    for number in range(options.corruptions):
        folder = chance.choice(sorted(folders))
        path = chance.choice(sorted(folder.iterdir()))
        kind = chance.choice(sorted(DAMAGES))
        before = path.read_bytes()
        after = DAMAGES[kind](before, path, chance)
        if after == before:
            after = before[:-1]
        path.write_bytes(after)
        try:
            if (number + 1) % options.resume_each == 0:
                _goes_on(work, whole, folder, expected)
                resumed += 1
            load(folder, "cpu")
        except ModelError:
            counts[kind] = counts.get(kind, 0) + 1
        else:
            raise BrokenError(f"P3: {kind} of {path} was not noticed")
        if folder != whole / "model":
            try:
                found = newest(whole, lambda _: None)
            except ModelError:
                found = None
            if folder == last and found is not None and found.folder == last:
                raise BrokenError(f"P3: {kind} of {path}: the checkpoint was used")
        path.write_bytes(before)
    shown = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    return f"{shown}: all noticed; {resumed} of them by going on, which ended alike or by code 5"


def _goes_on(work: Path, whole: Path, folder: Path, expected: str) -> None:
    """Goes on with a copy of the damaged run whose model and scores are not written yet."""
    run = work / "damaged"
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    if folder != whole / "model":
        shutil.rmtree(run / "model")
        (run / "metrics.json").unlink()
    code = call(command(work, run, 1), work / "corruptions.log")
    if code == 0:
        if sha256(max((run / "checkpoints").glob("step-*")) / "ema.safetensors") != expected:
            raise BrokenError(f"P3: {run} went on to other bits")
    elif code != 5:
        raise BrokenError(f"P3: exit code {code} of a run with a damaged {folder.name}")


def _flip(data: bytes, path: Path, chance: random.Random) -> bytes:
    damaged = bytearray(data)
    damaged[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(damaged)


def _zeros(data: bytes, path: Path, chance: random.Random) -> bytes:
    start = chance.randrange(len(data))
    return data[:start] + bytes(len(data) - start)


def _other(data: bytes, path: Path, chance: random.Random) -> bytes:
    """Takes the file of the same name of another step."""
    others = [
        other for other in path.parent.parent.glob(f"step-*/{path.name}") if other != path
    ] or [path.parent.parent / "checkpoints" / "nothing"]
    return chance.choice(sorted(others)).read_bytes() if others[0].exists() else data[1:]


DAMAGES: dict[str, Callable[[bytes, Path, random.Random], bytes]] = {
    "bit flips": _flip,
    "truncations": lambda data, path, chance: data[: chance.randrange(len(data))],
    "zero fills": _zeros,
    "files of another step": _other,
}


def soak_steps(work: Path, options: argparse.Namespace, chance: random.Random) -> str:
    """Trains for many tiny steps in one process; looks at its memory and open files on the way."""
    tiny = config(steps=options.steps, save_every=10_000, eval_every=10_000, log_every=1000)
    values = tiny.model_dump()
    values["data"]["crop"], values["train"]["patience"] = (16, 16), None
    values["deform"]["layers"], values["train"]["keep_best"] = 0, False
    values["train"]["accumulate"], values["train"]["batch_size"] = 1, 2
    values["model"] |= {"backbone": "timm/test_efficientnet", "head": "deeplab", "aspp_rates": None}
    (work / "steps.yaml").write_text(dump_config(Config.model_validate(values)))
    run, began = work / "steps", time.monotonic()
    shutil.rmtree(run, ignore_errors=True)
    child = start(command(work, run, 1, "steps.yaml"), work / "steps.log")
    marks: list[tuple[float, int]] = []  # MiB resident, open files
    while child.poll() is None:
        time.sleep(2)
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
            resident = int(status.partition("VmRSS:")[2].split()[0]) / 1024
            marks.append((resident, len(list(Path(f"/proc/{child.pid}/fd").iterdir()))))
        except (OSError, IndexError):
            continue
        if time.monotonic() - began > options.steps_limit:
            os.killpg(child.pid, signal.SIGKILL)
            raise BrokenError(f"P8: {options.steps} steps took more than {options.steps_limit} s")
    if child.returncode:
        raise BrokenError(f"exit code {child.returncode} of many steps")
    early, late = marks[len(marks) // 10], marks[-2]
    text = f"{early[0]:.0f} -> {late[0]:.0f} MiB, {early[1]} -> {late[1]} open files"
    if late[0] > early[0] + 50 or late[1] > early[1] + 2:
        raise BrokenError(f"memory or open files grow: {text}")
    return f"{options.steps} steps in {time.monotonic() - began:.0f} s: {text}"


def main() -> int:
    """Runs the parts that are asked for and prints what they counted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for runs and logs")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, comma-separated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--ranks", type=float, default=0.2, help="share of runs of two processes")
    parser.add_argument("--sizes", type=int, default=40)
    parser.add_argument("--corruptions", type=int, default=1000)
    parser.add_argument("--resume-each", type=int, default=50, help="corruptions per resumption")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--steps-limit", type=float, default=3600, help="seconds")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "data").exists():
        write_shapes(work / "data", seed=0, train=4, val=2, size=64)
    (work / "config.yaml").write_text(dump_config(config()))
    soaks = {"kills": soak_kills, "disk": soak_disk}
    soaks |= {"corruptions": soak_corruptions, "steps": soak_steps}
    for part in options.only.split(","):
        began = time.monotonic()
        print(f"{part}:", flush=True)
        try:
            told = soaks[part](work, options, random.Random(f"{options.seed} {part}"))
        except BrokenError as error:
            print(f"{part}: BROKEN: {error}\nagain: {' '.join(sys.argv)}; runs are in {work}")
            return 1
        print(f"{part}: {told} ({time.monotonic() - began:.0f} s)", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
