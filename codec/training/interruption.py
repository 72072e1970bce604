"""Signals that ask a run to stop, met between two steps so that the state can be saved."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SIGNALS = {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGUSR1", signal.SIGTERM)}
"""Ctrl-C, a polite end, and what batch systems send before a job's time is up; Windows lacks the last."""


@dataclass
class StopRequest:
    """Whether somebody wants the run to stop."""

    is_made: bool = False


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn each of `SIGNALS` into a request for the block to read; a second signal interrupts at once.

    Only the main thread can receive signals; in another thread the request is never made.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def handle(number: int, frame: Any) -> None:
        if request.is_made:
            raise KeyboardInterrupt
        request.is_made = True

    previous = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
