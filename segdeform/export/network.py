"""The network as it is exported: from the pixels of a file to labels, nothing left outside."""

from __future__ import annotations

import copy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cuda_ops.labels import BYTE_CLASSES
from segdeform.export.operator import Operator, replace_operator
from segdeform.models.deeplab import DeepLab
from segdeform.models.deform import deformable_layers
from segdeform.models.folding import fold_batch_norm
from segdeform.models.resizing import cut

Input = Literal["uint8", "float"]
Precision = Literal["fp32", "fp16", "bf16"]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Form(NamedTuple):
    """What an exported network takes and gives."""

    input: Input = "uint8"  # pictures [N, H, W, C]; "float": [N, C, H, W] float32, 0..1
    probabilities: bool = False  # a third output
    precision: Precision = "fp32"  # of weights and features

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names what comes out, in order."""
        return ("labels", "scores", *(("probabilities",) if self.probabilities else ()))

    @property
    def dynamic(self) -> tuple[int, int, int]:
        """Says which dimensions of what goes in are N, H and W."""
        return (0, 1, 2) if self.input == "uint8" else (0, 2, 3)


class ExportedForm(nn.Module):
    """Turns pictures into labels, the scores before they are enlarged, and probabilities.

    Args:
        network: in evaluation mode, of a known stride; it is changed: BatchNorm is folded, the
            deformable operator replaced, weights are of the form's precision. Offsets and masks
            are computed in float32 whatever that is.
        operator: of the deformable layers; None: our own.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: DeepLab, form: Form, operator: Operator | None) -> None:
        super().__init__()
        if network.stride is None:
            raise ValueError("the network's stride is not known")
        self.form, self.stride, self.dtype = form, network.stride, DTYPES[form.precision]
        fold_batch_norm(network)
        # In place an activation saves memory; what writes a graph takes twice as long over it.
        for layer in network.modules():
            if isinstance(layer, nn.ReLU | nn.ReLU6):
                layer.inplace = False
        layers = list(deformable_layers(network).values())
        positions = [copy.deepcopy(layer.offset_conv) for layer in layers]
        self.register_buffer("mean", network.mean.clone(), persistent=False)
        self.register_buffer("std", network.std.clone(), persistent=False)
        self.backbone, self.head = network.backbone.to(self.dtype), network.head.to(self.dtype)
        for layer, float32 in zip(layers, positions, strict=True):
            layer.offset_conv = float32
        if operator is not None:
            replace_operator(self, operator)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Returns what `Form.outputs` names.

        Labels are [N, H, W], uint8, of more than 255 classes int32; scores [N, K, h, w] float32,
        one for a square of `stride` pixels; probabilities [N, K, H, W] float32.
        """
        if self.form.input == "uint8":
            image = image.permute(0, 3, 1, 2).to(torch.float32) / 255
        size = image.shape[-2:]
        normal = ((image - self.mean) / self.std).to(self.dtype)
        scores: Tensor = self.head(self.backbone(normal)).float()
        whole = (scores.shape[2] * self.stride, scores.shape[3] * self.stride)
        large = F.interpolate(scores, whole, mode="bilinear", align_corners=False)
        # Labels are cut to the picture, not their scores: it is one map instead of K.
        labels = large.argmax(1).to(torch.uint8 if scores.shape[1] <= BYTE_CLASSES else torch.int32)
        outputs = [cut(labels, size), scores]
        if self.form.probabilities:
            outputs.append(cut(large, size).softmax(1))
        return tuple(outputs)


def exported_form(network: DeepLab, form: Form, operator: Operator | None) -> ExportedForm:
    """Makes the form of a copy of a network, in evaluation mode, on the CPU."""
    plain = copy.deepcopy(network).cpu().eval()
    return ExportedForm(plain.to(memory_format=torch.contiguous_format), form, operator).eval()


def traced(network: ExportedForm, channels: int, smallest: int) -> torch.export.ExportedProgram:
    """Makes a graph of a network that takes any number of pictures of any size.

    `smallest` is the least side, pixels, of which torch can prove that the graph holds.
    """
    sides = (2, smallest + 60, smallest + 73)  # sizes that the stride divides would be taken as so
    dims = torch.export.Dim("N"), *(torch.export.Dim(s, min=smallest) for s in ("H", "W"))
    if network.form.input == "uint8":
        example = torch.zeros(*sides, channels, dtype=torch.uint8)
    else:
        example = torch.zeros(sides[0], channels, *sides[1:])
    dynamic = (dict(zip(network.form.dynamic, dims, strict=True)),)
    with torch.no_grad():
        return torch.export.export(network, (example,), dynamic_shapes=dynamic, strict=False)
