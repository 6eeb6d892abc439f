from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import pytest

from segdeform.config.loading import dump_config
from segdeform.config.schema import Config
from segdeform.errors import ConfigError
from segdeform.machine.processes import Processes
from segdeform.training import setup
from segdeform.training.checkpoint import checkpoint_folders
from segdeform.training.loop import step_seed, train
from tests.training.conftest import ReporterThat, tiny_config

TRAIN = """
import sys
from pathlib import Path
import torch
from segdeform.config.loading import load_config
from segdeform.errors import SegdeformError
from segdeform.machine.processes import Processes
from segdeform.training.loop import train
torch.set_num_threads(1)
config, data, run = sys.argv[1:4]
try:
    train(load_config(config), Path(data), Path(run), device="cpu", workers=0)
except SegdeformError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def _torchrun(
    tmp_path: Path, config: Config, data: Path, run: Path
) -> subprocess.CompletedProcess[str]:
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = [str(path) for path in (tmp_path / "train.py", tmp_path / "config.yaml", data, run)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(
        [*command, *arguments], env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.mark.slow
def test_two_processes_train_one_model(shapes: Path, tmp_path: Path) -> None:
    config, run = tiny_config(steps=3, save_every=2), tmp_path / "run"
    done = _torchrun(tmp_path, config, shapes, run)
    assert done.returncode == 0, done.stderr
    state = json.loads((checkpoint_folders(run)[0] / "state.json").read_text())
    assert (state["step"], state["environment"]["processes"]) == (3, 2)
    assert (run / "metrics.json").exists()

    refused = _torchrun(tmp_path, config, shapes, run)
    assert refused.returncode != 0
    assert "UsageError" in refused.stderr
    assert "PeerLostError: Another process failed (number 0: " in refused.stderr


def test_batch_that_cannot_be_shared(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "processes", lambda device: nullcontext(Processes(0, 3)))
    with pytest.raises(ConfigError, match=r"train\.batch_size = 2 cannot be shared equally by 3"):
        train(tiny_config(), shapes, tmp_path, device="cpu", workers=0, reporter=ReporterThat())


def test_every_step_and_rank_has_its_own_seed() -> None:
    seeds = {step_seed(*key) for key in product(range(3), range(9), range(4))}
    assert len(seeds) == 3 * 9 * 4
    assert step_seed(1, 2, 3) == step_seed(1, 2, 3)
