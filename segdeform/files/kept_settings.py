"""What the runs in a folder share, noted by the first call and compared by the next ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segdeform.errors import UsageError
from segdeform.files.atomic import write_json

FILE = "settings.json"


def keep_settings(folder: Path, wanted: Mapping[str, Any]) -> None:
    """Writes FOLDER/settings.json, or compares it with what is wanted; values are JSON values.

    Raises:
        UsageError: the folder was begun with other settings, or the file is damaged or cannot be
            written.
    """
    path = folder / FILE
    wanted = json.loads(json.dumps(wanted))  # as they are read again: lists for tuples
    if not path.exists():
        write_json(path, wanted)
        return
    try:
        begun = json.loads(path.read_bytes())
        other = sorted(k for k in wanted.keys() | begun.keys() if wanted.get(k) != begun.get(k))
    except (OSError, ValueError, AttributeError) as error:
        raise UsageError(f"{path}: is damaged ({error}); choose another --output") from error
    if other:
        key = other[0]
        raise UsageError(
            f"{folder}: was begun with {key} {begun.get(key)}, and now it is {wanted.get(key)}: "
            "choose another --output"
        )


def read_settings(folder: Path) -> dict[str, Any]:
    """Returns what an earlier call noted; nothing where there was none, or it cannot be read."""
    try:
        noted = json.loads((folder / FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    return noted if isinstance(noted, dict) else {}
