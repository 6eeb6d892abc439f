"""deform_conv2d in ONNX Runtime and in OpenVINO, for benchmark_ops.py: forward, float32, CPU.

The weight is a constant of their models, as in an exported network. Both take arrays in memory
without a copy.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from segdeform.runtimes.sessions import nothing_told

TOLERANCE = 1e-4  # of the largest output
Run = Callable[[], Tensor]


class Problem(NamedTuple):
    """A convolution, 3x3, of the same size out as in, v2."""

    input: Tensor  # [N, C, H, W]
    offset: Tensor  # [N, 18, H, W]
    mask: Tensor  # [N, 9, H, W]
    weight: Tensor  # [O, C/groups, 3, 3]
    dilation: int
    groups: int


def by_onnx_runtime(problem: Problem, threads: int) -> Run:
    """Returns the call of ONNX Runtime's DeformConv.

    Its threads sleep between calls, lest they take the cores from whoever is measured next.
    """
    import onnx
    import onnxruntime

    inputs = {"X": problem.input, "offset": problem.offset, "mask": problem.mask}
    kind = onnx.TensorProto.FLOAT
    node = onnx.helper.make_node(
        "DeformConv",
        ["X", "W", "offset", "", "mask"],
        ["Y"],
        kernel_shape=(3, 3),
        pads=(problem.dilation,) * 4,
        dilations=(problem.dilation,) * 2,
        group=problem.groups,
        offset_group=1,
    )
    graph = onnx.helper.make_graph(
        [node],
        "one",
        [onnx.helper.make_tensor_value_info(k, kind, tuple(v.shape)) for k, v in inputs.items()],
        [onnx.helper.make_tensor_value_info("Y", kind, None)],
        [onnx.numpy_helper.from_array(problem.weight.numpy(), "W")],
    )
    opset = onnx.helper.make_opsetid("", 19)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feed = {name: value.numpy() for name, value in inputs.items()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


class _Operator(nn.Module):
    """torchvision's operator with its weight, which OpenVINO translates."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.weight = nn.Parameter(problem.weight, requires_grad=False)
        self.dilation = problem.dilation

    def forward(self, input: Tensor, offset: Tensor, mask: Tensor) -> Tensor:
        d = self.dilation
        output: Tensor = torchvision.ops.deform_conv2d(
            input, offset, self.weight, None, 1, d, d, mask
        )
        return output


def by_openvino(problem: Problem, threads: int) -> Run:
    """Returns the call of OpenVINO's DeformableConvolution."""
    with nothing_told():
        import openvino

    given = (problem.input, problem.offset, problem.mask)
    model = openvino.convert_model(torch.export.export(_Operator(problem), given))
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # some processors would choose bf16
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    request = openvino.Core().compile_model(model, "CPU", settings).create_infer_request()
    feed = [t.numpy() for t in given]
    # The array is the request's own until the next call.
    return lambda: torch.from_numpy(
        np.asarray(request.infer(feed, share_inputs=True, share_outputs=True)[0])
    )


RUNTIMES: dict[str, tuple[str, Callable[[Problem, int], Run]]] = {
    "ONNX Runtime": ("onnxruntime", by_onnx_runtime),
    "OpenVINO": ("openvino", by_openvino),
}


def versions() -> dict[str, str]:
    """Returns {name of a runtime: its version}, "not installed" where it is not."""
    found = {}
    for package, _ in RUNTIMES.values():
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def runtime_calls(problem: Problem, expected: Tensor, threads: int) -> dict[str, Run]:
    """Returns the calls of the runtimes that take the problem; tells why one does not.

    Raises:
        AssertionError: one computes something else than expected.
    """
    calls: dict[str, Run] = {}
    for name, (package, make) in RUNTIMES.items():
        try:
            call = make(problem, threads)
            found = call()
        except Exception as error:  # each has exceptions of its own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            print(f"{package} is left out: {reason}", file=sys.stderr)
            continue
        error = float((found - expected).abs().max() / expected.abs().max())
        if not error <= TOLERANCE:
            raise AssertionError(f"{name} computes something else: off by {error:.1e}")
        calls[name] = call
    return calls
