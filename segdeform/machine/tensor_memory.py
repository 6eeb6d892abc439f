"""How much memory a computation with tensors holds at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Result = TypeVar("Result")


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operators made in this thread and that still live."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak: int = 0
        self._living: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._living[storage._cdata] = reference, storage.nbytes()
        for key, (reference, _) in list(self._living.items()):
            if reference.expired():  # type: ignore[no-untyped-call]
                del self._living[key]
        self.peak = max(self.peak, sum(size for _, size in self._living.values()))
        return result


def peak_bytes(compute: Callable[[], Result]) -> tuple[int, Result]:
    """Returns the most bytes that tensors made by `compute()` take at one moment, and its result.

    Operators' own workspaces do not count, nor what other threads do meanwhile.
    """
    with torch.inference_mode(), _Counting() as counting:
        result = compute()
    return int(counting.peak), result
