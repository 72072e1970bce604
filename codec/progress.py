"""What people see of work under way: a line on a terminal's standard error that is gone when the work is."""

import sys
import time
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
"""Called with what is done at the moment, how much of it is done and how much there is."""

_SECONDS_BETWEEN = 0.2


class _Line:
    """A line that is written over and over, and removed at the end.

    Args:
        is_wanted: whether to show it, on a terminal.
    """

    def __init__(self, is_wanted: bool = True):
        self._is_shown = is_wanted and sys.stderr is not None and sys.stderr.isatty()
        self._last = time.monotonic()

    def __enter__(self):  # type: ignore[no-untyped-def]  # the subclass
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove what is shown."""
        self._print("")

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN:
            return False
        self._last = now
        return True

    def _print(self, text: str) -> None:
        if self._is_shown:
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()


class SpeedLine(_Line):
    """Share done, speed and time left, of something that lasts.

    Args:
        label: stands in front.
        is_wanted: whether to show it, on a terminal.
    """

    def __init__(self, label: str, is_wanted: bool = True):
        super().__init__(is_wanted)
        self._label, self._start = label, time.monotonic()

    def __call__(self, done: float, total: float | None) -> None:
        """Seconds of audio done, and in all where that is known."""
        if not self._is_due():
            return
        speed = done / (time.monotonic() - self._start)
        if total:
            share = min(done / total, 1.0)
            left = max(total - done, 0.0) / speed if speed else 0.0
            bar = "#" * int(share * 20)
            self._print(f"{self._label} [{bar:20}] {share:4.0%}  {speed:.1f} x real time, {left:.0f} s left")
        else:
            self._print(f"{self._label}  {done:.0f} s done, {speed:.1f} x real time")


class CountLine(_Line):
    """What is being done, and how much of it."""

    def __call__(self, step: str, done: int, total: int) -> None:
        """What is done at the moment, how many of them are, and how many there are."""
        if self._is_due():
            self._print(f"{step}: {done} of {total} ({done / max(total, 1):.0%})")
