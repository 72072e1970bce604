"""The command line: one function per sub-command that parses, calls and reports.

Every error a user can cause becomes one sentence on standard error and exit code 2; nothing is left half written.
Nothing heavy is imported before a command needs it.
"""

import signal
import sys
from typing import NoReturn

import click

from codec import __version__
from codec.cli.corpora import prepare, tokenize
from codec.cli.evaluation import evaluate
from codec.cli.files import decode, encode, roundtrip
from codec.cli.models import export, import_, info, models
from codec.cli.running import (
    STOP_SIGNALS,
    Commands,
    exit_code,
    not_negative,
    open_standard_streams,
    positive,
    stop,
    whole_number,
)
from codec.cli.training import doctor, train
from codec.cores import keep_to_granted_cores

__all__ = ["commands", "exit_code", "main", "not_negative", "positive", "run", "whole_number"]


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="codec", message="%(prog)s %(version)s")
def commands() -> None:
    """Speech to 0.9 kbit/s codes and back.

    \b
    codec encode talk.wav talk.codes
    codec decode talk.codes again.wav
    """


for _command in (encode, decode, roundtrip, tokenize, info, models, import_, export, evaluate, prepare, train, doctor):
    commands.add_command(_command)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line, and end the process with its exit code."""
    open_standard_streams()
    keep_to_granted_cores()
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, stop)
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    return exit_code(lambda: commands.main(arguments, prog_name="codec", standalone_mode=False))
