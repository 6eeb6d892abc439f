"""Nested mappings with one key a value, as people write and compare them: `train.lr`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def by_key(config: Any) -> dict[str, Any]:
    """Returns the values of a config by `section.key`; those of one key stay together."""
    if not isinstance(config, Mapping):
        return {}
    return {
        f"{section}.{key}": value
        for section, keys in config.items()
        if isinstance(keys, Mapping)
        for key, value in keys.items()
    }


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
