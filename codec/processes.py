"""What a process owes to the one that started it."""

import multiprocessing
import os
import signal
import threading


def follow_parent() -> None:
    """Leave Ctrl-C and SIGUSR1 to the parent process, and end when it is gone, which a killed parent cannot ask for.

    To be called in a process of `multiprocessing`, however it was started.
    """

    def watch() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None, "called in a process that nobody started"
        parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGUSR1"):  # which batch systems send to every process
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=watch, daemon=True).start()
