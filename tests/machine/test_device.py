"""Which device a command takes, and that wrong kernels for a GPU end it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cuda_ops import library, parity
from segdeform import segmenter
from segdeform.config.loading import load_config
from segdeform.errors import ModelError, SegdeformError, UsageError
from segdeform.machine.device import compare_kernels, require_right_kernels, resolve_device
from segdeform.training.loop import train


@pytest.mark.parametrize(
    "name", ["gpu", "cuda:x", "cpu:1:2", "", "mps", "cpu:128", "cpu:" + "1" * 30]
)
def test_an_unknown_device_is_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"--device {name}: unknown"):
        resolve_device(name)


def test_a_missing_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    with pytest.raises(UsageError, match="no usable CUDA device"):
        resolve_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="this machine has 2 of them"):
        resolve_device("cuda:2")


@pytest.fixture(autouse=True)
def forget() -> None:
    compare_kernels.cache_clear()


@pytest.mark.skipif(not library.cpu_library.loaded, reason="the native library is set aside")
def test_wrong_kernels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    compare_kernels("cpu")
    compare_kernels.cache_clear()
    right = parity.OPERATORS["deform_conv2d"]

    def wrong(input: Tensor, **rest: Any) -> Tensor:
        return right(input=input + 0.001 * input.abs().max(), **rest)

    monkeypatch.setitem(parity.OPERATORS, "deform_conv2d", wrong)
    with pytest.raises(SegdeformError, match=r"wrong on cpu .* off by .* goes on without"):
        compare_kernels("cpu")
    require_right_kernels(torch.device("cpu"))  # tests see to these


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_cannot_run_the_kernels_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before a model is read or a data set is looked for."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(library, "backend", lambda device, operator="deform_conv2d": "native")
    nowhere = tmp_path / "nowhere"
    with pytest.raises(SegdeformError, match=r"wrong on cuda .* goes on without them"):
        segmenter.load(nowhere, "cuda")
    with pytest.raises(SegdeformError, match=r"wrong on cuda:0 .* goes on without them"):
        train(load_config("shapes"), nowhere, tmp_path / "run", device="cuda")
    monkeypatch.setattr(library, "backend", lambda device, operator="deform_conv2d": "torchvision")
    compare_kernels.cache_clear()
    with pytest.raises(ModelError):
        segmenter.load(nowhere, "cuda")
