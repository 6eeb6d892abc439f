"""Makes the packages beside the scripts importable, as they are for a script that is run."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "scripts"))
