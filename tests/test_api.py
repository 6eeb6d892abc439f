from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import segdeform


def test_importing_segdeform_imports_no_torch() -> None:
    code = "import sys, segdeform; segdeform.__version__; print('torch' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"


def test_the_api_is_what_it_says() -> None:
    from cuda_ops import DeformConv2d
    from segdeform.models.deform import deformify
    from segdeform.segmenter import Segmenter, load

    assert segdeform.DeformConv2d is DeformConv2d and segdeform.deformify is deformify
    assert segdeform.Segmenter is Segmenter and segdeform.load is load
    assert set(dir(segdeform)) == set(segdeform.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = segdeform.nothing


def test_the_version_is_the_installed_one() -> None:
    assert segdeform.__version__ == version("segdeform")


def test_every_package_is_shipped() -> None:
    """An installed copy lacks what the list in pyproject.toml forgets."""
    root = Path(__file__).parents[1]
    listed = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    packages = set(listed["tool"]["setuptools"]["packages"]) - {"segdeform.configs"}
    found = {
        ".".join(path.parent.relative_to(root).parts)
        for name in ("segdeform", "cuda_ops")
        for path in (root / name).rglob("__init__.py")
    }
    assert packages == found
