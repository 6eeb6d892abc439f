"""The command line called in this process, with a cache folder of the test's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from segdeform.cli import main


class Checked(NamedTuple):
    """How `segdeform check --json` ended."""

    code: int
    report: dict[str, Any]  # {} where it ended before there was one
    err: str

    def kinds(self, name: str) -> set[str]:
        """The kinds of the findings whose file or text names `name`."""
        return {finding["kind"] for finding in self.report["findings"] if name in finding["text"]}


Check = Callable[..., Checked]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache folder for this test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]) -> Check:
    """Calls `segdeform check ARGUMENTS... --json`."""

    def call(*arguments: object) -> Checked:
        capsys.readouterr()
        code = main(["check", *map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        return Checked(code, json.loads(out) if out else {}, err)

    return call
