"""Runs a test once for every instruction set of this processor."""

from __future__ import annotations

import platform

import pytest
import torch


def instruction_sets() -> list[str]:
    names = ["portable"]
    if platform.machine() in ("aarch64", "arm64"):
        names.append("neon")
    cpu = torch.backends.cpu.get_cpu_capability()
    if "AVX" in cpu:
        names.append("avx2")
    if "AVX512" in cpu:
        names.append("avx512")
    return names


@pytest.fixture(params=instruction_sets())
def instruction_set(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SEGDEFORM_CPU", request.param)
    return str(request.param)
