from __future__ import annotations

import os
from pathlib import Path

import pytest

from segdeform.config.strict_yaml import parse_yaml, read_yaml
from segdeform.errors import ConfigError, DataError


def test_a_number_with_an_exponent_is_a_float() -> None:
    content = parse_yaml("a: 1e-3\nb: 5E4\nc: -2e+1\nd: 1.5e-2\ne: 1e5x\nf: 12", "text")
    assert content == {"a": 0.001, "b": 50000.0, "c": -20.0, "d": 0.015, "e": "1e5x", "f": 12}
    assert isinstance(content["f"], int)


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "x: {p: 1, p: 1}", "x:\n  - {1: a, 1: b}"])
def test_a_key_given_twice_is_refused_with_its_line(text: str) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml, line \d+, column \d+.*given twice"):
        parse_yaml(text, "config.yaml")


def test_a_merged_key_may_be_overridden() -> None:
    content = parse_yaml("a: &base {p: 1, q: 2}\nb: {<<: *base, p: 3}", "text")
    assert content["b"] == {"p": 3, "q": 2}


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "a: 2020-99-99",
        "!!int ''",
        "!!bool maybe",
        "!!timestamp x",
        "[" * 600,
        "a\x00b",
        "? {a: 1}\n: 2",
        "!!python/object/apply:os.system [echo]",
        "a: 0x_",
        "\t- a",
    ],
)
def test_what_is_no_strict_yaml_is_a_one_line_error(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "text")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_raise_the_wanted_error(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\xff")
    (tmp_path / "huge.yaml").write_bytes(b"#" * (2 << 20))
    os.mkfifo(tmp_path / "fifo.yaml")
    for name in ("none.yaml", "latin.yaml", "huge.yaml", "fifo.yaml", "."):
        with pytest.raises(DataError, match=str(tmp_path)):
            read_yaml(tmp_path / name, DataError)
