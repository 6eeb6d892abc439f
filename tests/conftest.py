"""Finds external data (CamVid, VOC, weights), through SEGDEFORM_TEST_DATA only."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# Threads that spin while they wait make tiny networks crawl on a busy machine; read with torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A shell's background job ignores Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def external_data(relative: str) -> Path:
    """Returns a path below the folder named by SEGDEFORM_TEST_DATA, or skips the test."""
    root = os.environ.get("SEGDEFORM_TEST_DATA")
    if not root:
        pytest.skip("SEGDEFORM_TEST_DATA is not set: it names a folder with data/ and weights/")
    path = Path(root) / relative
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    return path


@pytest.fixture
def hang_up_heard() -> Iterator[None]:
    """Lets SIGHUP not be ignored in a test, also where the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, lambda number, frame: pytest.fail("SIGHUP went unheard"))
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps what checks remember out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
