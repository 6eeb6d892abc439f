"""The command line called in this process, with a cache folder of the test's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from segdeform.checking.check import SPLITS
from segdeform.cli import main
from segdeform.data import guess_name, list_dataset
from segdeform.data.dataset import MissingSplitError
from segdeform.errors import DataError, UsageError


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
    """Calls `segdeform check ARGUMENTS... --json`, on the splits that there are."""

    def call(*arguments: object) -> Checked:
        words = [str(argument) for argument in arguments]
        if "--split" not in words:
            words += [word for split in _splits(words) for word in ("--split", split)]
        capsys.readouterr()
        code = main(["check", *words, "--json"])
        out, err = capsys.readouterr()
        return Checked(code, json.loads(out) if out else {}, err)

    return call


def _splits(words: list[str]) -> list[str]:
    """Lists the splits of a data set, of which most here have one only."""
    root = Path(words[0])
    kind = words[words.index("--dataset") + 1] if "--dataset" in words else guess_name(root)
    found = []
    for split in SPLITS:
        try:
            list_dataset(kind, root, split)
        except MissingSplitError:
            continue
        except (DataError, UsageError):
            pass  # for the check to say
        found.append(split)
    return found
