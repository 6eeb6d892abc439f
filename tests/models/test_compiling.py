"""A compiled network says what it said, and compiles for the sizes that come often alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segdeform.config.schema import EvalConfig
from segdeform.inference import predict_labels
from segdeform.models.compiling import compile_network
from tests.models.test_precision import network


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Stands in for torch's compiler; the sizes that it was called with."""
    called: list[torch.Size] = []

    def compile(plain: Callable[[Tensor], Tensor], dynamic: bool) -> Callable[[Tensor], Tensor]:
        assert not dynamic

        def run(images: Tensor) -> Tensor:
            called.append(images.shape)
            if images.shape[3] == 13:
                raise RuntimeError("No working compiler\nand much more")
            if images.shape[3] == 17:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            return plain(images) + 1

        return run

    monkeypatch.setattr(torch, "compile", compile)
    config = SimpleNamespace(patch=lambda **keys: nullcontext())
    monkeypatch.setitem(sys.modules, "torch._inductor", SimpleNamespace(config=config))
    return called


def fake() -> Any:
    return SimpleNamespace(maps=lambda images: images * 0)


def sized(width: int) -> Tensor:
    return torch.ones(1, 3, 8, width)


def test_sizes_that_come_again_are_compiled_up_to_four(graphs: list[torch.Size]) -> None:
    said: list[str] = []
    model = fake()
    compile_network(model, said.append)
    for width in (20, 21, 20, 20, 21):  # each is seen once before it is compiled
        model.maps(sized(width))
    assert [size[3] for size in graphs] == [20, 20, 21]
    assert [line.split(" pixels")[0] for line in said] == ["compiled for 8x20", "compiled for 8x21"]
    assert model.maps(sized(20)).mean() == 1 and model.maps(sized(22)).mean() == 0
    graphs.clear()
    for width in (30, 31, 32) * 3:
        model.maps(sized(width))
    assert {size[3] for size in graphs} == {30, 31} and len(said) == 4


def test_without_a_compiler_the_network_goes_on(graphs: list[torch.Size]) -> None:
    said: list[str] = []
    model = fake()
    compile_network(model, said.append)
    for width in (13, 13, 13, 20, 20, 20):
        assert model.maps(sized(width)).mean() == 0
    assert len(graphs) == len(said) == 1
    assert said[0].endswith("No working compiler")
    model = fake()
    compile_network(model, said.append)
    model.maps(sized(17))
    with pytest.raises(RuntimeError, match="allocate"):  # memory is told of where it always is
        model.maps(sized(17))
    assert len(said) == 1


@pytest.fixture
def compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
def test_labels_of_a_compiled_network_are_the_same(compiler: None) -> None:
    said: list[str] = []
    model = network("none")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((97, 65), (64, 81))] * 3
    expected = [predict_labels(model, picture, EvalConfig(), "cpu") for picture in pictures]
    compile_network(model, said.append)
    found = [predict_labels(model, picture, EvalConfig(), "cpu") for picture in pictures]
    assert len(said) == 2 and all(line.startswith("compiled for ") for line in said)
    equal = sum(int((a == b).sum()) for a, b in zip(expected, found, strict=True))
    assert equal / sum(labels.size for labels in expected) >= 0.999


@pytest.mark.slow
def test_a_missing_compiler_is_one_line(
    compiler: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    import torch._inductor.config as settings

    monkeypatch.setattr(settings.cpp, "cxx", ("no-such-compiler",))
    said: list[str] = []
    model = network("none")
    compile_network(model, said.append)
    picture = np.full((33, 49, 3), 99, np.uint8)
    for _ in range(3):
        predict_labels(model, picture, EvalConfig(), "cpu")
    assert len(said) == 1 and "not compiled" in said[0] and "\n" not in said[0]
    assert capfd.readouterr() == ("", "")
