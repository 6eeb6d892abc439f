"""One exported model for all tests: what writes a graph takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from segdeform.export.export import Wanted, export_model
from segdeform.export.network import Form
from tests.export.tiny import write_tiny

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")


class Exported(NamedTuple):
    """A model and what was made of it."""

    model: Path
    folder: Path
    report: dict[str, Any]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """For ONNX Runtime and torch; tests must not write into it."""
    place = tmp_path_factory.mktemp("exported")
    model = write_tiny(place / "model", {"head": "deeplabv3plus"}, {"offset_groups": 2})
    wanted = Wanted(("onnx", "torch"), Form(probabilities=True))
    return Exported(model, place / "exported", export_model(model, place / "exported", wanted))
