"""Strict YAML reading: no duplicate keys, no code, and `1e-3` is a number."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from segdeform.errors import ConfigError, SegdeformError

_MAX_BYTES = 1 << 20
_EXPONENT_FLOAT = re.compile(r"^[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?[eE][-+]?[0-9]+$")


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader that refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            # Looked at before merging, so that a key may still override one merged by `<<`.
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else ("", "")
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' is given twice", key.start_mark
                )
            if name != ("", ""):
                seen.add(name)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot in a float; everyone else, and every learning rate, does not.
_StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", _EXPONENT_FLOAT, list("-+0123456789")
)


def parse_yaml(text: str, source: str, error: type[SegdeformError] = ConfigError) -> Any:
    """Parses YAML text into plain Python values.

    `source` names the text in messages. Raises `error` for anything that is not strict YAML.
    """
    try:
        # _StrictLoader derives from SafeLoader: no Python object can be built.
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise error(f"{source}{where}: not valid YAML: {problem.problem}") from problem
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as problem:
        # PyYAML's constructors leak these for values such as `2020-99-99` or `!!int ''`.
        reason = " ".join(str(problem).split())[:200] or type(problem).__name__
        raise error(f"{source}: not valid YAML: {reason}") from problem


def read_yaml(path: Path, error: type[SegdeformError] = ConfigError) -> Any:
    """Reads a YAML file into plain Python values.

    Raises `error` when the file is missing, unreadable, over 1 MiB or not strict YAML.
    """
    try:
        if path.exists() and not path.is_file():
            raise error(f"{path}: not a file")
        if path.exists() and path.stat().st_size > _MAX_BYTES:
            raise error(f"{path}: larger than 1 MiB; is this the YAML file you meant?")
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not UTF-8 text") from problem
    return parse_yaml(text, str(path), error)
