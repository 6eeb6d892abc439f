"""The command line called in this process, and one small trained run for all tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from segdeform.cli import main
from segdeform.preparing.shapes import write_shapes


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Ended]

TINY = (
    "data: {name: shapes, crop: [64, 64], scale: [1, 1]}\n"
    "model: {backbone: mobilenet_v2, weights: none, head_channels: 16}\n"
    "deform: {layers: 1}\n"
    "train: {steps: 4, batch_size: 2, save_every: 2}\n"
)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Calls `segdeform ARGUMENTS...`."""

    def call(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(root, train=6, val=2, size=64)
    return root


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def run(shapes: Path, config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder of four steps; tests must not write into it."""
    output = tmp_path_factory.mktemp("run") / "run"
    arguments = ["train", config, "--data", shapes, "--output", output, "--workers", "0"]
    assert main([str(argument) for argument in arguments]) == 0
    return output
