"""The files of a run folder: their names, and how those that are JSON are read and added to.

Knows nothing of torch, so that a run can be looked at without it.
"""

import json
import math
from pathlib import Path
from typing import Any

from codec.input import read_json

CONFIG_NAME = "config.json"
"""All settings of the run."""
LOG_NAME = "log.jsonl"
"""What was logged, a line for each record."""
STATE_NAME = "state.safetensors"
PREVIOUS_NAME = "state.previous.safetensors"
PORTABLE_NAME = "portable"
"""The folder of the state that travels."""
LOCK_NAME = "lock"


def read_settings(run: Path) -> dict[str, Any]:
    """All settings of a run, none where they are missing or damaged."""
    try:
        settings = read_json(run / CONFIG_NAME)
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add a line to a file of JSON lines; what an earlier failure cut short stays a line of its own.

    Numbers that are not finite become null, which JSON has.
    """
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
    line = json.dumps(finite, allow_nan=False).encode() + b"\n"
    with open(path, "a+b") as stream:
        if stream.tell():
            stream.seek(-1, 2)
            line = line if stream.read(1) == b"\n" else b"\n" + line
        stream.write(line)
