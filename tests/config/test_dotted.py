"""Dotted keys of nested mappings."""

from __future__ import annotations

import pytest

from segdeform.config.dotted import dotted


def test_every_value_has_one_key() -> None:
    nested = {"a": {"b": 1, "c": {"d": [2, {"e": 3}]}}, "f": None, "g": {}}
    assert dotted(nested) == {"a.b": 1, "a.c.d": [2, {"e": 3}], "f": None}


@pytest.mark.parametrize("value", [None, [], "text", 5])
def test_what_is_no_mapping_has_none(value: object) -> None:
    assert dotted(value) == {}
