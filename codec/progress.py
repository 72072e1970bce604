"""What people see of work under way: on a terminal a line that is gone when the work is, in a log one every minute."""

import contextlib
import os
import re
import sys
import time
from collections.abc import Callable
from typing import TextIO

Progress = Callable[[str, float, float], None]
"""Called with what is done at the moment, how much of it is done and how much there is."""
SecondsProgress = Callable[[float, float | None], None]
"""Called with the seconds of sound done and the seconds in all, or None where that is not known."""

_SECONDS_BETWEEN = 0.2
_SECONDS_BETWEEN_LOGGED = 60.0
"""Where standard error is no terminal; work that takes less says nothing there."""


_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class _Line:
    """On a terminal it is written over and over, and removed at the end; elsewhere it is one line after the other.

    Args:
        is_wanted: whether to show it.
    """

    def __init__(self, is_wanted: bool = True):
        self._is_wanted = is_wanted and sys.stderr is not None
        self._is_terminal = self._is_wanted and sys.stderr.isatty()
        self._last = time.monotonic()

    def __enter__(self):  # type: ignore[no-untyped-def]  # the subclass
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove what is shown."""
        if self._is_terminal:
            self._print("")

    def _is_due(self) -> bool:
        now = time.monotonic()
        pause = _SECONDS_BETWEEN if self._is_terminal else _SECONDS_BETWEEN_LOGGED
        if not self._is_wanted or now - self._last < pause:
            return False
        self._last = now
        return True

    def _print(self, text: str) -> None:
        text = tamed(text)
        if self._is_terminal:  # a line that wraps could not be written over; what is told stands at its end
            room = _columns(sys.stderr) - 1
            text = f"\r\x1b[K{text if len(text) <= room else f'…{text[1 - room :]}'}"
        else:
            text += "\n"
        with contextlib.suppress(OSError):  # work of days must not end where its log cannot grow
            sys.stderr.write(text)
            sys.stderr.flush()


class SpeedLine(_Line):
    """Share done, speed and time left, of something that lasts.

    Args:
        label: stands in front.
        is_wanted: whether to show it.
    """

    def __init__(self, label: str, is_wanted: bool = True):
        super().__init__(is_wanted)
        self._label, self._start = label, time.monotonic()

    def __call__(self, done: float, total: float | None) -> None:
        """See `SecondsProgress`."""
        if not self._is_due():
            return
        speed = done / max(time.monotonic() - self._start, 1e-3)
        if total:
            share = min(done / total, 1.0)
            left = max(total - done, 0.0) / speed if speed else 0.0
            bar = "#" * int(share * 20)
            self._print(f"{self._label} [{bar:20}] {share:4.0%}  {speed:.1f} x real time, {duration(left)} left")
        else:
            self._print(f"{self._label}  {done:.0f} s done, {speed:.1f} x real time")


class CountLine(_Line):
    """What is being done, how much of it, the speed and the time left."""

    _step: str | None = None

    def __call__(self, step: str, done: float, total: float) -> None:
        """See `Progress`."""
        if step != self._step:
            # What the first call tells was there before.
            self._step, self._first, self._start = step, done, time.monotonic()
        if not self._is_due():
            return
        text = f"{step}: {done} of {total} ({done / max(total, 1):.0%})"
        if done > self._first:
            speed = (done - self._first) / max(time.monotonic() - self._start, 1e-3)
            text += f", {speed:.3g} per second, {duration((total - done) / speed)} left"
        self._print(text)


def tamed(text: str) -> str:
    """Without the control characters that names of files may have, which would do to a terminal what nobody asked for.

    Line breaks stay.
    """
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def _columns(terminal: TextIO) -> int:
    with contextlib.suppress(OSError):
        return os.get_terminal_size(terminal.fileno()).columns or 80
    return 80


def duration(seconds: float) -> str:
    """In a unit that says enough: "110 s", "3 min", "40 h", "12 d"."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
