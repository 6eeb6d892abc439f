"""Runs the command line: `python -m segdeform`."""

from __future__ import annotations

import sys

from segdeform.cli import main

sys.exit(main())
