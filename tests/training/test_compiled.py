"""Compiled or not, a training is the same but for rounding; and goes on where nothing compiles."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.nn import functional as F

from segdeform.config.schema import Config
from segdeform.errors import ConfigError, StoppedError
from segdeform.files.tensors import read_tensors
from segdeform.machine.processes import own_rank
from segdeform.models import deformify
from segdeform.models.deeplab import DeepLab
from segdeform.models.deform import deformable_layers
from segdeform.models.features import Features
from segdeform.models.heads import DeepLabHead
from segdeform.training import loop
from segdeform.training import state as states
from segdeform.training.loop import train
from tests.models.test_compile import TinyBackbone
from tests.ranks import run_ranks
from tests.training.conftest import ReporterThat, send, tiny_config
from tests.training.test_distributed import distance, partly_void  # noqa: F401

real_compile = torch.compile
OPTIONS: dict[str, Any] = {"device": "cpu", "workers": 0}


class DroppingHead(DeepLabHead):
    """Leaves something to chance."""

    def keep(self, features: Features) -> tuple[Tensor, ...]:
        return (self.score(F.dropout2d(F.relu(self.project(features.high)), 0.3, self.training)),)


def tiny(*arguments: Any, **named: Any) -> DeepLab:
    """Returns a network that is compiled in a second, whose offsets are not zero."""
    backbone = TinyBackbone()
    backbone.stages[0].append(nn.Dropout2d(0.2))  # type: ignore[operator]
    deformify(backbone, 2)
    for layer in deformable_layers(backbone).values():
        nn.init.normal_(layer.offset_conv.weight, std=0.05)
    return DeepLab(backbone, DroppingHead(4, arguments[2], 8), stride=8)


def tiny_without_chance(*arguments: Any, **named: Any) -> DeepLab:
    """Returns one that computes the same of a picture in whatever process it is."""
    network = tiny(*arguments)
    del network.backbone.stages[0][-1]  # type: ignore[index, union-attr]
    network.head = DeepLabHead(4, arguments[2], 8)
    return network


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Has the tiny network trained, and compiled into torch's own operators; what was compiled."""
    made: list[str] = []
    prepare(monkeypatch.setattr, made)
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


def prepare(
    replace: Callable[..., None],
    made: list[str],
    build: Callable[..., DeepLab] = tiny,
    backend: str = "",
) -> None:
    """Puts the compiler that notes what it makes, and the network, in their places."""

    def note(kind: str) -> Callable[..., Any]:
        def compiler(graph: Any, inputs: Any) -> Any:
            made.append(kind)
            return make_boxed_func(graph)

        return compiler

    def compile(function: Any, *, dynamic: bool, options: Any) -> Any:
        assert dynamic is False and options["fallback_random"]
        if backend:
            return real_compile(function, dynamic=dynamic, backend=backend, options=options)
        own = aot_autograd(fw_compiler=note("forward"), bw_compiler=note("backward"))
        return real_compile(function, dynamic=dynamic, backend=own)

    replace(torch, "compile", compile)
    replace(states, "build_model", build)
    replace(loop, "_finish", lambda *arguments: None)  # which builds a network by its config
    replace(loop, "shared_result", lambda plan: None)


def tiny_steps(**keys: Any) -> Config:
    settings = {"steps": 4, "batch_size": 4, "lr": 0.05, "schedule": "constant", **keys}
    config = tiny_config(**settings)
    return config.model_copy(update={"data": config.data.model_copy(update={"crop": (45, 61)})})


def apart(found: Path, expected: Path) -> float:
    """Returns how far two trainings ended from each other, by what the second learned."""
    ends = [
        read_tensors(run / "checkpoints" / "step-00000004" / "model.safetensors")
        for run in (found, expected)
    ]
    torch.manual_seed(0)
    start = tiny(None, None, 7).state_dict()
    return distance(*ends) / distance(start, ends[1])


def ended(config: Config, data: Path, run: Path, **options: Any) -> dict[str, Tensor]:
    train(config, data, run, **{"reporter": ReporterThat(), **OPTIONS, **options})
    return read_tensors(run / "checkpoints" / "step-00000004" / "model.safetensors")


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("keys", "compiled", "within"),
    [
        ({"eval_every": 2}, ["forward", "backward"], 1e-4),
        # Of a loss that is no sum over pixels the scores are computed twice, once without gradient.
        (
            {
                "precision": "bf16",
                "accumulate": 2,
                "loss": {"dice": 1, "ohem": 1},
                "ema_decay": 0.9,
            },
            ["forward", "forward", "backward"],
            1e-2,
        ),
    ],
)
def test_compiled_steps_are_the_steps(
    shapes: Path,
    tmp_path: Path,
    graphs: list[str],
    keys: dict[str, Any],
    compiled: list[str],
    within: float,
) -> None:
    """Nothing is compiled but before the first step, also where the network is scored on the way;
    what is logged of offsets is the same."""
    plain, ours = tmp_path / "plain", tmp_path / "compiled"
    ended(tiny_steps(**keys), shapes, plain)
    assert graphs == []
    reporter = ReporterThat(1, lambda: graphs.append("first step"))
    config = tiny_steps(compile=True, **keys)
    ended(config, shapes, ours, reporter=reporter)
    assert graphs == [*compiled, "first step"]
    assert any("compiled the network in" in message for message in reporter.messages)
    assert apart(ours, plain) < within
    first, second = (
        [entry for entry in logged(run) if entry["kind"] == "train"] for run in (plain, ours)
    )
    assert len(first) == len(second) == 4
    for old, new in zip(first, second, strict=True):
        assert new["loss"] == pytest.approx(old["loss"], rel=within)
        assert len(old["offsets"]) == 2
        for layer, numbers in old["offsets"].items():
            assert new["offsets"][layer] == pytest.approx(numbers, rel=within, abs=within)


def test_a_killed_compiled_run_ends_with_the_same_bits(
    shapes: Path, tmp_path: Path, graphs: list[str]
) -> None:
    """Though offsets are looked at in other steps."""
    config = tiny_steps(compile=True, log_every=1000)
    whole = ended(config, shapes, tmp_path / "whole")
    config = tiny_steps(compile=True)
    with pytest.raises(StoppedError, match="saved at step 2"):
        ended(config, shapes, tmp_path / "run", reporter=ReporterThat(2, send(15)))
    with pytest.raises(ConfigError, match=r"train\.compile is False now and was True when"):
        ended(tiny_steps(), shapes, tmp_path / "run", resume=True)
    reporter = ReporterThat()
    resumed = ended(config, shapes, tmp_path / "run", resume=True, reporter=reporter)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
    assert not any("bit for bit" in message for message in reporter.messages)


def test_what_cannot_be_compiled_trains_as_it_is(
    shapes: Path, tmp_path: Path, graphs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one message; where it can be after an interruption, that is told."""
    plain = ended(tiny_steps(), shapes, tmp_path / "plain")
    compile = torch.compile

    def fails(function: Any, **options: Any) -> Any:
        def run(images: Tensor) -> Any:
            raise RuntimeError("no C++ compiler found\nand much more")

        return run

    monkeypatch.setattr(torch, "compile", fails)
    reporter = ReporterThat()
    ours = ended(tiny_steps(compile=True), shapes, tmp_path / "run", reporter=reporter)
    assert all(torch.equal(ours[name], value) for name, value in plain.items())
    told = [message for message in reporter.messages if "not compiled" in message]
    assert told == [
        "the network is not compiled, which changes nothing but the pace: no C++ compiler found"
    ]
    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(StoppedError, match="saved at step 4"):
        reporter = ReporterThat(4, send(15))
        ended(tiny_steps(compile=True), shapes, tmp_path / "later", reporter=reporter)
    monkeypatch.setattr(torch, "compile", fails)
    reporter = ReporterThat()
    ended(tiny_steps(compile=True), shapes, tmp_path / "later", resume=True, reporter=reporter)
    (told,) = [message for message in reporter.messages if "bit for bit" in message]
    assert "was compiled before, and is not now" in told


def test_memory_that_ends_and_signals_are_no_failure_to_compile(
    shapes: Path, tmp_path: Path, graphs: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(function: Any, **options: Any) -> Any:
        def run(images: Tensor) -> Any:
            try:
                send(15)()
            except StoppedError as error:  # as torch does
                raise RuntimeError("backend failed") from error

        return run

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(StoppedError, match="before the first step"):
        ended(tiny_steps(compile=True), shapes, tmp_path)


def test_recomputing_is_the_compilers_own(shapes: Path, tmp_path: Path) -> None:
    config = tiny_steps(compile=True, checkpointing=True)
    with pytest.raises(ConfigError, match=r"train\.compile and train\.checkpointing"):
        ended(config, shapes, tmp_path)


def trains_compiled(config: str, data: Path, run: Path) -> list[str]:
    made: list[str] = []
    prepare(setattr, made, tiny_without_chance)
    own = run if own_rank() == 0 else run.with_name("nowhere")
    train(Config.model_validate_json(config), data, own, **OPTIONS, reporter=ReporterThat())
    return made


@pytest.mark.slow
def test_processes_that_compile_are_one_training(
    partly_void: Path,  # noqa: F811
    tmp_path: Path,
    graphs: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """BatchNorm frozen, which two processes would see less of."""
    prepare(monkeypatch.setattr, graphs, tiny_without_chance)
    one, two = tmp_path / "one", tmp_path / "two"
    ended(tiny_steps(freeze_bn=True), partly_void, one)
    config = tiny_steps(freeze_bn=True, compile=True).model_dump_json()
    made = run_ranks(2, trains_compiled, config, partly_void, two)
    assert made == [["forward", "backward"]] * 2
    assert apart(two, one) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "within"), [("fp32", 1e-3), ("bf16", 0.1)])
def test_code_made_for_the_processor_trains_the_same(
    shapes: Path,
    tmp_path: Path,
    graphs: list[str],
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    within: float,
) -> None:
    """By two threads; and what it ends with has the same bits each time."""
    prepare(monkeypatch.setattr, graphs, tiny, "inductor")
    torch.set_num_threads(2)
    config = tiny_steps(precision=precision)
    ended(config, shapes, tmp_path / "plain")
    reporter = ReporterThat()
    config = tiny_steps(precision=precision, compile=True)
    first = ended(config, shapes, tmp_path / "first", reporter=reporter)
    torch._dynamo.reset()
    second = ended(config, shapes, tmp_path / "second")
    torch.set_num_threads(1)
    assert any("compiled the network in" in message for message in reporter.messages)
    print(f"{precision}: {apart(tmp_path / 'first', tmp_path / 'plain'):.1e}")
    assert apart(tmp_path / "first", tmp_path / "plain") < within
    assert all(torch.equal(second[name], value) for name, value in first.items())


@pytest.mark.slow
def test_a_missing_compiler_is_one_message(
    shapes: Path,
    tmp_path: Path,
    graphs: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    import torch._inductor.config as settings

    prepare(monkeypatch.setattr, graphs, tiny, "inductor")
    monkeypatch.setattr(settings.cpp, "cxx", ("no-such-compiler",))
    reporter = ReporterThat()
    ended(tiny_steps(compile=True, lr=0.04), shapes, tmp_path, reporter=reporter)
    (told,) = [message for message in reporter.messages if "not compiled" in message]
    assert "\n" not in told
    assert capfd.readouterr() == ("", "")
