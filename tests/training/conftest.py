"""A data set of six small pictures and a network that trains on it in a second."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from segdeform.config.schema import Config
from segdeform.preparing.shapes import write_shapes
from segdeform.training import loop
from segdeform.training.reporter import Reporter


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _nothing_drawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares every run but those of test_curves.py the drawing at its end, which takes a while."""
    if request.path.name != "test_curves.py":
        monkeypatch.setattr(loop, "write_curves", lambda *_: None)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, seed=0, train=4, val=2, size=64)
    return root


def tiny_config(**train: Any) -> Config:
    """Returns a config with dropout, two deformable layers and what is given of `train`."""
    return Config.model_validate(
        {
            "data": {"name": "shapes", "crop": [48, 64]},
            "model": {"backbone": "mobilenet_v2", "weights": "none", "head_channels": 16},
            "deform": {"layers": 2},
            "train": {"steps": 4, "batch_size": 2, "log_every": 1, **train},
        }
    )


class ReporterThat(Reporter):
    """Does something when a step is done, in silence otherwise."""

    def __init__(self, at: int = 0, action: Callable[[], None] = lambda: None) -> None:
        super().__init__(Console(quiet=True))
        self.at, self.action = at, action
        self.messages: list[str] = []

    def step(self, step: int) -> None:
        if step == self.at:
            self.action()

    def message(self, text: str) -> None:
        self.messages.append(text)


def send(number: int) -> Callable[[], None]:
    """Returns an action that sends this process a signal."""
    return lambda: os.kill(os.getpid(), number)
