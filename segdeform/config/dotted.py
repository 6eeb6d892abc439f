"""Nested mappings with one key a value, as people write and compare them: `train.lr`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def dotted(value: Any) -> dict[str, Any]:
    """Returns {"a": {"b": 1}} as {"a.b": 1}, however deep; what is no mapping as empty."""
    if not isinstance(value, Mapping):
        return {}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= {f"{key}.{rest}": leaf for rest, leaf in dotted(inner).items()}
        else:
            flat[key] = inner
    return flat
