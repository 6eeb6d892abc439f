"""The operators inside other programs: compilers, exporters, tracers, transforms, fakes, meta."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import cuda_ops
from cuda_ops import DeformConv2d, DeformRoIPool, ModulatedDeformConv2d

pytestmark = pytest.mark.skipif(
    os.environ.get("SEGDEFORM_OPS") == "torchvision", reason="the native library is set aside"
)

Operands = tuple[Tensor, ...]


class Operator(NamedTuple):
    """One of the public functions as a function of its tensors, and what to call it with."""

    call: Callable[..., Tensor]
    operands: Callable[[int], Operands]  # drawn by a seed; the first may be differentiated


def convolve(input: Tensor, offset: Tensor, weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    return cuda_ops.deform_conv2d(input, offset, weight, bias, (2, 1), (1, 0), (1, 2), mask)


def pool(input: Tensor, rois: Tensor, offset: Tensor) -> Tensor:
    return cuda_ops.deform_roi_pool(input, rois, offset, (3, 2), 0.5)


def ps_pool(input: Tensor, rois: Tensor, trans: Tensor) -> Tensor:
    return cuda_ops.ps_deform_roi_pool(input, rois, trans, 0.5, 3, 2, 3, 2, 2)


def of_convolution(seed: int) -> Operands:
    random = torch.Generator().manual_seed(seed)
    shapes = [(2, 6, 9, 8), (2, 36, 5, 6), (4, 3, 3, 2), (4,), (2, 18, 5, 6)]
    return tuple(torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes)


def of_pooling(seed: int, channels: int, offset: tuple[int, ...]) -> Operands:
    random = torch.Generator().manual_seed(seed)
    start = 8 * torch.rand(5, 2, generator=random, dtype=torch.float64)
    size = 2 + 12 * torch.rand(5, 2, generator=random, dtype=torch.float64)
    image = torch.tensor([0.0, 1, 1, 0, 1], dtype=torch.float64)[:, None]
    input = torch.randn(2, channels, 9, 8, generator=random, dtype=torch.float64)
    shifts = torch.randn(5, *offset, generator=random, dtype=torch.float64)
    return input, torch.cat([image, start, start + size], 1), shifts


OPERATORS = {
    "deform_conv2d": Operator(convolve, of_convolution),
    "deform_roi_pool": Operator(pool, lambda seed: of_pooling(seed, 4, (2, 3, 2))),
    "ps_deform_roi_pool": Operator(ps_pool, lambda seed: of_pooling(seed, 12, (6, 2, 2))),
}
every_operator = pytest.mark.parametrize("name", OPERATORS)


class Pooling(nn.Module):
    """Deformable pooling of every region of a batch, as a module of one input."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = DeformRoIPool((3, 2), 1.0, channels=4, hidden=8)
        self.register_buffer("rois", torch.tensor([[0, 1.0, 1, 6, 7], [1, 0, 0, 5, 5]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x, self.rois)


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "v1": lambda: DeformConv2d(4, 6, (3, 2), stride=(2, 1), padding=1),
    "v2": lambda: ModulatedDeformConv2d(4, 6, 3, padding=1, groups=2, offset_groups=2),
    "pool": Pooling,
}


def make_layer(name: str) -> nn.Module:
    """Returns a layer whose offsets are not zero."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    with torch.no_grad():
        for key, parameter in layer.named_parameters():
            if "offset" in key:
                parameter.normal_(std=0.2)
    return layer


def images(height: int, width: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize(
    ("training", "used_before"), [(True, False), (False, False), (False, True)]
)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_compile_whole(name: str, training: bool, used_before: bool) -> None:
    layer = make_layer(name).train(training)
    if used_before:
        with torch.no_grad():
            layer(images(9, 8))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for size in ((9, 8), (11, 13)):
        found, expected = compiled(images(*size)), layer(images(*size))
        torch.testing.assert_close(found, expected)
        parameters = list(layer.parameters())
        ours = torch.autograd.grad(found.square().sum(), parameters)
        theirs = torch.autograd.grad(expected.square().sum(), parameters)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("training", "strict"), [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_export_for_every_size(name: str, training: bool, strict: bool) -> None:
    layer = make_layer(name).train(training)
    sizes = {2: torch.export.Dim("height", min=4), 3: torch.export.Dim("width", min=4)}
    if name != "pool":  # its regions name two images
        sizes[0] = torch.export.Dim("batch")
    exported = torch.export.export(
        layer, (images(9, 8),), dynamic_shapes=(sizes,), strict=strict
    ).module()
    for size in ((9, 8), (6, 15)):
        torch.testing.assert_close(exported(images(*size)), layer(images(*size)))


@every_operator
@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_operators_are_traced(name: str, mode: str) -> None:
    operator = OPERATORS[name]
    graph = make_fx(operator.call, tracing_mode=mode)(*operator.operands(0))
    others = operator.operands(1)
    torch.testing.assert_close(graph(*others), operator.call(*others))
    assert name in {getattr(node.target, "_opname", "") for node in graph.graph.nodes}


@every_operator
def test_fake_and_meta_tensors_have_the_shapes_of_real_ones(name: str) -> None:
    call, operands = OPERATORS[name].call, OPERATORS[name].operands(0)

    def shapes(given: Operands) -> list[Any]:
        leaves = [t.detach().requires_grad_() for t in given]
        output = call(*leaves)
        grads = torch.autograd.grad(output.sum(), leaves, allow_unused=True)
        return [(t.shape, t.dtype, t.stride()) if t is not None else None for t in (output, *grads)]

    expected = shapes(operands)
    last = [
        t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in operands
    ]
    assert shapes(tuple(t.to("meta") for t in operands)) == expected
    assert shapes(tuple(t.to("meta") for t in last)) == shapes(tuple(last)) != expected
    with FakeTensorMode() as mode:
        assert shapes(tuple(mode.from_tensor(t) for t in operands)) == expected


@pytest.mark.parametrize("name", LAYERS)
def test_layers_know_their_shapes_on_meta(name: str) -> None:
    layer = make_layer(name)
    expected = layer(images(9, 8)).shape
    found = layer.to("meta")(images(9, 8).to("meta"))
    assert found.device.type == "meta" and found.shape == expected


@every_operator
def test_vmap_is_a_loop(name: str) -> None:
    call = OPERATORS[name].call
    batch = [OPERATORS[name].operands(seed) for seed in range(3)]
    last = [torch.stack(parts, -1) for parts in zip(*batch, strict=True)]
    found = torch.vmap(call, in_dims=-1)(*last)
    torch.testing.assert_close(found, torch.stack([call(*operands) for operands in batch]))
    shared = (batch[0][0], *last[1:])  # one picture for all
    found = torch.vmap(call, in_dims=(None, *[-1] * (len(last) - 1)), out_dims=1)(*shared)
    expected = [call(batch[0][0], *operands[1:]) for operands in batch]
    torch.testing.assert_close(found, torch.stack(expected, 1))


@every_operator
def test_gradients_of_each_example(name: str) -> None:
    call = OPERATORS[name].call
    batch = [OPERATORS[name].operands(seed) for seed in range(3)]
    stacked = [torch.stack(parts) for parts in zip(*batch, strict=True)]
    by = tuple(i for i in range(len(stacked)) if name == "deform_conv2d" or i != 1)  # not by rois

    def loss(*operands: Tensor) -> Tensor:
        return call(*operands).square().sum()

    def by_autograd(operands: Operands) -> Operands:
        leaves = [t.clone().requires_grad_() for t in operands]
        return torch.autograd.grad(loss(*leaves), [leaves[i] for i in by])

    expected = [torch.stack(g) for g in zip(*map(by_autograd, batch), strict=True)]
    found = torch.vmap(torch.func.grad(loss, argnums=by))(*stacked)
    torch.testing.assert_close(list(found), expected)
    # And the other way round: the gradient of a sum over a mapped batch.
    summed = torch.func.grad(lambda *given: torch.vmap(loss)(*given).sum(), argnums=by)(*stacked)
    torch.testing.assert_close(list(summed), expected)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.func.jacrev(torch.func.grad(loss))(*batch[0])


@pytest.mark.parametrize("name", ["deform_roi_pool", "ps_deform_roi_pool"])
def test_one_graph_serves_any_number_of_regions(name: str) -> None:
    operator, graphs = OPERATORS[name], []

    def keep(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(operator.call, fullgraph=True, backend=keep)
    input, rois, shifts = operator.operands(0)
    for count in (5, 3, 7, 11):
        of = torch.arange(count) % 5
        found = compiled(input, rois[of], shifts[of])
        torch.testing.assert_close(found, operator.call(input, rois[of], shifts[of]))
    assert len(graphs) == 2  # the first number by itself, then any


class AsModule(nn.Module):
    """A function as `torch.export` wants it."""

    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *operands: Tensor) -> Tensor:
        return self.call(*operands)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["deform_roi_pool", "ps_deform_roi_pool"])
def test_an_exported_pooling_takes_any_number_of_regions(name: str, strict: bool) -> None:
    operator = OPERATORS[name]
    input, rois, shifts = operator.operands(0)
    regions, height = torch.export.Dim("regions"), torch.export.Dim("height")
    exported = torch.export.export(
        AsModule(operator.call),
        (input, rois, shifts),
        dynamic_shapes=(({2: height}, {0: regions}, {0: regions}),),
        strict=strict,
    ).module()
    for count, rows in ((5, 9), (3, 7), (12, 8)):
        of = torch.arange(count) % 5
        given = (input[:, :, :rows], rois[of], shifts[of])
        torch.testing.assert_close(exported(*given), operator.call(*given))


@pytest.mark.parametrize("name", ["deform_roi_pool", "ps_deform_roi_pool"])
def test_a_number_of_regions_that_the_data_decide_compiles(name: str) -> None:
    operator = OPERATORS[name]

    def of_kept(input: Tensor, rois: Tensor, shifts: Tensor, keep: Tensor) -> Tensor:
        places = keep.nonzero()[:, 0]
        return operator.call(input, rois[places], shifts[places])

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        compiled = torch.compile(of_kept, fullgraph=True, backend="aot_eager")
        for kept in ([True, False, True, True, False], [False, True, False, False, False]):
            operands = (*operator.operands(0), torch.tensor(kept))
            torch.testing.assert_close(compiled(*operands), of_kept(*operands))


def test_a_scale_may_be_symbolic() -> None:
    def at_twice(input: Tensor, rois: Tensor, scale: float) -> Tensor:
        return cuda_ops.deform_roi_pool(input, rois, None, (3, 2), 2 * scale, gamma=scale)

    compiled = torch.compile(at_twice, fullgraph=True, backend="aot_eager", dynamic=True)
    input, rois, _ = of_pooling(0, 4, (1,))
    for scale in (0.25, 0.4, 0.7):
        torch.testing.assert_close(compiled(input, rois, scale), at_twice(input, rois, scale))
    of_numpy = at_twice(input, rois, np.float32(0.5))
    assert torch.equal(of_numpy, at_twice(input, rois, 0.5))


@every_operator
def test_operands_of_another_device_are_refused(name: str) -> None:
    operator = OPERATORS[name]
    operands = operator.operands(0)
    for index in range(1, len(operands)):
        mixed = [t.to("meta") if i == index else t for i, t in enumerate(operands)]
        with pytest.raises(ValueError, match="must be on cpu as input is, not meta"):
            operator.call(*mixed)


def test_raw_operators_refuse_another_device_too() -> None:
    """A kernel that looked elsewhere would read another memory, or leave its result as it was."""
    input, offset, weight, bias, mask = of_convolution(0)
    numbers = ((2, 1), (1, 0), (1, 2), 2, 3)
    ops = torch.ops.segdeform
    packing = torch.zeros(1000, dtype=torch.float64)
    features, rois, shifts = of_pooling(0, 4, (2, 3, 2))
    calls = [
        lambda: ops.deform_conv2d(input, offset.to("meta"), weight, bias, mask, *numbers),
        lambda: ops.deform_conv2d(input, offset, weight, bias, mask.to("meta"), *numbers),
        lambda: ops.deform_conv2d_packed(
            input, offset.to("meta"), weight, bias, mask, packing, *numbers
        ),
        lambda: ops.deform_conv2d_backward(
            torch.zeros(2, 4, 5, 6), input.to("meta"), offset, weight, mask, *numbers, *[True] * 5
        ),
        lambda: ops.deform_roi_pool(features, rois.to("meta"), shifts, (3, 2), 1.0, 0, 0.1),
        lambda: ops.deform_roi_pool_backward(
            torch.zeros(5, 4, 3, 2),
            features,
            rois,
            shifts.to("meta"),
            (3, 2),
            1.0,
            0,
            0.1,
            *[True] * 2,
        ),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="on one device, not on cpu, meta"):
            call()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("index", "dtype", "message"),
    [
        (0, torch.int64, "input must have a floating dtype, not torch.int64"),
        (1, torch.int32, "offset must have a floating dtype"),
        (2, torch.float64, "input and weight must share .* torch.float32 and torch.float64"),
        (2, torch.uint8, "weight must have a floating dtype"),
        (3, torch.float64, "input and bias must share .* torch.float32 and torch.float64"),
        (4, torch.bool, "mask must have a floating dtype"),
        (4, torch.complex64, "mask must have a floating dtype"),
    ],
)
def test_wrong_dtypes_are_named_under_autocast_as_well(
    index: int, dtype: torch.dtype, message: str, autocast: bool
) -> None:
    operands = [t.float() for t in of_convolution(0)]
    operands[index] = operands[index].to(dtype)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
        pytest.raises(TypeError, match=message),
    ):
        convolve(*operands)


def test_autocast_brings_dtypes_together_that_it_lowers() -> None:
    input, offset, weight, bias, mask = of_convolution(0)
    with pytest.raises(TypeError, match="bfloat16"):
        convolve(input.bfloat16(), offset, weight.float(), bias.float(), mask)
    with torch.autocast("cpu", torch.bfloat16):
        found = convolve(input.bfloat16(), offset, weight.float(), bias.float(), mask)
        assert found.dtype == torch.bfloat16
        assert convolve(input, offset, weight, bias, mask).dtype == torch.float64  # left alone
    exact = convolve(input, offset, weight, bias, mask)
    assert (found.double() - exact).norm() < 1e-2 * exact.norm()


@pytest.mark.parametrize("training", [False, True])
def test_feature_extractors_see_layers_as_leaves(training: bool) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    network = nn.Sequential(
        make_layer("v1"), nn.ReLU(), ModulatedDeformConv2d(6, 5, 3, padding=1)
    ).train(training)
    extractor = create_feature_extractor(network, {"1": "middle", "2": "last"})
    found = extractor(images(9, 8))
    torch.testing.assert_close(found["middle"], network[:2](images(9, 8)))
    torch.testing.assert_close(found["last"], network(images(9, 8)))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_a_layer_in_evaluation_is_traced_by_torch_jit() -> None:
    layer = make_layer("v2").eval()
    with torch.no_grad():
        traced = torch.jit.trace(layer, images(9, 8))
        torch.testing.assert_close(traced(images(11, 13)), layer(images(11, 13)))
