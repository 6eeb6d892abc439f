"""Makes the modules in scripts/ and scripts/experiments/ importable, as they are for each other."""

from __future__ import annotations

import sys
from pathlib import Path

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path[:0] = [str(SCRIPTS / "experiments"), str(SCRIPTS)]
