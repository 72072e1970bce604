"""What commands tell of their results."""

import dataclasses
import json
from typing import Any

import click

from codec.cli.running import tell

UNITS = {
    "seconds": " s",
    "sample_rate": " Hz",
    "hop_length": " samples",
    "frame_rate": " frames/s",
    "bitrate": " kbit/s",
    "payload_bitrate": " kbit/s",
}

LOUD = 2.0
"""Times full scale; 10 dB beyond it the model in the box keeps 2 dB less of the level, and 20 dB beyond it 6 less."""


def told(report: Any, text: str, is_warning: bool = False) -> dict[str, Any]:
    """A report's values, with a line for people under "text"."""
    speed = report.seconds / report.elapsed_seconds
    line = f"{report.source} -> {report.target}: {report.seconds:.2f} s, {text} ({speed:.1f} x real time)"
    return dataclasses.asdict(report) | {"text": line, "is_warning": is_warning}


def show(values: dict[str, Any], as_json: bool, quiet: bool) -> None:
    """Report what `told` has put together: as JSON on standard output, or for people on standard error."""
    text, is_warning = values.pop("text"), values.pop("is_warning")
    if as_json:
        click.echo(json.dumps(values, allow_nan=False))
    if is_warning or not (quiet or as_json):
        tell(text)


def table_of(facts: dict[str, Any]) -> str:
    """Facts as aligned lines; empty ones are left out."""
    width = max(map(len, facts))
    lines = []
    for name, value in facts.items():
        if isinstance(value, float):
            value = f"{value:.3f}".rstrip("0").rstrip(".")
        elif isinstance(value, dict):
            value = json.dumps(value)
        if value is not None:
            lines.append(f"{name.replace('_', ' '):{width}}  {value}{UNITS.get(name, '')}")
    return "\n".join(lines)


def saturated(number: int) -> str:
    """Part of a line about samples beyond full scale, empty where there are none."""
    return f", {count(number, 'sample')} beyond full scale, cut off; --format wav-float keeps them" if number else ""


def softer(report: Any) -> str:
    """Part of a line about sound, of an `EncodeReport`, that comes back softer than it is; empty where it does not."""
    peak = report.peak
    loud = f"; peaks at {peak:.1f} times full scale and will come back softer, turn it down" if peak > LOUD else ""
    return loud + ("; the channels cancel each other: encode one of them" if report.channels_cancel else "")


def count(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"
