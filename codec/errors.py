"""Every error a user can cause, so that the command line can turn each into one sentence and exit code 2.

Each child also inherits the builtin it refines, so library users can catch either.
"""

import os


class CodecError(Exception):
    """Something outside our code is wrong; the message says what, and what to do."""


class AudioError(CodecError, ValueError):
    """A sound file or waveform cannot be used."""


class FormatError(CodecError, ValueError):
    """A `.codes` file, or another file of codes, is malformed, damaged or from a newer version."""


class ConfigError(CodecError, ValueError):
    """Settings are unknown, of the wrong type or out of range; `args` holds a sentence for each mistake."""

    def __str__(self) -> str:
        return "; ".join(self.args)


class ModelError(CodecError, ValueError):
    """A model cannot be found or loaded, or does not fit its configuration or the codes."""


class CorpusError(CodecError, ValueError):
    """A corpus, its archives or a list of its utterances is missing, incomplete or damaged."""


class CodecWarning(UserWarning):
    """Something outside our code that we can go on without; the message says what, and what to do."""


def sentence(error: BaseException) -> str:
    """What happened, in one line; of system errors the file first."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror
    return " ".join(filter(None, map(str.strip, text.splitlines()))) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The point of an error that explains itself over many lines."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
