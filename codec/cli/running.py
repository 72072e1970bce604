"""How a command runs and ends: every error a user can cause becomes one sentence and an exit code."""

import argparse
import contextlib
import io
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

import click

from codec.errors import CodecError, CodecWarning, sentence
from codec.output import naming, not_in_locale
from codec.progress import tamed

BAD_INPUT = 2  # exit code
INTERRUPTED = 130  # exit code
PIPE_CLOSED = 141  # exit code
STOP_SIGNALS = {signal.SIGTERM, *(getattr(signal, name, signal.SIGTERM) for name in ("SIGHUP", "SIGUSR1"))}
SIGNALLED = {128 + number for number in STOP_SIGNALS}  # exit codes


class Failed(Exception):
    """What was asked for was done, but not all of it is in order; what is not was reported where it happened."""


class Stopped(KeyboardInterrupt):
    """Training was asked to stop, and has saved where it stands."""


class PipeClosed(Exception):
    """Whoever read our output has gone."""


class Commands(click.Group):
    """The group of all commands; click would end the process itself when a pipe is closed."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which they are needed

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        with _telling_closed_pipes():
            return super().parse_args(context, arguments)  # prints --help and --version

    def invoke(self, context: click.Context) -> Any:
        with _telling_closed_pipes():
            return super().invoke(context)


@contextlib.contextmanager
def _telling_closed_pipes() -> Iterator[None]:
    """Turn the error into one that click does not know."""
    try:
        yield
    except BrokenPipeError as error:
        raise PipeClosed from error


def exit_code(main: Callable[[], object]) -> int:
    """Call a program; what a user can get wrong becomes one sentence on standard error and an exit code."""
    try:
        with _plain_warnings():
            main()
        sys.stdout.flush()
        return 0
    except Failed as error:
        return complain(str(error))
    except click.exceptions.NoArgsIsHelpError as error:
        tell(error.format_message())
        return BAD_INPUT
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "codec"
        message = " ".join(error.format_message().split()).rstrip(".")
        if isinstance(error, click.NoSuchOption):
            if command.endswith("train"):
                message = f"{error.message.rstrip('.')}; a setting is given as key=value"
            elif not error.possibilities:
                message += "; a file -name is given as ./-name"
        return complain(f"{message}; see {command} --help")
    except click.exceptions.Exit as error:
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__  # of what click makes of an interruption
        complain(str(cause) if isinstance(cause, Stopped) else "interrupted; what was finished is kept")
        return INTERRUPTED
    except SystemExit as error:
        if error.code in SIGNALLED:
            complain("stopped; what was finished is kept")
        raise
    except (PipeClosed, BrokenPipeError):
        _give_up_output()
        return PIPE_CLOSED
    except (CodecError, OSError) as error:
        _give_up_output()
        return complain(sentence(error))
    except UnicodeEncodeError as error:
        if error.encoding == "utf-8":
            raise
        _give_up_output()
        return complain(not_in_locale(error))
    except (MemoryError, RuntimeError) as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
            return complain("the GPU has not enough memory; use --device cpu")
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            return complain("there is not enough memory")
        raise


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Say our own warnings in a sentence, without a place in the code."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, CodecWarning):
                complain(str(message))
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = show
        warnings.simplefilter("default", CodecWarning)  # a command goes on, even where warnings are to be errors
        yield


def open_standard_streams() -> None:
    """Put something in the place of those that are closed, whose number the next file would get.

    Input and output cannot be used then, and say so; messages are lost. Letters that the terminal does not know, and
    bytes of file names that are no text, become escapes where nothing better was chosen. Output that fails is named.
    """
    for number, name, way in ((0, "stdin", os.O_WRONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            os.open(os.devnull, way)  # gets the lowest number that is free
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors in ("strict", "surrogateescape"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error is
    for method in ("write", "flush"):
        setattr(sys.stdout, method, naming("standard output")(getattr(sys.stdout, method)))


def _give_up_output() -> None:
    """Throw away what cannot be written, or Python complains again when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def positive(text: str) -> int:
    """For `argparse` of the recipes: an integer from 1 on."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def whole_number(text: str) -> int:
    """For `argparse` of the recipes: an integer from 0 on."""
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return int(text)


def not_negative(text: str) -> float:
    """For `argparse` of the recipes: a finite number from 0 on."""
    if not 0 <= float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number from 0 on, got {text}")
    return float(text)


def complain(sentence: str) -> int:
    """Say what is wrong, and return the exit code of bad input."""
    tell(f"codec: {sentence}")
    return BAD_INPUT


def tell(text: object) -> None:
    """Write to standard error as far as that takes it; the exit code must not depend on it."""
    with contextlib.suppress(OSError):
        click.echo(tamed(str(text)), err=True)


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """End in order on a signal: what is open is closed, and what is half written is removed."""
    sys.exit(128 + number)
