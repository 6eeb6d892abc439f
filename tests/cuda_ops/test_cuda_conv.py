"""deform_conv2d on a GPU. Imports cuda_ops, torch and pytest alone, so that any GPU machine serves.

What the kernels compute is also tested without a GPU, on the host shim: test_cuda_kernels.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import cuda_ops
from cuda_ops import reference
from tests.cuda_ops.shapes import EVERY, SAME, Shape

# Without it torch refuses every product under use_deterministic_algorithms(True).
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

# Larger than the others: several blocks, warps and chunks of everything.
LARGE = {
    "c512": replace(SAME, channels=512, outputs=512, offset_groups=1, size=(33, 33)),
    "c64": replace(SAME, channels=64, outputs=64, offset_groups=1, size=(128, 96)),
    "c256_groups": replace(SAME, channels=256, outputs=128, groups=8, offset_groups=4,
                           size=(40, 41), stride=(2, 1)),
    "odd_large": Shape(batch=5, channels=129, outputs=77, groups=1, offset_groups=3, size=(61, 53)),
    "depthwise_large": replace(SAME, channels=384, outputs=384, groups=384, offset_groups=2,
                               size=(50, 47), batch=3),
}  # fmt: skip
TOLERANCES = {torch.float64: 1e-11, torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def full_float32() -> Iterator[None]:
    """Products of float32 in float32; a test that wants tf32 says so."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def on_gpu(operands: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.cuda() for k, v in operands.items()}


def output_gradient(shape: Shape, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = (shape.batch, shape.outputs, *shape.out)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(like)


def gradients(op, shape: Shape, operands: dict[str, Tensor]) -> dict[str, Tensor]:  # type: ignore[no-untyped-def]
    leaves = {k: v.detach().clone().requires_grad_() for k, v in operands.items()}
    output = shape.call(op, leaves)
    output.backward(output_gradient(shape, output))
    found = {k: v.grad for k, v in leaves.items() if v.grad is not None}
    return found | {"output": output.detach()}


def assert_agree(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        difference = (ours[name].cpu().double() - expected.cpu().double()).norm()
        error = difference / expected.cpu().double().norm().clamp(min=1e-300)
        assert error < tolerance, f"{name}: relative error {error:.2e}"


def test_native_kernels_serve_the_gpu() -> None:
    assert cuda_ops.backend("cuda") == "native", cuda_ops.library.cuda_library.reason


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_agrees_with_the_reference_and_the_cpu(name: str, dtype: torch.dtype) -> None:
    shape = EVERY[name]
    operands = shape.tensors(dtype)
    if dtype in HALF:
        operands |= {k: v.float() for k, v in operands.items() if k in ("offset", "mask")}
    ours = gradients(cuda_ops.deform_conv2d, shape, on_gpu(operands))
    assert {k: v.dtype for k, v in ours.items() if k in operands} == {
        k: v.dtype for k, v in operands.items()
    }
    wide = {k: v.double() for k, v in operands.items()}
    assert_agree(ours, gradients(reference.deform_conv2d, shape, wide), TOLERANCES[dtype])
    on_cpu = gradients(cuda_ops.deform_conv2d, shape, operands)
    assert_agree(ours, on_cpu, 2 * TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", LARGE)
def test_agrees_at_larger_sizes(name: str, dtype: torch.dtype) -> None:
    operands = on_gpu(LARGE[name].tensors(dtype))
    ours = gradients(cuda_ops.deform_conv2d, LARGE[name], operands)
    wide = {k: v.double() for k, v in operands.items()}
    expected = gradients(reference.deform_conv2d, LARGE[name], wide)
    assert_agree(ours, expected, TOLERANCES[dtype])


@pytest.mark.parametrize("limit", [200_000, 3_000_000])
@pytest.mark.parametrize("name", ["c256_groups", "odd_large", "depthwise_large"])
def test_a_small_workspace_changes_nothing(
    name: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    operands = on_gpu(replace(LARGE[name], size=(21, 20)).tensors(torch.float64))
    shape = replace(LARGE[name], size=(21, 20))
    expected = gradients(reference.deform_conv2d, shape, operands)
    monkeypatch.setenv("SEGDEFORM_CUDA_WORKSPACE", str(limit))
    assert_agree(gradients(cuda_ops.deform_conv2d, shape, operands), expected, 1e-11)


@pytest.mark.parametrize("name", ["c64_o129", "depthwise_strided", "many_groups"])
def test_zero_offset_is_a_convolution(name: str) -> None:
    shape = replace(EVERY[name], modulated=False)
    operands = on_gpu(shape.tensors(torch.float64))
    operands["offset"].zero_()
    expected = F.conv2d(operands["input"], operands["weight"], operands["bias"], shape.stride,
                        shape.padding, shape.dilation, shape.groups)  # fmt: skip
    torch.testing.assert_close(shape.call(cuda_ops.deform_conv2d, operands), expected)


@pytest.mark.parametrize("name", ["asymmetric", "v1", "depthwise", "many_groups"])
def test_gradcheck(name: str) -> None:
    shape = replace(EVERY[name], batch=1, size=(5, 4))
    if name == "depthwise":
        shape = replace(shape, channels=5, outputs=5, groups=5)
    if name == "many_groups":
        shape = replace(shape, channels=6, outputs=12, groups=3, offset_groups=2, size=(3, 4))
    operands = {k: v.requires_grad_() for k, v in on_gpu(shape.tensors(torch.float64)).items()}

    def call(*values: Tensor) -> Tensor:
        return shape.call(cuda_ops.deform_conv2d, dict(zip(operands, values, strict=True)))

    assert torch.autograd.gradcheck(call, tuple(operands.values()))


@pytest.mark.parametrize("name", ["asymmetric", "v1", "depthwise"])
def test_opcheck(name: str) -> None:
    shape = EVERY[name]
    t = {k: v.requires_grad_() for k, v in on_gpu(shape.tensors(torch.float64)).items()}
    geometry = (shape.stride, shape.padding, shape.dilation, shape.groups, shape.offset_groups)
    args = (t["input"], t["offset"], t["weight"], t["bias"], t.get("mask"), *geometry)
    torch.library.opcheck(torch.ops.segdeform.deform_conv2d.default, args)
    grad = torch.randn_like(torch.ops.segdeform.deform_conv2d(*args))
    args = (grad, t["input"], t["offset"], t["weight"], t.get("mask"), *geometry)
    args = tuple(a.detach() if isinstance(a, Tensor) else a for a in args)
    needs = (True, True, True, True, "mask" in t)
    torch.library.opcheck(torch.ops.segdeform.deform_conv2d_backward.default, (*args, *needs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["c512", "c64", "odd_large", "depthwise_large"])
def test_every_run_gives_the_same_bits(name: str, dtype: torch.dtype) -> None:
    shape = LARGE[name]
    operands = on_gpu(shape.tensors(dtype))
    # All samples of an image into a few pixels: where atomics would meet.
    operands["offset"] = operands["offset"].clamp(-1.5, 1.5)
    operands["offset"][:, :, ::2] *= 0.25
    torch.use_deterministic_algorithms(True)
    try:
        runs = [gradients(cuda_ops.deform_conv2d, shape, operands) for _ in range(4)]
    finally:
        torch.use_deterministic_algorithms(False)
    for other in runs[1:]:
        for key, value in runs[0].items():
            assert torch.equal(value, other[key]), key


@pytest.mark.parametrize("name", ["c64", "c256_groups", "depthwise_large"])
def test_a_captured_graph_replays(name: str) -> None:
    shape = replace(LARGE[name], batch=2)
    fixed = on_gpu(shape.tensors(torch.float32))
    leaves = {k: v.clone().requires_grad_() for k, v in fixed.items()}
    grad = output_gradient(shape, fixed["input"])

    def step() -> tuple[Tensor, ...]:
        output = shape.call(cuda_ops.deform_conv2d, leaves)
        return (output, *torch.autograd.grad(output, list(leaves.values()), grad))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    other = on_gpu(shape.tensors(torch.float32, seed=7))
    with torch.no_grad():
        for name_of, leaf in leaves.items():
            leaf.copy_(other[name_of])
    graph.replay()
    replayed = [t.clone() for t in captured]
    for ours, expected in zip(replayed, step(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_runs_on_the_current_stream_and_waits_for_no_one() -> None:
    shape = LARGE["c64"]
    operands = on_gpu(shape.tensors(torch.float32))
    expected = gradients(cuda_ops.deform_conv2d, shape, operands)
    late = {k: torch.zeros_like(v) for k, v in operands.items()}
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)  # clock ticks: the operands come late on this stream
        for k, v in late.items():
            v.copy_(operands[k])
        torch.cuda.set_sync_debug_mode("error")
        try:
            leaves = {k: v.detach().requires_grad_() for k, v in late.items()}
            output = shape.call(cuda_ops.deform_conv2d, leaves)
            grad = torch.ones_like(output)
            found = torch.autograd.grad(output, list(leaves.values()), grad)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        still_busy = not stream.query()
    torch.cuda.synchronize()
    assert still_busy
    torch.testing.assert_close(output, expected["output"])
    assert all(t.isfinite().all() for t in found)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_runs_on_the_device_of_its_operands() -> None:
    shape = EVERY["vectors"]
    operands = {k: v.to("cuda:1") for k, v in shape.tensors(torch.float32).items()}
    ours = gradients(cuda_ops.deform_conv2d, shape, operands)
    assert torch.cuda.current_device() == 0 and ours["output"].device.index == 1
    assert_agree(ours, gradients(reference.deform_conv2d, shape, operands), 1e-4)


def test_tf32_follows_torch() -> None:
    shape = LARGE["c512"]
    operands = on_gpu(shape.tensors(torch.float32))
    expected = {k: v.double() for k, v in operands.items()}
    exact = shape.call(reference.deform_conv2d, expected)
    errors = []
    for allowed in (False, True):
        torch.backends.cuda.matmul.allow_tf32 = allowed
        output = shape.call(cuda_ops.deform_conv2d, operands)
        errors.append(float((output - exact).norm() / exact.norm()))
    assert errors[0] < 1e-5 and errors[1] < 2e-3
    if torch.cuda.get_device_capability() >= (8, 0):
        assert errors[1] > 5 * errors[0]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast_keeps_pixels_in_float32(dtype: torch.dtype) -> None:
    shape = replace(EVERY["c16_o20"], size=(9, 300))
    operands = on_gpu(shape.tensors(torch.float32))
    operands["offset"][:, 1::2] += 200.3  # along x; bfloat16 would round this to a whole pixel
    with torch.autocast("cuda", dtype):
        ours = gradients(cuda_ops.deform_conv2d, shape, operands)
    assert ours["output"].dtype == dtype
    assert ours["offset"].dtype == ours["input"].dtype == torch.float32
    assert_agree(ours, gradients(reference.deform_conv2d, shape, operands), 3e-2)


def test_memory_does_not_grow_with_the_batch() -> None:
    def peak(batch: int) -> int:
        shape = replace(LARGE["c512"], batch=batch)
        last = torch.channels_last
        operands = on_gpu(shape.tensors(torch.bfloat16))
        operands |= {k: operands[k].float() for k in ("offset", "mask")}
        image = operands["input"].contiguous(memory_format=last)
        grad = output_gradient(shape, image).contiguous(memory_format=last)
        geometry = (*shape.geometry.values(), shape.groups, shape.offset_groups)
        weight = operands["weight"].contiguous(memory_format=last)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        found = torch.ops.segdeform.deform_conv2d_backward(
            grad, image, operands["offset"], weight, operands["mask"], *geometry, *[True] * 5
        )
        torch.cuda.synchronize()
        results = sum(t.numel() * t.element_size() for t in found)
        return torch.cuda.max_memory_allocated() - before - results

    peak(2)  # cuBLAS takes its workspace
    small, large = peak(8), peak(32)
    weight_sums = 3 * 4 * 512 * 512 * 9  # float32 sum, one product, and the slice of the weight
    assert large < (64 << 20) + weight_sums + (8 << 20)
    assert large - small < 8 << 20


def test_nan_and_far_coordinates() -> None:
    shape = replace(SAME, channels=16, outputs=8, offset_groups=2, size=(9, 8), batch=1)
    operands = shape.tensors(torch.float64)
    operands["offset"][0, 18 + 8, 2, 3] = float("nan")
    for i, value in enumerate((float("inf"), -float("inf"), 1e30, -1e30, 3e9)):
        operands["offset"][0, 2 * i, 5, 5] = value
    ours = gradients(cuda_ops.deform_conv2d, shape, on_gpu(operands))
    for name, expected in gradients(reference.deform_conv2d, shape, operands).items():
        torch.testing.assert_close(ours[name].cpu(), expected, equal_nan=True, msg=name)


def test_gradient_on_the_very_border_is_one_sided() -> None:
    shape = replace(SAME, offset_groups=2)
    operands = shape.tensors(torch.float64)
    operands["offset"].zero_()
    ours = gradients(cuda_ops.deform_conv2d, shape, on_gpu(operands))
    assert_agree(ours, gradients(reference.deform_conv2d, shape, operands), 1e-12)
    assert ours["offset"][:, 0, 0].abs().max() > 0


@pytest.mark.parametrize("name", ["vectors", "depthwise_vectors", "depthwise_pointwise"])
def test_layouts(name: str) -> None:
    shape = EVERY[name]
    operands = on_gpu(shape.tensors(torch.float32))
    expected = gradients(cuda_ops.deform_conv2d, shape, operands)
    for operand, value in operands.items():
        storage = torch.zeros(value.numel() + 1, device="cuda")
        unaligned = storage[1:].reshape(value.shape)
        unaligned.copy_(value)
        others = [unaligned, value.movedim(0, -1).contiguous().movedim(-1, 0)]
        if value.dim() == 4:
            others.append(value.contiguous(memory_format=torch.channels_last))
        for other in others:
            leaves = {k: v.detach().requires_grad_() for k, v in operands.items()}
            leaves[operand] = other.detach().requires_grad_()
            output = shape.call(cuda_ops.deform_conv2d, leaves)
            found = torch.autograd.grad(
                output, list(leaves.values()), output_gradient(shape, output)
            )
            ours = dict(zip(leaves, found, strict=True)) | {"output": output.detach()}
            assert_agree(ours, expected, 1e-5)


def test_empty_batch() -> None:
    shape = replace(Shape(), batch=0)
    result = gradients(cuda_ops.deform_conv2d, shape, on_gpu(shape.tensors(torch.float32)))
    assert result["output"].shape == (0, shape.outputs, *shape.out)
    assert result["weight"].abs().max() == 0


def test_more_than_2_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GB of free GPU memory")
    channels, height, width = 64, 8192, 4224  # 2.2e9 elements
    tail = 8  # rows at the end, where 32-bit indices would have gone round
    generator = torch.Generator("cuda").manual_seed(0)
    image = torch.randn(1, height, width, channels, device="cuda", dtype=torch.bfloat16,
                        generator=generator).permute(0, 3, 1, 2)  # fmt: skip
    weight = torch.randn(2, channels, 1, 1, device="cuda", dtype=torch.bfloat16)
    # Exact in float32 at every row, so that the last rows sample as those of a small image do.
    offset = torch.randint(58, (1, 2, height, width), device="cuda") / 64
    geometry = ((1, 1), (0, 0), (1, 1), 1, 1)
    output = torch.ops.segdeform.deform_conv2d(image, offset, weight, None, None, *geometry)
    part = (image[:, :, -tail:], offset[:, :, -tail:])
    expected = torch.ops.segdeform.deform_conv2d(*part, weight, None, None, *geometry)
    torch.testing.assert_close(output[:, :, -tail:], expected)
    grad = torch.randn_like(output)
    needs = (True, True, False, False, False)
    found = torch.ops.segdeform.deform_conv2d_backward(
        grad, image, offset, weight, None, *geometry, *needs
    )
    parts = torch.ops.segdeform.deform_conv2d_backward(
        grad[:, :, -tail:], *part, weight, None, *geometry, *needs
    )
    torch.testing.assert_close(found[1][:, :, -tail:], parts[1], rtol=2e-2, atol=2e-2)
    # The first row of the part also receives from samples above it.
    torch.testing.assert_close(
        found[0][:, :, 1 - tail :], parts[0][:, :, 1 - tail :], rtol=2e-2, atol=2e-2
    )
