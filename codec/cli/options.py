"""Options that several commands share."""

import functools
import math
import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from codec.limits import MOST_REFINING_STEPS

Function = TypeVar("Function", bound=Callable[..., Any])


def together(*options: Callable[[Function], Function]) -> Callable[[Function], Function]:
    """Several options as one, in the order in which --help lists them."""
    return lambda function: functools.reduce(lambda decorated, option: option(decorated), reversed(options), function)


class Name(click.ParamType):
    """A path, or the name of a model. It cannot be empty, as an unset variable of a script would be."""

    name = "path"

    def __init__(self, kind: type = str):
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not os.fspath(value):
            self.fail("it is empty", param, ctx)
        return self._kind(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]  # which the shell completes itself


def _no_nan(ctx: click.Context, param: click.Parameter, number: float) -> float:
    if math.isnan(number):  # which click finds in every range
        raise click.BadParameter("nan is not a number")
    return number


def _inputs_and_output(
    ctx: click.Context, param: click.Parameter, names: tuple[str, ...]
) -> tuple[tuple[str, ...], str]:
    if len(names) < 2:
        raise click.MissingParameter(ctx=ctx, param_hint="'OUTPUT'" if names else "'INPUT'", param_type="argument")
    return names[:-1], names[-1]


def option_model(default: str | None, text: str) -> Callable[[Function], Function]:
    """--model"""
    return click.option(
        "--model", metavar="NAME|DIR", type=Name(), default=default, show_default=bool(default), help=text
    )


def _checked_device(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise click.BadParameter(f"{value!r} is none of auto, cpu, cuda, cuda:1 ... and mps")
    return value


option_device = click.option(
    "--device",
    callback=_checked_device,
    metavar="auto|cpu|cuda|mps",
    default="auto",
    show_default=True,
    help="Where to run; auto takes a CUDA GPU if there is one. The second GPU is cuda:1.",
)
option_precision = click.option(
    "--precision",
    type=click.Choice(["float32", "bf16"]),
    default="float32",
    show_default=True,
    help="Arithmetic of the large matrix products; bf16 is faster on some processors, changes most codes, and decoded "
    "sound a little.",
)
option_refine = click.option(
    "--refine",
    type=click.IntRange(0, MOST_REFINING_STEPS),
    metavar="STEPS",
    default=0,
    show_default=True,
    help="Make the codes sound better, in so many steps; 8 take about as long as the sound lasts.",
)
option_jobs = click.option(
    "--jobs",
    type=click.IntRange(min=0),
    help="Processes, one thread each; 0: only this one.  [default: one per core]",
)
option_max_damaged = click.option(
    "--max-damaged",
    type=click.FloatRange(0, 1),
    callback=_no_nan,
    default=0.001,
    show_default=True,
    help="Fail above this share of damaged files.",
)
option_sound_format = click.option(
    "--format",
    type=click.Choice(["wav", "flac", "ogg", "wav-float"]),
    help="Where the suffix of OUTPUT does not tell it.  [default: wav]",
)
option_overwrite = click.option("--overwrite", is_flag=True, help="Replace existing files.")
option_skip = click.option("--skip-existing", is_flag=True, help="Leave existing files as they are, and go on.")
option_json = click.option(
    "--json", "as_json", is_flag=True, help="Report as JSON on standard output, one line per file."
)
option_json_once = click.option("--json", "as_json", is_flag=True, help="Report as JSON on standard output.")
option_quiet = click.option("--quiet", "-q", is_flag=True, help="No progress and no report, only warnings and errors.")
argument_files = click.argument("files", metavar="INPUT... OUTPUT", nargs=-1, type=Name(), callback=_inputs_and_output)
"""One or more inputs and, last, the output: ([INPUT, ...], OUTPUT)."""
