"""Config files: finding, reading, overriding (`--set`) and writing them.

Every mistake becomes one line: which file, which dotted key, the value, the rule it breaks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from segdeform.config.schema import AUTO_KEYS, Config
from segdeform.config.strict_yaml import parse_yaml, read_yaml
from segdeform.errors import ConfigError, nearest

# In a wheel the configs lie inside the package, in the repository beside it.
_CONFIG_FOLDERS = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")
_AUTO = "auto"
_MANY_STEPS = (
    2**31
)  # in the place of steps that are not chosen yet: no warm-up is too long for them
_SECTIONS = tuple(Config.model_fields)
_KEYS = tuple(
    f"{section}.{key}"
    for section, field in Config.model_fields.items()
    for key in type(field.default).model_fields
)


@dataclass(frozen=True)
class Draft:
    """A config some keys of which are `auto`: a data set has to be seen before they have values."""

    values: Mapping[str, Mapping[str, Any]]  # section -> key -> what was given, as JSON values
    source: str  # file
    overridden: Mapping[str, str]  # dotted key -> the override that set it

    @property
    def auto(self) -> frozenset[str]:
        """The dotted keys that have no value yet."""
        return frozenset(
            f"{section}.{key}"
            for section, keys in self.values.items()
            for key, value in keys.items()
            if value == _AUTO and f"{section}.{key}" in AUTO_KEYS
        )

    def filled(self, chosen: Mapping[str, Any] | None = None) -> Config:
        """Returns the config with what is chosen so far, and defaults in the place of the rest.

        Raises ConfigError.
        """
        values = {key: _default(key) for key in self.auto}
        if "train.steps" in values:
            values["train.steps"] = _MANY_STEPS
        return self.config(values | dict(chosen or {}))

    @classmethod
    def of(cls, config: Config) -> Draft:
        """Returns a config made in code as a draft; open are only the steps of some epochs."""
        draft = cls(config.model_dump(mode="json"), "the config", {})
        if config.train.epochs is None or "steps" in config.train.model_fields_set:
            return draft
        return draft.leave_open("train.steps")

    def leave_open(self, key: str) -> Draft:
        """Returns the same with one more key that is `auto`."""
        section, _, name = key.partition(".")
        values = {**self.values, section: {**self.values[section], name: _AUTO}}
        return Draft(values, self.source, self.overridden)

    def config(self, chosen: Mapping[str, Any]) -> Config:
        """Returns the config with a value for each key that is `auto`, those by their dotted names.

        Raises ConfigError with the first problem and the number of others.
        """
        values = {section: dict(keys) for section, keys in self.values.items()}
        for key in self.auto:
            section, _, name = key.partition(".")
            values[section][name] = chosen[key]
        try:
            text = json.dumps(values, default=str)
        except (TypeError, ValueError, RecursionError):
            problem = "a value is no number, text, true, false or list"
            raise ConfigError(f"{self.source}: {problem}") from None
        try:
            # Strict JSON mode takes a list for a tuple, but no "3" or true for a number.
            return Config.model_validate_json(text, strict=True)
        except ValidationError as error:
            raise ConfigError(_one_line(error.errors(), self.source, self.overridden)) from None


def load_draft(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Draft:
    """Reads a config file, or a shipped config by its name, and applies `key=value` overrides.

    Override values are YAML: `train.lr=1e-3`, `data.crop=[360,480]`. Raises ConfigError with the
    first problem and the number of others, whatever the keys that are `auto` become.
    """
    path = find_config(name_or_path)
    values = _sections(read_yaml(path), str(path))
    overridden: dict[str, str] = {}
    for override in overrides:
        key, value = _parse_override(override)
        section, _, name = key.partition(".")
        values[section][name] = value
        overridden[key] = f"--set {override}"
    _choose_steps_or_epochs(values["train"], overridden)
    draft = Draft(values, str(path), overridden)
    draft.filled()  # raises what is wrong with the rest
    return draft


def load_config(name_or_path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a config as `load_draft` does; no key may be left `auto`. Raises ConfigError."""
    draft = load_draft(name_or_path, overrides)
    if draft.auto:
        key = min(draft.auto)
        raise ConfigError(
            f"{draft.source}: {key} = auto is chosen by `segdeform train` from a data set: here it "
            f"needs a value, as --set {key}={json.dumps(_default(key))}"
        )
    return draft.config({})


def _choose_steps_or_epochs(train: dict[Any, Any], overridden: Mapping[str, str]) -> None:
    """Lets the one that was overridden decide; the steps of epochs are open.

    Where a file gives both, they have to agree, as they do in the config of a run.
    """
    if train.get("epochs") is None:
        return
    both = [overridden[key] for key in ("train.steps", "train.epochs") if key in overridden]
    if len(both) == 2:
        raise ConfigError(f"{both[0]} and {both[1]} contradict each other: give one of them")
    if "train.steps" in overridden:
        train["epochs"] = None
    elif "train.epochs" in overridden or "steps" not in train:
        train["steps"] = _AUTO


def _default(key: str) -> Any:
    section, _, name = key.partition(".")
    return Config().model_dump(mode="json")[section][name]


def find_config(name_or_path: str | Path) -> Path:
    """Returns the file itself, or the shipped config of that name. Raises ConfigError."""
    path = Path(name_or_path)
    if path.is_file():
        return path
    shipped = shipped_configs()
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    what = "is a folder" if path.is_dir() else "no such config file or shipped config"
    raise ConfigError(f"{name_or_path}: {what}.{nearest(path.stem, shipped)}")


def shipped_configs() -> dict[str, Path]:
    """Returns the configs that come with segdeform, by name."""
    folder = next((folder for folder in _CONFIG_FOLDERS if folder.is_dir()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line: `crop: [360, 480]`."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, True)
)


def dump_config(config: Config) -> str:
    """Writes a config, defaults included, as YAML text that `load_config` reads back equal."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


def _sections(document: Any, source: str) -> dict[str, dict[Any, Any]]:
    """Returns every section as a dict of its own; an empty file or section means its defaults."""
    document = {} if document is None else document
    if not isinstance(document, Mapping):
        raise ConfigError(f"{source}: expected the sections {', '.join(_SECTIONS)}")
    for name, section in document.items():
        if name not in _SECTIONS:
            raise ConfigError(f"{source}: {_unknown(str(name))}")
        if section is not None and not isinstance(section, Mapping):
            raise ConfigError(f"{source}: {name} = {_short(section)}: must hold 'key: value' lines")
        for key in section or {}:
            if f"{name}.{key}" not in _KEYS:
                raise ConfigError(f"{source}: {_unknown(f'{name}.{key}')}")
    return {name: dict(document.get(name) or {}) for name in _SECTIONS}


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals:
        raise ConfigError(f"--set {override}: expected key=value, as in --set train.lr=0.01")
    if key in _SECTIONS:
        keys = (known for known in _KEYS if known.startswith(f"{key}."))
        raise ConfigError(f"--set {override}: '{key}' is a section; set one of {', '.join(keys)}")
    if key not in _KEYS:
        raise ConfigError(f"--set {override}: {_unknown(key)}")
    return key, parse_yaml(text, f"--set {override}")


def _one_line(problems: Sequence[ErrorDetails], source: str, sources: Mapping[str, str]) -> str:
    first = problems[0]
    key = ".".join(map(str, first["loc"][:2]))
    more = len(problems) - 1
    rest = f" (and {more} more problem{'s' if more > 1 else ''})" if more else ""
    rule = first["msg"].removeprefix("Value error, ")
    if len(first["loc"]) < 2:  # of several keys together, which the rule names
        named = [override for key, override in sources.items() if key in rule]
        return f"{', '.join(named) or source}: {rule[:1].lower()}{rule[1:]}{rest}"
    where = sources.get(key, source)
    missing = first["type"] == "missing"  # only a tuple's items can be
    place = "" if missing else "".join(f"[{part}]" for part in first["loc"][2:])
    value = "" if isinstance(first["input"], Mapping) else f" = {_short(first['input'])}"
    rule = "too few values" if missing else rule
    return f"{where}: {key}{place}{value}: {rule[:1].lower()}{rule[1:]}{rest}"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _unknown(key: str) -> str:
    """Words an unknown key with the nearest known one, of the same section where there is one."""
    section, _, name = key.rpartition(".")
    siblings = [known for known in _KEYS if section and known.startswith(f"{section}.")]
    by_name = {known.rpartition(".")[2]: known for known in (*_KEYS, *_SECTIONS, *siblings)}
    close = get_close_matches(name, by_name, n=1)
    if close:
        return f"unknown key '{key}'. Did you mean '{by_name[close[0]]}'?"
    return f"unknown key '{key}'. Known: {', '.join(siblings or _SECTIONS)}."
