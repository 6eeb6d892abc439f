"""deform_conv2d against ONNX Runtime's DeformConv, which shares its layouts but no code with us."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import cuda_ops
from tests.cuda_ops.shapes import SHAPES, Shape

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def by_onnx_runtime(shape: Shape, operands: dict[str, Tensor]) -> Tensor:
    """Runs the operator of opset 19 on the operands, float32."""
    names = ["input", "weight", "offset", "bias", "mask"]
    given = [name if name in operands else "" for name in names]
    node = onnx.helper.make_node(
        "DeformConv",
        given if given[-1] else given[:-1],
        ["output"],
        kernel_shape=shape.kernel,
        strides=shape.stride,
        pads=shape.padding * 2,
        dilations=shape.dilation,
        group=shape.groups,
        offset_group=shape.offset_groups,
    )
    kind = onnx.TensorProto.FLOAT
    inputs = [
        onnx.helper.make_tensor_value_info(name, kind, operands[name].shape)
        for name in given
        if name
    ]
    output = onnx.helper.make_tensor_value_info("output", kind, None)
    graph = onnx.helper.make_graph([node], "one", inputs, [output])
    opset = onnx.helper.make_opsetid("", 19)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feed = {name: operands[name].numpy() for name in given if name}
    return torch.from_numpy(session.run(None, feed)[0])


@pytest.mark.parametrize("name", SHAPES)
def test_agrees_with_onnx_runtime(name: str) -> None:
    shape = SHAPES[name]
    operands = shape.tensors(torch.float32)
    ours = cuda_ops.deform_conv2d(**operands, **shape.geometry)
    theirs = by_onnx_runtime(shape, operands)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()
