"""Options that belong together, declared once as a dataclass and used by several commands."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args


def option_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the fields of a dataclass as options in the place of each such parameter.

    Typer knows no groups of options; it reads the signature, so that is what is written anew. In
    `--help` they stand below the dataclass's PANEL.
    """
    given = inspect.signature(command, eval_str=True).parameters.values()
    groups: dict[str, Any] = {p.name: p.annotation for p in given if is_dataclass(p.annotation)}

    def with_options(**options: Any) -> None:
        for name, group in groups.items():
            values = {field.name: options.pop(field.name) for field in fields(group)}
            options[name] = group(**values)
        command(**options)

    parameters: list[inspect.Parameter] = []
    for parameter in given:
        group = groups.get(parameter.name)
        parameters += [parameter] if group is None else _options(group)
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    with_options.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
    with_options.__annotations__ = {p.name: p.annotation for p in keyword}
    with_options.__doc__, with_options.__name__ = command.__doc__, command.__name__
    return with_options


def _options(group: Any) -> list[inspect.Parameter]:
    found = []
    for parameter in inspect.signature(group, eval_str=True).parameters.values():
        kind, option = get_args(parameter.annotation)
        option = copy(option)  # others use it without the panel
        option.rich_help_panel = group.PANEL
        found.append(parameter.replace(annotation=Annotated[kind, option]))
    return found
