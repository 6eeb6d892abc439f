"""The benchmark of the operator: who takes part, that all compute the same, what is told."""

from __future__ import annotations

import benchmark_ops
import operator_runtimes
import pytest
import torch
from benchmark_ops import Operands, Row, bf16_table, measure, table
from operator_runtimes import RUNTIMES, Problem, runtime_calls

ROWS = (Row(2, 12, 6, (6, 5), 2, groups=3), Row(1, 10, 10, (4, 7), groups=10))


def refuse(problem: Problem, threads: int) -> operator_runtimes.Run:
    raise RuntimeError("no groups here")


@pytest.mark.parametrize("row", ROWS, ids=["grouped", "depthwise"])
@pytest.mark.parametrize("name", RUNTIMES)
def test_a_runtime_computes_what_we_do(name: str, row: Row) -> None:
    package, make = RUNTIMES[name]
    pytest.importorskip(package)
    operands = Operands(row)
    expected = operands.calls(backward=False)["torchvision"]()
    assert isinstance(expected, torch.Tensor)
    found = make(operands.problem(), 1)()
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


def test_a_runtime_that_computes_something_else_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem = Operands(ROWS[0]).problem()
    expected = torch.ones(2, 6, 6, 5)
    off = expected.clone()
    off[1, 5, 5, 4] += 3e-4
    monkeypatch.setattr(operator_runtimes, "RUNTIMES", {"Off": ("off", lambda *_: lambda: off)})
    with pytest.raises(AssertionError, match="Off computes something else"):
        runtime_calls(problem, expected, 1)


def test_tables_hold_every_contestant_and_a_dash_for_who_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []

    def same(problem: Problem, threads: int) -> operator_runtimes.Run:
        calls.append(threads)
        output = Operands(ROWS[0]).calls(backward=False)["ours"]()
        assert isinstance(output, torch.Tensor)
        return lambda: output

    stand_ins = {"ONNX Runtime": ("onnxruntime", refuse), "OpenVINO": ("openvino", same)}
    monkeypatch.setattr(operator_runtimes, "RUNTIMES", stand_ins)
    result = measure(ROWS[0], 2, threads=3)
    assert calls == [3]
    assert "onnxruntime is left out: no groups here" in capsys.readouterr().err
    head, _, forward, both = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in table([result]).splitlines()
    )
    assert [head.index(f"{name}, ms") for name in RUNTIMES] == [5, 6]
    assert forward[5] == "-" and forward[6] == benchmark_ops.cell(result["forward"], "OpenVINO")
    ours, best = (result["forward"][name]["min_ms"] for name in ("ours", "OpenVINO"))
    assert forward[head.index("best runtime / ours")] == f"{best / ours:.2f}"
    assert both[5:7] == ["-", "-"] and both[head.index("best runtime / ours")] == "-"
    assert len(head) == len(forward) == len(both)
    assert "-" not in [c.strip() for c in bf16_table([result]).splitlines()[2].split("|")]
