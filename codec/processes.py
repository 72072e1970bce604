"""What a process owes to the one that started it."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator

LEFT_TO_PARENT = {signal.SIGINT, getattr(signal, "SIGUSR1", signal.SIGINT)}
"""Ctrl-C, and what batch systems send to every process."""


@contextlib.contextmanager
def starting_processes() -> Iterator[None]:
    """Within, processes start that hear nothing of Ctrl-C before `follow_parent`; the caller hears of it afterwards.

    Their pool must have been made before: it starts a process of its own, which lets signals through again.
    """
    if sys.platform == "win32":  # where signals cannot be held
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_PARENT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent() -> None:
    """Leave Ctrl-C and SIGUSR1 to the parent process, and end when it is gone, which a killed parent cannot ask for.

    To be called in a process of `multiprocessing`, however it was started.
    """

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None, "called in a process that nobody started"
        parent.join()
        os._exit(1)

    for number in LEFT_TO_PARENT:
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_PARENT)  # see `starting_processes`
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=watch, daemon=True).start()
