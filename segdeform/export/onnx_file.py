"""An exported network as a file of ONNX's standard operators."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from segdeform.export.network import Form

Opset = Literal[20, 22]


def write_onnx(
    path: Path,
    program: torch.export.ExportedProgram,
    opset: Opset,
    form: Form,
    metadata: Mapping[str, str],
) -> None:
    """Writes a program, whose one input is called "image"; `metadata` says what it is.

    torchvision's deformable convolution in it becomes ONNX's. Raises OSError, and
    onnx.checker.ValidationError for a graph that ONNX does not allow.
    """
    import onnx
    import torchvision  # noqa: F401  its operator is in the table

    table: dict[Callable[..., Any], Any] = {
        torch.ops.torchvision.deform_conv2d.default: _translation(opset)
    }
    with _quiet():
        made = torch.onnx.export(
            program,
            input_names=["image"],
            output_names=list(form.outputs),
            dynamic_shapes=(dict(zip(form.dynamic, "NHW", strict=True)),),
            opset_version=opset,
            dynamo=True,
            verbose=False,
            custom_translation_table=table,
        )
    assert made is not None
    model = made.model_proto
    _forget_origins(model)
    _pool_by_name(model)
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def _translation(opset: Opset) -> Callable[..., Any]:
    """Returns how torchvision's operator is written: the layouts are the same, pads symmetric."""
    import onnxscript

    standard = {20: onnxscript.opset20, 22: onnxscript.opset22}[opset]

    def deform_conv2d(
        input: Any,
        weight: Any,
        offset: Any,
        mask: Any,
        bias: Any,
        stride_h: int,
        stride_w: int,
        pad_h: int,
        pad_w: int,
        dilation_h: int,
        dilation_w: int,
        groups: int,
        offset_groups: int,
        use_mask: bool,
    ) -> Any:
        return standard.DeformConv(
            input,
            weight,
            offset,
            bias,
            mask if use_mask else None,
            kernel_shape=[int(side) for side in weight.shape[2:]],
            strides=[stride_h, stride_w],
            pads=[pad_h, pad_w, pad_h, pad_w],
            dilations=[dilation_h, dilation_w],
            group=groups,
            offset_group=offset_groups,
        )

    return deform_conv2d


def _forget_origins(model: Any) -> None:
    """Drops the lines of source code, with their paths, that the exporter notes at every node."""
    graph = model.graph
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info):
        del part.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    for node in graph.node:
        node.doc_string = ""


def _pool_by_name(model: Any) -> None:
    """Writes the mean over a whole map as GlobalAveragePool, which every runtime knows."""
    import onnx

    constants = {
        tensor.name: onnx.numpy_helper.to_array(tensor).ravel().tolist()
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT64
    }
    for node in model.graph.node:
        axes = constants.get(node.input[1]) if len(node.input) == 2 else None
        keeps = all(entry.i == 1 for entry in node.attribute if entry.name == "keepdims")
        if node.op_type == "ReduceMean" and keeps and axes and sorted(axes) in ([-2, -1], [2, 3]):
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's progress and warnings from the terminal."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
