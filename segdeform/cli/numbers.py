"""Whole numbers within the words of a command line."""

from __future__ import annotations

_MOST_DIGITS = 18  # such numbers have 64 bits; Python refuses to read ones of thousands


def whole_number(text: str) -> int | None:
    """Returns a number that is written in digits; None for what is none, or too long for one."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= _MOST_DIGITS else None
