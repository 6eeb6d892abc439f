"""Checks data sets before anything is trained on or scored: reads every file, says what is wrong.

`check` gathers the facts of each file (`facts`, remembered by `cache`, read in threads by `scan`),
judges them against the classes (`judge`, `causes`) and reports (`report`, `page`); `fix` writes a
repaired copy.
"""

from __future__ import annotations

from segdeform.checking.check import check, check_sound, list_splits
from segdeform.checking.finding import KINDS, Finding
from segdeform.checking.report import Report

__all__ = ["KINDS", "Finding", "Report", "check", "check_sound", "list_splits"]
