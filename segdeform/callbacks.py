"""How long work speaks to whoever started it, and is asked to end: the callbacks of the project."""

from __future__ import annotations

from collections.abc import Callable

Say = Callable[[str], None]  # one line for people
Progress = Callable[[int, int], None]  # (done, total), pictures or bytes
Steps = Callable[[str, int, int], None]  # (what is being done, done, total)
Stop = Callable[[], bool]  # asked between two pictures, or two windows of one
