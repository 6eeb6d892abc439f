"""Real torchrun: two machines with disks of their own, a lost process, a restart, the exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segdeform.config.loading import dump_config
from segdeform.training.run_folder import checkpoint_folders
from tests.training.conftest import tiny_config

pytestmark = pytest.mark.slow


class Machine:
    """A folder of its own, with torchrun in it."""

    def __init__(self, home: Path, data: Path, port: int, machines: int, each: int) -> None:
        home.mkdir()
        self.home, self.run = home, home / "run"
        shutil.copytree(data, home / "data")
        config = tiny_config(steps=30, save_every=4, batch_size=6, ema_decay=0.9)
        (home / "config.yaml").write_text(dump_config(config))
        self._command = [sys.executable, "-m", "segdeform.machine.torchrun"]
        self._command += ["--nnodes", str(machines), "--nproc-per-node", str(each)]
        self._command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}"]
        self._command += ["--local-addr", "127.0.0.1", "--max-restarts", "2"]
        self._command += ["-m", "segdeform", "train", "config.yaml", "--data", "data"]
        self._command += ["--output", "run", "--device", "cpu", "--workers", "0", "--resume"]

    def start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        with (self.home / "log").open("a") as log:
            return subprocess.Popen(
                self._command, cwd=self.home, env=environment, stdout=log, stderr=log, text=True
            )

    @property
    def log(self) -> str:
        return (self.home / "log").read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 200
        while text not in self.log:
            assert time.monotonic() < deadline, self.log
            time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def children(process: subprocess.Popen[str]) -> list[int]:
    tasks = Path(f"/proc/{process.pid}/task")
    return [int(c) for task in tasks.iterdir() for c in (task / "children").read_text().split()]


def test_two_machines_go_on_after_a_lost_process(shapes: Path, tmp_path: Path) -> None:
    ends = []
    for name in ("whole", "broken"):
        port = free_port()
        machines = [Machine(tmp_path / f"{name}{n}", shapes, port, 2, 1 + n) for n in (0, 1)]
        started = [machine.start() for machine in machines]
        first = next(n for n in (0, 1) if _has_rank_0(machines, n))
        if name == "broken":
            machines[first].wait_for("step 9/30")
            os.kill(children(started[1])[-1], signal.SIGKILL)
        assert [process.wait(200) for process in started] == [0, 0], machines[first].log
        assert not (machines[1 - first].run).exists()
        assert "val mIoU" not in machines[1 - first].log
        ends.append(machines[first].run)
    whole, broken = ends
    assert (whole.parent / "log").read_text().count("BatchNorm layers see") == 1
    assert (broken.parent / "log").read_text().count("BatchNorm layers see") == 2  # began again
    names = [path.relative_to(whole) for path in checkpoint_folders(whole)[0].glob("*.safetensors")]
    assert len(names) == 3
    for name in (*names, "model/model.safetensors", "metrics.json"):
        assert (whole / name).read_bytes() == (broken / name).read_bytes(), name
    state = json.loads((checkpoint_folders(broken)[0] / "state.json").read_text())
    assert (state["step"], state["environment"]["processes"]) == (30, 3)


def _has_rank_0(machines: list[Machine], number: int) -> bool:
    """Tells whether the machine has rank 0, once one of them trains: rank 0 alone reports."""
    deadline = time.monotonic() + 200
    while not any("step 1/30" in machine.log for machine in machines):
        assert time.monotonic() < deadline, [machine.log for machine in machines]
        time.sleep(0.1)
    return "step 1/30" in machines[number].log


def test_the_exit_code_is_ours(shapes: Path, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "alone", shapes, free_port(), 1, 2)
    process = machine.start()
    machine.wait_for("step 3/30")
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 75, machine.log
    assert "saved at step" in machine.log
    mask = next((machine.home / "data" / "val" / "masks").iterdir())
    mask.write_bytes(mask.read_bytes()[:100])
    (machine.home / "log").write_text("")
    process = machine.start()
    assert process.wait(100) == 4, machine.log
    assert mask.name in machine.log and "Another process failed (number 0: " in machine.log
