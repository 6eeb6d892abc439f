from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

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
