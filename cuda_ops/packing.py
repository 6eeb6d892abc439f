"""A weight kept in the layout of the CPU kernels between calls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from cuda_ops.surroundings import values_at_hand


class WeightPacking:
    """Keeps a weight in the layout of the CPU kernels from call to call, for inference.

    Hand one to every call of `deform_conv2d` with the same weight. Each call compares a hash of the
    weight with that of what was packed, so that no change of the weight, by whatever means, goes
    unseen. It holds about as much memory as the weight in float32 (float64 for float64).
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[WeightPacking], tuple[()]]:
        """Copies and pickles as an empty one: what it keeps is made anew in no time."""
        return WeightPacking, ()

    @contextmanager
    def lend(
        self, input: Tensor, weight: Tensor, groups: int, *others: Tensor | None
    ) -> Iterator[Tensor | None]:
        """Lends the memory that the native operator reads, and fills where it must.

        None, so that the weight is packed for this call alone: where gradients are wanted, under
        transforms, off the CPU, and while another thread has it.
        """
        if not _values_alone(input, weight, *others) or not self._lock.acquire(blocking=False):
            yield None
            return
        try:
            yield self._fitting(input, weight, groups)
        finally:
            self._lock.release()

    def _fitting(self, input: Tensor, weight: Tensor, groups: int) -> Tensor:
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        lanes = 16  # of the widest vectors: each group's outputs are filled up to whole ones
        outputs = groups * (-(weight.shape[0] // groups) // lanes * -lanes)
        elements = max(outputs, weight.shape[0]) * weight[0].numel() + lanes
        if self._memory is None or (self._memory.dtype, self._memory.numel()) != (dtype, elements):
            with torch.inference_mode(False):  # to be written inside and outside of that mode
                self._memory = torch.zeros(elements, dtype=dtype)
        return self._memory


def _values_alone(*tensors: Tensor | None) -> bool:
    """Says whether a call is plain inference on CPU: no gradients, tracing, fakes or transforms."""
    if not values_at_hand(*tensors):
        return False
    return not (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors))
