"""Training with loader processes, however Python starts others."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from segdeform.config.loading import dump_config
from segdeform.training.loop import train
from tests.training.conftest import tiny_config

# Without `if __name__ == "__main__"`: what starts processes by running a script anew would go round
# in circles.
SCRIPT = """
import multiprocessing, sys
from pathlib import Path
import torch
from segdeform.config.loading import load_config
from segdeform.training.loop import train

multiprocessing.set_start_method(sys.argv[1])
torch.set_num_threads(1)
config, data, run = sys.argv[2:]
train(load_config(config), Path(data), Path(run), device="cpu", workers=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_script_trains_whatever_the_start_method(
    shapes: Path, tmp_path: Path, method: str
) -> None:
    config = tiny_config(steps=3)
    (tmp_path / "train.py").write_text(SCRIPT)
    (tmp_path / "config.yaml").write_text(dump_config(config))
    arguments = [tmp_path / "train.py", method, tmp_path / "config.yaml", shapes, tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    alone = train(config, shapes, tmp_path / "alone", device="cpu", workers=0)
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert weights == (alone.model / "model.safetensors").read_bytes()
