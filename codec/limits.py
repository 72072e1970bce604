"""What settings and samples may be, and how settings are refused."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import SupportsIndex

from codec.errors import ConfigError

MAX_MAGNITUDE = 100.0
"""Of samples. Those beyond are integers that were made floats, not loud speech (full scale is 1)."""
MAX_SAMPLE_RATE = 1_000_000  # Hz
LARGEST_COUNT = 1024
"""Of layers, of frames that a code waits for, and of paths: beyond any use. Each costs time or memory, and it is late,
or there are none at all, when weights that do not fit would tell."""
MOST_REFINING_STEPS = 1000
"""In which codes are refined; far fewer do."""


def refining_steps(steps: SupportsIndex) -> int:
    """A number of steps in which codes are refined, of any type of integer.

    Raises:
        ConfigError: no integer from 0 to `MOST_REFINING_STEPS`.
    """
    try:
        number = -1 if isinstance(steps, bool) else operator.index(steps)
    except TypeError:
        number = -1
    if not 0 <= number <= MOST_REFINING_STEPS:
        raise ConfigError(f"codes are refined in 0 (not at all) to {MOST_REFINING_STEPS} steps, got {steps!r}")
    return number


def too_small(settings: object, group: str, least: Mapping[int, Sequence[str]]) -> list[str]:
    """A sentence about each setting that is below its least value, or NaN.

    Args:
        settings: an object with the settings as attributes; one that is None has no value yet.
        group: what stands before their names, "training".
        least: least value -> names of the settings that have it.
    """
    return [
        f"{group}.{name} must be at least {lowest}, got {value}"
        for lowest, names in least.items()
        for name in names
        if (value := getattr(settings, name)) is not None and not value >= lowest
    ]


def too_large(settings: object, group: str, most: Mapping[str, float]) -> list[str]:
    """A sentence about each setting that is above its largest value; see `too_small`."""
    return [
        f"{group}.{name} must be at most {largest:g}, got {value:g}"
        for name, largest in most.items()
        if (value := getattr(settings, name)) > largest
    ]


def not_positive(settings: object, group: str, names: Sequence[str]) -> list[str]:
    """A sentence about each of these settings that is 0, negative or NaN; see `too_small`."""
    return [
        f"{group}.{name} must be positive, got {value}" for name in names if not (value := getattr(settings, name)) > 0
    ]


def excess(num_damaged: int, num_all: int, max_damaged: float, remark: str) -> str:
    """The end of a sentence about files that cannot be used, where they are too many; else empty.

    Args:
        num_damaged: of the files.
        num_all: files.
        max_damaged: share of them that is allowed.
        remark: what else is to be said, before how to allow more.
    """
    if num_damaged <= max_damaged * num_all:
        return ""
    enough = min(1000 * num_damaged // num_all + 1, 1000) / 1000
    return f", which is more than {100 * max_damaged:g} %; {remark}, accept that with --max-damaged {enough:g}"


def refuse(mistakes: Iterable[str]) -> None:
    """Raise ConfigError with all sentences, if there are any."""
    if mistakes := list(mistakes):
        raise ConfigError(*mistakes)
