"""Decoders of other tools, by their file: the packages around them import large trees."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def load_file(package: str, inside: str) -> ModuleType:
    """Returns the module in a file of an installed package, or skips the test."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        pytest.skip(f"{package} is not installed (pip install --no-deps)")
    path = Path(found.origin).parent / inside
    spec = importlib.util.spec_from_file_location(f"foreign_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
