"""The config text inside mmsegmentation's checkpoints, read without being run."""

from __future__ import annotations

import ast
from typing import Any

_LONGEST = 2**20  # letters


def read_config(text: str) -> dict[str, Any]:
    """Reads `name = value` lines of constants, lists, tuples, dicts and `dict(key=value)` calls.

    A name on the right stands for its value above. What is anything else is left out, so that a key
    that is there has the value that the text says.
    """
    if len(text) > _LONGEST:
        return {}
    try:
        lines = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    known: dict[str, Any] = {}
    for line in lines:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                known.pop(name, None)
                try:
                    known[name] = _value(value, known)
                except (LookupError, TypeError, ValueError, RecursionError):
                    continue
    return known


def _value(node: ast.expr, known: dict[str, Any]) -> Any:
    """Computes a literal; raises ValueError or LookupError for what is none."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return known[name]
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_value(item, known) for item in items]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return {_key(key): _value(value, known) for key, value in pairs}
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=items):
            return {_named(item): _value(item.value, known) for item in items}
    raise ValueError("not a literal")


def _key(node: ast.expr | None) -> str | int:
    match node:
        case ast.Constant(value=str() | int() as key):
            return key
    raise ValueError("not a literal key")


def _named(item: ast.keyword) -> str:
    if item.arg is None:  # **other
        raise ValueError("not a keyword")
    return item.arg
