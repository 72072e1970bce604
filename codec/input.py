"""JSON as it comes: from any program, by anybody, cut off, or damaged.

Knows nothing of what it describes. Everything of JSON that the package reads comes through here; what it writes goes
through `codec.output`.
"""

import json
import math
import os
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin


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


def is_of(value: Any, kind: Any) -> bool:
    """Whether what JSON has held is of a type, as dataclasses state them: `str | None`, `dict[str, list[float]]`.

    An integer may stand for a float, which must be finite; truth values are no numbers. Of a tuple's elements nothing
    is asked.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return value in arguments
    if tuple in (kind, origin):
        return type(value) in (list, tuple)
    if origin in (Union, UnionType):
        return any(is_of(value, argument) for argument in arguments)
    if origin in (list, dict):
        return type(value) is origin and all(
            is_of(element, arguments[-1]) for element in (value if origin is list else value.values())
        )
    if kind is float:
        return type(value) in (int, float) and abs(value) < math.inf
    return type(value) is kind
