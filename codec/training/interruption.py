"""Signals that ask a run to stop, met between two steps so that the state can be saved."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SIGNALS = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)}
"""Ctrl-C, a polite end, and what batch systems send before a job's time is up; Windows lacks the last."""

IMPATIENCE = 1.0
"""Seconds after a request from which on Ctrl-C is not the same one again."""


@dataclass
class StopRequest:
    """Whether somebody wants the run to stop, and since when."""

    made_at: float | None = None  # seconds of the monotonic clock

    @property
    def is_made(self) -> bool:
        """Whether somebody has asked."""
        return self.made_at is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn each of `SIGNALS` into a request for the block to read; Ctrl-C some time after it interrupts at once.

    One request may come several times: a signal to all processes of a job also comes from the one that started them.

    Only the main thread can receive signals; in another thread the request is never made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: Any) -> None:
        now = time.monotonic()
        if request.made_at is None:
            request.made_at = now
        elif number == signal.SIGINT and now - request.made_at > IMPATIENCE:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
