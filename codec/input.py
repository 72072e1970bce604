"""JSON as it comes: from any program, by anybody, cut off, or damaged.

Knows nothing of what it describes. Everything of JSON that the package reads comes through here; what it writes goes
through `codec.output`.
"""

import json
import os
from pathlib import Path
from typing import Any


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none.
    """
    return parse_json(Path(path).read_bytes())


def parse_json(text: str | bytes) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: it is none, or has more lists within each other than anybody means.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
